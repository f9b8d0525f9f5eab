"""Tiles of distances, the paper's similarity, and their gradients: see `models.tiled.tiles`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..upsampling import CellUpsampling
from .tiles import PixelChunk, Tiles, between, part_of

_NEAR = 2.0**-12  # share of the squared norms below which a squared distance is formed from differences


class DistanceTiles(Tiles):
    """Logits -|e' - w'|, the paper's, from the matrix product |w'|^2 + (e', |e'|^2) . (-2 w', 1).

    The product blurs squared distances by the rounding of the squared norms. Those that would suffer are
    formed anew from differences; where e' meets w' exactly, the derivative of the distance is zero.
    """

    def __init__(
        self,
        classes: Tensor,
        offsets: Tensor | None,
        temperature: float,
        tile_elements: int,
        need_class_gradient: bool,
    ) -> None:
        super().__init__(classes, offsets, temperature, tile_elements, need_class_gradient)
        self._classes = classes / temperature  # w'
        self._norms = self._classes.square().sum(dim=1)  # (C,)
        self._keys = torch.cat([-2 * self._classes, torch.ones_like(self._norms)[:, None]], dim=1)  # (C, D+1)
        self._largest_norm = float(self._norms.max())
        self._pairs = max(1, tile_elements // (16 * classes.shape[1]))
        self._inverses = torch.empty_like(self._logits)  # 1 / |e' - w'|, zero where it has no direction
        # `sums` are those of p e' / |e' - w'|, and these of p / |e' - w'|, which multiplies w'.
        self._weight_sums = classes.new_zeros(len(classes)) if need_class_gradient else None

    def _own_buffers(self) -> None:
        super()._own_buffers()
        self._inverses = torch.empty_like(self._inverses)
        self._weight_sums = None if self._weight_sums is None else torch.zeros_like(self._weight_sums)

    def chunk(
        self,
        given: Tensor,
        target: Tensor,
        upsampling: CellUpsampling | None = None,
        unlabeled: Tensor | None = None,
    ) -> PixelChunk:
        """As `Tiles.chunk`."""
        scaled = given if upsampling is None else upsampling.spread(given)
        norms = torch.linalg.vecdot(scaled, scaled)[:, None]
        differences = scaled - self._classes[target]
        distances = torch.linalg.vector_norm(differences, dim=1, keepdim=True)
        directions = differences.div_(distances.clamp_min(torch.finfo(distances.dtype).tiny))
        return PixelChunk(
            scaled, given, target[:, None], len(self._classes), distances.neg_(),
            upsampling, unlabeled, norms, directions,
        )  # fmt: skip

    def _fill(self, logits: Tensor, chunk: PixelChunk, start: int, stop: int) -> None:
        assert chunk.norms is not None
        keys, norms = between(self._keys, start, stop).t(), between(self._norms, start, stop)
        if chunk.upsampling is None:
            queries = torch.cat([chunk.given, chunk.norms], dim=1)
            squares = torch.addmm(norms, queries, keys, out=logits)
        else:  # the square of an interpolated vector is not the interpolated square: it is added afterwards
            chunk.upsampling.spread(torch.addmm(norms, chunk.given, keys[:-1]), out=logits)
            squares = logits.add_(chunk.norms)
        norm = self._largest_norm + chunk.norms.max().item()
        chunk.put(squares, start, stop, norm)  # anything that is not near; the exact logit follows below
        least = squares.amin(dim=1)
        inverses = part_of(self._inverses, *squares.shape)
        torch.rsqrt(squares, out=inverses)
        squares.mul_(inverses).neg_()
        if least.amin().item() < _NEAR * norm:
            self._refine(logits, inverses, chunk, start, norm, (least < _NEAR * norm).nonzero()[:, 0])
        chunk.put(logits, start, stop, chunk.target_logits)
        chunk.put(inverses, start, stop, 0.0)  # the targets' directions are in the chunk

    def _refine(
        self, logits: Tensor, inverses: Tensor, chunk: PixelChunk, start: int, norm: float, rows: Tensor
    ) -> None:
        """Form the near ones in some rows anew.

        Within rounding of a class the direction is noise: it fades to zero instead of growing. Where the two
        are the same there is none.
        """
        far = -((_NEAR * norm) ** 0.5)
        steepest = (norm * torch.finfo(logits.dtype).eps) ** -0.5
        for some in rows.split(max(1, len(logits) // 16)):
            # Squares that came out below zero have become NaN.
            of_some, columns = (~(logits[some] <= far)).nonzero(as_tuple=True)
            for near_rows, near_columns in zip(
                some[of_some].split(self._pairs), columns.split(self._pairs), strict=True
            ):
                differences = chunk.scaled[near_rows] - self._classes[start + near_columns]
                distances = torch.linalg.vector_norm(differences, dim=1)
                logits[near_rows, near_columns] = -distances
                slopes = distances.reciprocal().clamp_max_(steepest)
                inverses[near_rows, near_columns] = slopes.masked_fill_(distances == 0, 0)

    def _logits_of(self, chunk: PixelChunk, classes: Tensor) -> Tensor:
        differences = chunk.scaled - self._classes[classes[:, 0]]
        return torch.linalg.vector_norm(differences, dim=1, keepdim=True).neg_()

    def _weights(self, probabilities: Tensor, chunk: PixelChunk, of_targets: Tensor) -> Tensor:
        """p / |e' - w'|, without the targets."""
        return probabilities.mul_(part_of(self._inverses, *probabilities.shape))

    def _note(self, weights: Tensor, low: Tensor, toward: Tensor, weight: float) -> None:
        torch.sum(weights, dim=1, keepdim=True, out=toward)
        if self._weight_sums is not None:
            self._weight_sums.add_(low.sum(dim=0), alpha=weight)

    def _finish(
        self, chunk: PixelChunk, of_targets: Tensor, toward: Tensor, gradient: Tensor | None, weight: float
    ) -> None:
        # The targets are the nearest ones, where products would lose the direction.
        assert chunk.target_directions is not None
        missing = (1 - of_targets).mul_(weight)
        if chunk.unlabeled is not None:
            missing.masked_fill_(chunk.unlabeled, 0)
        slopes = missing * chunk.target_directions
        if gradient is not None:
            gradient += chunk.gathered(torch.addcmul(slopes, toward, chunk.scaled, value=-weight))
        if self.sums is not None:
            self.sums.index_add_(0, chunk.targets[:, 0], slopes, alpha=-1)

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
        weights = shares.mul_(part_of(self._inverses, *shares.shape)).mul_(scale)
        assert chunk.target_directions is not None
        slopes = missing * chunk.target_directions * chunk.has_target_in(start, stop)
        if self.sums is not None and self._weight_sums is not None:
            self.sums[start:stop].addmm_(weights.t(), chunk.scaled)
            self._weight_sums[start:stop] += weights.sum(dim=0)
            self.sums.index_add_(0, chunk.targets[:, 0], slopes, alpha=-1)
        if not need_gradient:
            return None
        toward = weights.sum(dim=1, keepdim=True)
        return slopes.addcmul_(toward, chunk.scaled, value=-1).addmm_(weights, self._classes[start:stop])

    def class_gradient(self) -> Tensor:
        """As `Tiles.class_gradient`."""
        assert self.sums is not None
        assert self._weight_sums is not None
        gradient = self.sums - self._classes * self._weight_sums[:, None]
        return gradient.div_(self.temperature)
