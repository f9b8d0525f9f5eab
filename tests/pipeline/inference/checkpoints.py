"""Checkpoints of untrained networks that tell many classes apart, made in a second."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from models.segmenter import Segmenter, SegmenterConfig, build_segmenter
from pipeline.checkpoint.format import Checkpoint
from pipeline.data.labels.label_space import ClassEntry, LabelSpace
from pipeline.data.labels.official import official_categories

NUM_CLASSES = 300  # more than 8 bits hold


def label_space(num_classes: int = NUM_CLASSES) -> LabelSpace:
    """The first classes of LVIS."""
    names = [row["name"] for row in official_categories().lvis[:num_classes]]
    return LabelSpace(
        tuple(ClassEntry(i, name, "lvis", "f", {"lvis": (i,)}) for i, name in enumerate(names, start=1))
    )


def checkpoint(
    head: str = "embedding",
    *,
    backbone: str = "test_resnet",
    decoder: str = "deeplabv3plus",
    input_scale: float = 1.0,
    space: LabelSpace | None = None,
) -> Checkpoint:
    """An untrained network, the same at every call; head "unprojected": embeddings without a convolution."""
    space = space or label_space()
    unprojected = head == "unprojected"
    arguments = SegmenterConfig(
        num_classes=space.num_classes,
        backbone=backbone,
        decoder=decoder,
        decoder_channels=16,
        embedding_dim=16 if unprojected else 8,
        projection="if_needed",
        head="embedding" if unprojected else head,  # type: ignore[arg-type]
        input_scale=input_scale,
    )
    torch.manual_seed(3)
    segmenter = build_segmenter(arguments).eval()
    _spread(segmenter)
    similarity = "cosine" if unprojected else "distance"
    settings: dict[str, object] = {"loss.temperature": 0.1, "loss.similarity": similarity}
    return Checkpoint(arguments, space, settings, 7, {"finished": True}, segmenter.state_dict())


def _spread(segmenter: Segmenter) -> None:
    """Give the last layer's output mean 0 and deviation 1 in each channel, so that pixels differ."""
    head = segmenter.head
    layer = head.projection if hasattr(head, "projection") else head.classifier
    coarse = torch.rand(1, 3, 12, 12).repeat_interleave(8, 2).repeat_interleave(8, 3)
    with torch.no_grad():
        features = segmenter.decoder(segmenter.backbone(torch.rand(1, 3, 96, 96) * coarse))
        if isinstance(layer, nn.Identity):  # classes where the pixels are, instead
            pixels = features.flatten(2)[0].T
            head.class_table.copy_(pixels[torch.randperm(len(pixels))[: len(head.class_table)]])
            return
        output = layer(features)
        mean, deviation = output.mean(dim=(0, 2, 3)), output.std(dim=(0, 2, 3))
        layer.weight.div_(deviation[:, None, None, None])
        layer.bias.sub_(mean).div_(deviation)


def saved(folder: Path, head: str = "embedding") -> Path:
    """The checkpoint as a file, as a run leaves it."""
    path = folder / "best.safetensors"
    checkpoint(head).save(path)
    return path
