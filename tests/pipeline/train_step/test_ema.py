"""The moving average of the weights against its formula."""

from __future__ import annotations

import torch

from models.segmenter import Segmenter, SegmenterConfig, build_segmenter
from pipeline.train_step.ema import ModelEma


def build(head: str = "embedding") -> Segmenter:
    torch.manual_seed(0)
    arguments = {"backbone": "test_resnet", "decoder_channels": 8, "embedding_dim": 4, "head": head}
    return build_segmenter(SegmenterConfig(num_classes=300, **arguments))  # type: ignore[arg-type]


def test_the_average_follows_the_weights_as_its_formula_says() -> None:
    segmenter = build().train()
    average = ModelEma(segmenter, 0.8)
    expected = {name: tensor.clone() for name, tensor in segmenter.state_dict().items()}
    for step in range(40):
        with torch.no_grad():
            for parameter in segmenter.parameters():
                parameter.add_(torch.randn_like(parameter))
            for buffer in segmenter.buffers():
                buffer.add_(1)
        average.update(step)
        decay = min(0.8, (1 + step) / (10 + step))
        for name, tensor in segmenter.state_dict().items():
            floating = tensor.is_floating_point()
            expected[name] = decay * expected[name] + (1 - decay) * tensor if floating else tensor.clone()
    found = average.segmenter.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5)
    assert not average.segmenter.training
    assert not any(parameter.requires_grad for parameter in average.segmenter.parameters())
