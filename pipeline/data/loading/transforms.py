"""Augment training samples as in the paper: random scale, random crop with padding, random flip.

Where we depart from the released code: the window is cut out before it is resized, which is the same picture
up to a rounded pixel and never makes the enlarged image; and a window without any labeled pixel is drawn
again, because LVIS labels only part of many images and such a crop teaches nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.data.loading.batch import IGNORE_INDEX

PADDING_COLOR = (124, 116, 104)
"""ImageNet's mean in 8 bits, which the backbones normalize to about zero."""

_TRIES = 8


@dataclass(frozen=True)
class TrainTransform:
    """Cut a square out of an image and its target at a random scale, and mirror it at random.

    Args:
        crop_size: side of the square in pixels.
        scale_range: least and most enlargement, drawn uniformly.
        flip_probability: how often the square is mirrored left to right.
    """

    crop_size: int
    scale_range: tuple[float, float] = (0.5, 2.0)
    flip_probability: float = 0.5

    def __call__(self, image: Tensor, target: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Transform one sample; the generator alone decides how.

        Args:
            image: (3, H, W) uint8, resized bilinearly with antialiasing.
            target: (H, W) int64, resized to the nearest pixel.
            generator: on the CPU.

        Returns:
            (3, S, S) uint8 and (S, S) int64 with S = crop_size; where the scaled image is smaller, padded
            below and on the right with `PADDING_COLOR` and `IGNORE_INDEX`.
        """
        for _ in range(_TRIES):
            rows, columns, size = self._window(target.shape[0], target.shape[1], generator)
            labels = _nearest(target[rows, columns], size)
            if bool((labels != IGNORE_INDEX).any()):
                break
        pixels = functional.interpolate(image[None, :, rows, columns], size, mode="bilinear", antialias=True)[
            0
        ]
        if float(torch.rand((), generator=generator)) < self.flip_probability:
            pixels, labels = pixels.flip(-1), labels.flip(-1)
        return self._padded(pixels, labels)

    def _window(
        self, height: int, width: int, generator: torch.Generator
    ) -> tuple[slice, slice, tuple[int, int]]:
        """Draw the window: rows and columns of the source, and the size to resize them to."""
        low, high = self.scale_range
        share, down, right = torch.rand(3, generator=generator).tolist()
        scale = low + (high - low) * share
        (rows, tall), (columns, wide) = self._span(height, scale, down), self._span(width, scale, right)
        return rows, columns, (tall, wide)

    def _span(self, length: int, scale: float, position: float) -> tuple[slice, int]:
        taken = min(length, max(1, round(self.crop_size / scale)))
        start = int(position * (length - taken + 1))
        resized = self.crop_size if taken < length else min(self.crop_size, round(length * scale))
        return slice(start, start + taken), max(2, resized)  # torch's 8-bit resize fails at 1 x 1

    def _padded(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        tall, wide = labels.shape
        if (tall, wide) == (self.crop_size, self.crop_size):
            return pixels.contiguous(), labels.contiguous()
        color = torch.tensor(PADDING_COLOR, dtype=torch.uint8)[:, None, None]
        image = color.repeat(1, self.crop_size, self.crop_size)
        target = labels.new_full((self.crop_size, self.crop_size), IGNORE_INDEX)
        image[:, :tall, :wide] = pixels
        target[:tall, :wide] = labels
        return image, target


def _nearest(target: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (H, W) ids to `size` by picking each new pixel center's old pixel; ids are never mixed."""
    rows, columns = (
        ((torch.arange(new) + 0.5) * (old / new)).long().clamp_(max=old - 1)
        for new, old in zip(size, target.shape, strict=True)
    )
    return target[rows[:, None], columns[None, :]]
