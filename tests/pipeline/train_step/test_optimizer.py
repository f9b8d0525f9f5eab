"""The optimizers: which parameter has which rate and decay, and how the rate goes over the steps."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from models.segmenter import Segmenter, SegmenterConfig, build_segmenter
from pipeline.checkpoint.format import optimizer_tensors, restore_optimizer
from pipeline.config.load import load_settings
from pipeline.config.schema import TrainSettings
from pipeline.runtime.errors import UsageError
from pipeline.train_step.optimizer import build_optimizer, set_learning_rate


def build(head: str = "embedding") -> Segmenter:
    return build_segmenter(
        SegmenterConfig(
            num_classes=37, backbone="test_efficientnet", decoder_channels=16, embedding_dim=6, head=head
        )  # type: ignore[arg-type]
    )


def group_of(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> dict[str, object]:
    found = [g for g in optimizer.param_groups if any(parameter is p for p in g["params"])]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("head", ["embedding", "softmax"])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_every_parameter_is_in_one_group(name: str, head: str) -> None:
    segmenter = build(head)
    optimizer = build_optimizer(segmenter, TrainSettings(optimizer=name))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(map(id, parameters)) == sorted(map(id, segmenter.parameters()))


def test_the_rate_decays_polynomially_and_the_backbone_follows_at_its_factor() -> None:
    settings = TrainSettings(steps=100, learning_rate=0.01, poly_power=0.9, backbone_lr_multiplier=0.1)
    segmenter = build()
    optimizer = build_optimizer(segmenter, settings)
    assert set_learning_rate(optimizer, settings, 0) == 0.01
    for step in (1, 50, 99):
        rate = set_learning_rate(optimizer, settings, step)
        assert rate == pytest.approx(0.01 * (1 - step / 100) ** 0.9)
        groups = segmenter.parameter_groups()
        for part, factor in ((groups.backbone, 0.1), (groups.decoder, 1.0), (groups.class_embeddings, 1.0)):
            assert group_of(optimizer, part[0][1])["lr"] == pytest.approx(rate * factor)


def test_the_cosine_falls_from_the_rate_to_zero_by_way_of_half() -> None:
    settings = TrainSettings(steps=100, learning_rate=0.02, schedule="cosine")
    optimizer = build_optimizer(build(), settings)
    rates = [set_learning_rate(optimizer, settings, step) for step in range(100)]
    assert rates[0] == 0.02
    assert rates[50] == pytest.approx(0.01)
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[99] == pytest.approx(0.01 * (1 + math.cos(math.pi * 0.99)))


def test_warm_up_lowers_the_first_rates_only() -> None:
    plain, warm = TrainSettings(steps=10), TrainSettings(steps=10, warmup_steps=4)
    optimizer = build_optimizer(build(), plain)
    shares = [
        set_learning_rate(optimizer, warm, s) / set_learning_rate(optimizer, plain, s) for s in range(6)
    ]
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_weight_decay_of_sgd_covers_everything_and_that_of_adamw_no_biases() -> None:
    segmenter = build()
    for name, of_norms in (("sgd", 0.3), ("adamw", 0.0)):
        optimizer = build_optimizer(segmenter, TrainSettings(optimizer=name, weight_decay=0.3))
        for parameter in segmenter.parameters():
            wanted = 0.3 if parameter.dim() > 1 else of_norms
            assert group_of(optimizer, parameter)["weight_decay"] == wanted


def test_the_class_embeddings_may_have_a_decay_and_a_rate_of_their_own() -> None:
    segmenter = build()
    settings = TrainSettings(class_embedding_weight_decay=0.0, class_lr_multiplier=3.0)
    optimizer = build_optimizer(segmenter, settings)
    rate = set_learning_rate(optimizer, settings, 7)
    [(_, table)] = segmenter.parameter_groups().class_embeddings
    _, weight = segmenter.parameter_groups().decoder[0]
    of_table, of_weight = group_of(optimizer, table), group_of(optimizer, weight)
    assert (of_table["weight_decay"], of_weight["weight_decay"]) == (0.0, 1e-4)
    assert (of_table["lr"], of_weight["lr"]) == (3.0 * rate, rate)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_classifier_may_have_a_rate_of_its_own(name: str) -> None:
    segmenter = build("softmax")
    settings = TrainSettings(optimizer=name, class_lr_multiplier=3.0, weight_decay=0.3)
    optimizer = build_optimizer(segmenter, settings)
    rate = set_learning_rate(optimizer, settings, 7)
    for parameter_name, parameter in segmenter.named_parameters():
        of_classes = parameter_name.startswith("head.classifier.")
        of_backbone = parameter_name.startswith("backbone.")
        group = group_of(optimizer, parameter)
        assert group["lr"] == rate * (3.0 if of_classes else 0.1 if of_backbone else 1.0)
        assert group["weight_decay"] == (0.0 if name == "adamw" and parameter.dim() < 2 else 0.3)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_an_optimizer_goes_on_from_its_tensors_as_if_never_stopped(name: str) -> None:
    settings = TrainSettings(optimizer=name, learning_rate=0.01)

    def steps(segmenter: Segmenter, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            for index, parameter in enumerate(segmenter.parameters()):
                parameter.grad = torch.sin(parameter.detach() * 3 + index)
            optimizer.step()

    torch.manual_seed(0)
    whole = build()
    steps(whole, build_optimizer(whole, settings), 5)
    torch.manual_seed(0)
    first = build()
    optimizer = build_optimizer(first, settings)
    steps(first, optimizer, 2)
    second = build()
    second.load_state_dict(first.state_dict())
    resumed = build_optimizer(second, settings)
    restore_optimizer(resumed, optimizer_tensors(optimizer))
    steps(second, resumed, 3)
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_frozen_backbone_has_no_gradients_and_keeps_its_statistics() -> None:
    segmenter = build()
    segmenter.freeze_backbone()
    optimizer = build_optimizer(segmenter, TrainSettings())
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    before = {name: value.clone() for name, value in segmenter.backbone.state_dict().items()}
    segmenter.eval()
    segmenter.train()  # as after a validation
    segmenter(torch.rand(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is None for parameter in segmenter.backbone.parameters())
    assert optimized == {id(p) for p in segmenter.parameters() if p.requires_grad}
    assert all(torch.equal(before[name], value) for name, value in segmenter.backbone.state_dict().items())
    assert segmenter.decoder.training


def test_freezing_an_untrained_backbone_is_refused(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text("data: {root: somewhere}\ntrain: {freeze_backbone: true}\n")
    with pytest.raises(UsageError, match="stay random"):
        load_settings(params)
