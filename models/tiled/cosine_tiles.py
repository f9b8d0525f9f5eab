"""Tiles of inner products, and what they add to the gradients of cross-entropy: see `models.tiled.tiles`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..upsampling import CellUpsampling
from .tiles import PixelChunk, Tiles


class CosineTiles(Tiles):
    """Logits e'.w: each tile is one matrix product, and so is its share of each gradient."""

    def chunk(
        self,
        given: Tensor,
        target: Tensor,
        upsampling: CellUpsampling | None = None,
        unlabeled: Tensor | None = None,
    ) -> PixelChunk:
        """As `Tiles.chunk`."""
        scaled = given if upsampling is None else upsampling.spread(given)
        logits = torch.linalg.vecdot(scaled, self._classes[target])[:, None]
        return PixelChunk(
            scaled, given, target[:, None], len(self._classes), logits, upsampling, unlabeled
        )  # fmt: skip

    def _fill(self, logits: Tensor, chunk: PixelChunk, start: int, stop: int) -> None:
        if chunk.upsampling is None:
            torch.mm(chunk.given, self._classes[start:stop].t(), out=logits)
        else:
            chunk.upsampling.spread(chunk.given @ self._classes[start:stop].t(), out=logits)
        chunk.put(logits, start, stop, chunk.target_logits)

    def _logits_of(self, chunk: PixelChunk, classes: Tensor) -> Tensor:
        return torch.linalg.vecdot(chunk.scaled, self._classes[classes[:, 0]])[:, None]

    def _weights(self, probabilities: Tensor, chunk: PixelChunk, of_targets: Tensor) -> Tensor:
        return probabilities.scatter_(1, chunk.targets, of_targets - 1)

    def add_gradients(
        self,
        shares: Tensor,
        chunk: PixelChunk,
        start: int,
        stop: int,
        scale: Tensor,
        missing: Tensor,
        need_gradient: bool,
    ) -> Tensor | None:
        """As `Tiles.add_gradients`."""
        chunk.put(shares, start, stop, -missing / scale)
        if self.sums is not None:
            self.sums[start:stop].addmm_(shares.t(), scale * chunk.scaled)
        return scale * (shares @ self._classes[start:stop]) if need_gradient else None

    def class_gradient(self) -> Tensor:
        """As `Tiles.class_gradient`."""
        assert self.sums is not None
        return self.sums
