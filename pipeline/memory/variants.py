"""Predict, and measure where there is a GPU, the peak memory of a training step of every variant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pipeline.config.schema import Settings
from pipeline.memory.predict import measure_bytes, predict_bytes
from pipeline.runtime.device import GIB
from pipeline.runtime.progress import Progress


@dataclass(frozen=True)
class VariantMemory:
    """Hold the peak memory of one training step of a variant, with its own batch and crop."""

    variant: str
    num_classes: int
    images_per_step: int
    crop_size: int
    predicted_gib: float
    measured_gib: float | None
    """By the CUDA allocator; None without a GPU, or where the step does not fit into it."""


def variant_memory(
    variants: Mapping[str, Settings], num_classes: int, *, device: torch.device | None = None
) -> list[VariantMemory]:
    """Predict every variant's step; where a CUDA device is given, measure it too.

    Args:
        variants: settings by name.
        num_classes: of the data.
        device: to measure on.

    Raises:
        UsageError: a model that cannot be built or cannot take crops of this size.
    """
    found = []
    with Progress("predict memory", len(variants), seconds=10.0) as progress:
        for name, settings in variants.items():
            measured = None if device is None else measure_bytes(settings, num_classes, device)
            predicted = predict_bytes(settings, num_classes) / GIB
            found.append(
                VariantMemory(
                    name,
                    num_classes,
                    settings.train.images_per_step,
                    settings.train.crop_size,
                    predicted,
                    None if measured is None else measured / GIB,
                )
            )
            progress.advance(f"{name}: {predicted:.2f} GiB")
    return found
