"""Find the pairs of classes that are confused most, without a C x C matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_CAPACITY = 2**20  # pairs held between two batches: 16 MiB


@dataclass(frozen=True)
class ConfusedPair:
    """Count the pixels of one class that were predicted as another.

    Attributes:
        actual: train id of the truth.
        predicted: train id of the prediction.
        pixels: how many.
    """

    actual: int
    predicted: int
    pixels: int


class ConfusedPairs:
    """Count confused pairs sparsely: memory is bounded, and exact as long as the pairs met fit into it.

    Args:
        num_classes: C.
        device: of the predictions.
        capacity: pairs held at most. When there are more, the rarest half is forgotten, and `missing` says
            how many pixels a pair's count may lack.
    """

    def __init__(
        self, num_classes: int, device: torch.device | str = "cpu", *, capacity: int = _CAPACITY
    ) -> None:
        self.num_classes, self.capacity = num_classes, capacity
        self._keys = torch.empty(0, dtype=torch.int64, device=device)
        self._pixels = torch.empty(0, dtype=torch.int64, device=device)
        self.missing = 0

    def update(self, prediction: Tensor, target: Tensor, ignore_index: int = -1) -> None:
        """Count one batch.

        Args:
            prediction: train ids, any shape, int64; a negative one belongs to no pair.
            target: train ids or `ignore_index`, same shape.
        """
        wrong = (target != ignore_index) & (prediction != target) & (prediction >= 0)
        keys, pixels = (target[wrong] * self.num_classes + prediction[wrong]).unique(return_counts=True)
        self._keys, place = torch.cat([self._keys, keys]).unique(return_inverse=True)
        both = torch.cat([self._pixels, pixels])
        self._pixels = torch.zeros_like(self._keys).index_add_(0, place, both)
        if len(self._keys) > self.capacity:
            self._forget()

    def _forget(self) -> None:
        order = self._pixels.argsort(descending=True, stable=True)
        half = self.capacity // 2
        self.missing += int(self._pixels[order[half]])
        kept = order[:half].sort().values  # by their ids, as before
        self._keys, self._pixels = self._keys[kept], self._pixels[kept]

    def most_confused(self, number: int) -> list[ConfusedPair]:
        """Return the pairs with the most pixels, the largest first; equal ones by their ids."""
        best = self._pixels.argsort(descending=True, stable=True)[:number]
        found = zip(self._keys[best].tolist(), self._pixels[best].tolist(), strict=True)
        return [
            ConfusedPair(key // self.num_classes, key % self.num_classes, pixels) for key, pixels in found
        ]
