"""Balance a long tail of classes in training: offsets of their logits, and weights of their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config.schema import LossSettings

_BETA = 0.999  # of the effective number: beyond a thousand images another one adds little


@dataclass(frozen=True)
class ClassFrequencies:
    """Hold how often each of the C classes is seen in the images to train on.

    Attributes:
        pixels: of each class.
        images: that show it.
    """

    pixels: Sequence[int]
    images: Sequence[int]


@dataclass(frozen=True)
class LongTail:
    """Hold what training adds to the loss; None for nothing.

    Attributes:
        offsets: (C,) float32, added to the logits.
        weights: (C,) float32, of the pixels of each class.
    """

    offsets: Tensor | None = None
    weights: Tensor | None = None

    @classmethod
    def of(cls, settings: LossSettings, frequencies: ClassFrequencies, device: torch.device) -> LongTail:
        """Return what the settings ask for.

        Args:
            settings: `logit_adjustment` and `class_weights` count.
            frequencies: of the images to train on.
            device: of the tensors.
        """
        offsets = weights = None
        if settings.logit_adjustment:
            offsets = logit_offsets(frequencies.pixels, settings.logit_adjustment).to(device)
        if settings.class_weights == "effective_number":
            weights = effective_number_weights(frequencies.images).to(device)
        return cls(offsets, weights)


def logit_offsets(pixels: Sequence[int], scale: float) -> Tensor:
    """Return (C,) `scale` times log of each class's share of the pixels (Menon et al., ICLR 2021).

    With these in training, and without in prediction, a rare class is predicted as readily as its evidence
    says. A class without a pixel counts as one with a single pixel.
    """
    counted = torch.tensor(pixels, dtype=torch.float64).clamp(min=1)
    return (scale * (counted / counted.sum()).log()).float()


def effective_number_weights(images: Sequence[int]) -> Tensor:
    """Return (C,) weights (1 - b) / (1 - b^n): b = 0.999, n the images of a class (Cui et al., CVPR 2019).

    They are scaled to a mean of 1 over the classes that occur; one that does not has weight 1.
    """
    numbers = torch.tensor(images, dtype=torch.float64)
    weights = (1 - _BETA) / (1 - _BETA ** numbers.clamp(min=1))
    occurs = numbers > 0
    if not occurs.any():
        return torch.ones_like(weights).float()
    return torch.where(occurs, weights / weights[occurs].mean(), 1.0).float()
