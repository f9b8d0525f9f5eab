"""Compute tiles of distances, the paper's similarity, and their gradients: see `models.tiled.tiles`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..embeddings import LossOptions
from ..upsampling import CellUpsampling
from .chunks import ClassBlock, Classes, PixelChunk
from .tiles import Tiles, part_of

_NEAR = 2.0**-12  # fraction of the squared norms below which a squared distance is formed from differences


class DistanceTiles(Tiles):
    """Compute logits -|e' - w'|, the paper's, from the product |w'|^2 + (e', |e'|^2) . (-2 w', 1).

    The product loses digits of small squared distances to the rounding of the squared norms. Those are
    recomputed from differences. Where e' equals w' exactly, the derivative of the distance is zero.
    """

    def __init__(
        self,
        classes: Classes,
        options: LossOptions,
        tile_elements: int,
        need_class_gradient: bool,
        need_bias_gradient: bool,
    ) -> None:
        super().__init__(classes, options, tile_elements, need_class_gradient, need_bias_gradient)
        self._classes = classes.embeddings / options.temperature  # w'
        self._norms = self._classes.square().sum(dim=1)  # (C,)
        self._keys = torch.cat([-2 * self._classes, torch.ones_like(self._norms)[:, None]], dim=1)  # (C, D+1)
        self._largest_norm = float(self._norms.max())
        self._max_pairs = max(1, tile_elements // (16 * self._classes.shape[1]))
        self._inverses = torch.empty_like(self._logits)  # 1 / |e' - w'|, zero where the distance is zero
        # Class gradient = sums - w' * weight_sums, with weight = p / distance.
        self._weight_sums = torch.zeros_like(self._norms) if need_class_gradient else None

    def _own_buffers(self) -> None:
        super()._own_buffers()
        self._inverses = torch.empty_like(self._inverses)
        self._weight_sums = None if self._weight_sums is None else torch.zeros_like(self._weight_sums)

    def chunk(
        self,
        embeddings: Tensor,
        target: Tensor,
        upsampling: CellUpsampling | None = None,
        unlabeled: Tensor | None = None,
    ) -> PixelChunk:
        """Prepare pixels, see `Tiles.chunk`."""
        scaled = embeddings if upsampling is None else upsampling.upsample(embeddings)
        norms = torch.linalg.vecdot(scaled, scaled)[:, None]
        differences = scaled - self._classes[target]
        distances = torch.linalg.vector_norm(differences, dim=1, keepdim=True)
        directions = differences.div_(distances.clamp_min(torch.finfo(distances.dtype).tiny))
        targets = target[:, None]
        logits = self._bias_of(distances.neg_(), targets)
        return PixelChunk(
            scaled, embeddings, targets, len(self._classes), logits,
            upsampling, unlabeled, self._weights_of(targets), norms, directions,
        )  # fmt: skip

    def _fill(self, logits: Tensor, chunk: PixelChunk, block: ClassBlock) -> None:
        assert chunk.norms is not None
        keys, norms = block.of(self._keys).t(), block.of(self._norms)
        # 1. Squared distances by one matrix product, written into the buffer of the logits.
        if chunk.upsampling is None:
            queries = torch.cat([chunk.low_res_embeddings, chunk.norms], dim=1)
            squares = torch.addmm(norms, queries, keys, out=logits)
        else:  # |e'|^2 is not linear in e', so it is added after the interpolation
            chunk.upsampling.upsample(torch.addmm(norms, chunk.low_res_embeddings, keys[:-1]), out=logits)
            squares = logits.add_(chunk.norms)
        # 2. Keep the targets out of the search for near pairs: any large value, overwritten in step 5.
        norm = self._largest_norm + chunk.norms.max().item()
        chunk.set_targets(squares, block, norm)
        smallest = squares.amin(dim=1)
        # 3. 1 / distance, which the gradients need, and the logit -square / distance, in place.
        inverses = part_of(self._inverses, *squares.shape)
        torch.rsqrt(squares, out=inverses)
        squares.mul_(inverses).neg_()
        # 4. Pairs so near that the product lost digits.
        if smallest.amin().item() < _NEAR * norm:
            self._refine(logits, inverses, chunk, block, norm, (smallest < _NEAR * norm).nonzero()[:, 0])
        if self._bias is not None:
            logits += block.of(self._bias)
        # 5. The targets: exact logits, and no weight, since their directions are in the chunk.
        chunk.set_targets(logits, block, chunk.target_logits)
        chunk.set_targets(inverses, block, 0.0)

    def _refine(
        self,
        logits: Tensor,
        inverses: Tensor,
        chunk: PixelChunk,
        block: ClassBlock,
        norm: float,
        rows: Tensor,
    ) -> None:
        """Recompute the near pairs of some rows from differences, few pairs at a time.

        Within rounding of a class the direction is noise, so 1 / distance is bounded there and the gradient
        fades to zero. At distance zero it is zero.
        """
        far = -((_NEAR * norm) ** 0.5)  # logits above this are near
        max_inverse = (norm * torch.finfo(logits.dtype).eps) ** -0.5
        for some_rows in rows.split(max(1, len(logits) // 16)):
            # Find the near pairs. "Not far" also finds NaN, the root of a square that came out below zero.
            row_indices, columns = (~(logits[some_rows] <= far)).nonzero(as_tuple=True)
            for pair_rows, pair_columns in zip(
                some_rows[row_indices].split(self._max_pairs), columns.split(self._max_pairs), strict=True
            ):
                # Distances from differences (pairs, D), and their bounded inverses.
                differences = chunk.scaled[pair_rows] - self._classes[block.start + pair_columns]
                distances = torch.linalg.vector_norm(differences, dim=1)
                logits[pair_rows, pair_columns] = -distances
                bounded = distances.reciprocal().clamp_max_(max_inverse)
                inverses[pair_rows, pair_columns] = bounded.masked_fill_(distances == 0, 0)

    def _logits_of(self, chunk: PixelChunk, classes: Tensor) -> Tensor:
        differences = chunk.scaled - self._classes[classes[:, 0]]
        distances = torch.linalg.vector_norm(differences, dim=1, keepdim=True)
        return self._bias_of(distances.neg_(), classes)

    def _accumulate_probs(self, probs: Tensor, chunk: PixelChunk, weight: float) -> None:
        if self.bias_sums is not None:
            of_pixels = chunk.weighted(torch.ones_like(chunk.target_logits))[:, 0]
            self.bias_sums.addmv_(probs.t(), of_pixels, alpha=weight)

    def _weights(self, probs: Tensor, chunk: PixelChunk, target_probs: Tensor) -> Tensor:
        """Compute p / |e' - w'|, zero for the targets, times the class weights."""
        weights = probs.mul_(part_of(self._inverses, *probs.shape))
        return weights if chunk.class_weights is None else weights.mul_(chunk.class_weights)

    def _accumulate_tile(
        self, weights: Tensor, low_res_weights: Tensor, weight_row_sums: Tensor, weight: float
    ) -> None:
        torch.sum(weights, dim=1, keepdim=True, out=weight_row_sums)
        if self._weight_sums is not None:
            self._weight_sums.add_(low_res_weights.sum(dim=0), alpha=weight)

    def _finish_chunk(
        self,
        chunk: PixelChunk,
        target_probs: Tensor,
        weight_row_sums: Tensor,
        gradient: Tensor | None,
        weight: float,
    ) -> None:
        # Targets are the nearest classes, for which a matrix product would lose the direction.
        assert chunk.target_directions is not None
        one_minus_p_target = chunk.weighted((1 - target_probs).mul_(weight))
        grads = one_minus_p_target * chunk.target_directions
        if gradient is not None:
            gradient += chunk.upsample_transpose(
                torch.addcmul(grads, weight_row_sums, chunk.scaled, value=-weight)
            )
        if self.sums is not None:
            self.sums.index_add_(0, chunk.targets[:, 0], grads, alpha=-1)

    def finish(self, chunk: PixelChunk, losses: Tensor, gradient: Tensor | None, weight: float) -> None:
        """Complete the gradient of the bias: p, minus one for the targets."""
        if self.bias_sums is not None:
            of_pixels = chunk.weighted(torch.full_like(chunk.target_logits, weight))[:, 0]
            self.bias_sums.index_add_(0, chunk.targets[:, 0], of_pixels, alpha=-1)

    def add_gradients(
        self,
        probs: Tensor,
        chunk: PixelChunk,
        block: ClassBlock,
        scale: Tensor,
        one_minus_p_target: Tensor,
        need_gradient: bool,
        weight: float,
    ) -> Tensor | None:
        """Add a tile's gradients, see `Tiles.add_gradients`."""
        if self.bias_sums is not None:
            block.of(self.bias_sums).addmv_(probs.t(), scale[:, 0])
        weights = probs.mul_(part_of(self._inverses, *probs.shape)).mul_(scale)
        assert chunk.target_directions is not None
        grads = one_minus_p_target * chunk.target_directions * chunk.has_target_in(block)
        if self.sums is not None and self._weight_sums is not None:
            block.of(self.sums).addmm_(weights.t(), chunk.scaled)
            block.of(self._weight_sums).add_(weights.sum(dim=0))
            self.sums.index_add_(0, chunk.targets[:, 0], grads, alpha=-1)
        if not need_gradient:
            return None
        weight_row_sums = weights.sum(dim=1, keepdim=True)
        grads.addcmul_(weight_row_sums, chunk.scaled, value=-1)
        return grads.addmm_(weights, block.of(self._classes))

    def class_gradient(self) -> Tensor:
        """Return the (C, D) gradient of the class embeddings."""
        assert self.sums is not None
        assert self._weight_sums is not None
        gradient = self.sums - self._classes * self._weight_sums[:, None]
        return gradient.div_(self.temperature)
