"""Compute tiles of inner products and their gradients: see `models.tiled.tiles`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..upsampling import CellUpsampling
from .tiles import ClassBlock, PixelChunk, Tiles


class CosineTiles(Tiles):
    """Compute logits e'.w: a tile is one matrix product, and so is its contribution to each gradient."""

    def chunk(
        self,
        embeddings: Tensor,
        target: Tensor,
        upsampling: CellUpsampling | None = None,
        unlabeled: Tensor | None = None,
    ) -> PixelChunk:
        """Prepare pixels, see `Tiles.chunk`."""
        scaled = embeddings if upsampling is None else upsampling.upsample(embeddings)
        logits = torch.linalg.vecdot(scaled, self._classes[target])[:, None]
        return PixelChunk(
            scaled, embeddings, target[:, None], len(self._classes), logits, upsampling, unlabeled
        )

    def _fill(self, logits: Tensor, chunk: PixelChunk, block: ClassBlock) -> None:
        classes = block.of(self._classes).t()
        if chunk.upsampling is None:
            torch.mm(chunk.low_res_embeddings, classes, out=logits)
        else:
            chunk.upsampling.upsample(chunk.low_res_embeddings @ classes, out=logits)
        chunk.set_targets(logits, block, chunk.target_logits)

    def _logits_of(self, chunk: PixelChunk, classes: Tensor) -> Tensor:
        return torch.linalg.vecdot(chunk.scaled, self._classes[classes[:, 0]])[:, None]

    def _weights(self, probs: Tensor, chunk: PixelChunk, target_probs: Tensor) -> Tensor:
        """Compute p, minus one for the targets."""
        return probs.scatter_(1, chunk.targets, target_probs - 1)

    def add_gradients(
        self,
        probs: Tensor,
        chunk: PixelChunk,
        block: ClassBlock,
        scale: Tensor,
        one_minus_p_target: Tensor,
        need_gradient: bool,
    ) -> Tensor | None:
        """Add a tile's gradients, see `Tiles.add_gradients`."""
        chunk.set_targets(probs, block, -one_minus_p_target / scale)
        if self.sums is not None:
            block.of(self.sums).addmm_(probs.t(), scale * chunk.scaled)
        return scale * (probs @ block.of(self._classes)) if need_gradient else None

    def class_gradient(self) -> Tensor:
        """Return the (C, D) gradient of the class embeddings."""
        assert self.sums is not None
        return self.sums
