"""Define what a dataset yields and what the model is given at a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # the report needs IGNORE_INDEX, and no torch
    from torch import Tensor

IGNORE_INDEX = -1
"""Train id of unlabeled pixels: below all classes, since every number from 0 on may be a class."""


class Sample(NamedTuple):
    """One image with its target.

    Args:
        image: (3, H, W) uint8, RGB.
        target: (H, W) int64 train ids 0..C-1, or IGNORE_INDEX.
        image_id: COCO's.
    """

    image: Tensor
    target: Tensor
    image_id: int


@dataclass(frozen=True)
class Batch:
    """What the model is given at a step.

    Args:
        images: (N, 3, H, W) uint8; become floats in [0, 1] only on the device.
        target: (N, H, W) int64 train ids, `IGNORE_INDEX` where unlabeled.
        image_ids: N ids.
    """

    images: Tensor
    target: Tensor
    image_ids: tuple[int, ...]

    def pin_memory(self) -> Batch:
        """Return a copy in pinned memory, for torch's loader: the GPU fetches it while it computes."""
        return Batch(self.images.pin_memory(), self.target.pin_memory(), self.image_ids)
