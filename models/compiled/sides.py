"""Hold what pixels are compared with, for either similarity, and compare them by the kernels.

`ProductSide` and `DistanceSide` have the same members. Coordinates of distances are divided by the
temperature and by log 2, those of inner products by the temperature, and the classes they meet by log 2: so
both give logits to base 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..embeddings import LossOptions
from ..gradients import Needed
from ..tiled.chunks import Classes
from ..tiled.cross_entropy import sum_in_order
from ..tiled.dot_tiles import Smoothing
from .grid import CellBlock, Grid
from .lanes import SPARE_ROWS

_LOG2E = 1.4426950408889634


class Lane:
    """Hold the sums of one lane.

    Args:
        like: (C, D), the classes.
        needed: which gradients are wanted.
        smoothing: of the labels, or None.
    """

    def __init__(self, like: Tensor, needed: Needed, smoothing: Smoothing | None = None) -> None:
        self.loss = 0.0
        self.sums = torch.zeros_like(like) if needed.classes else None
        self.columns = like.new_zeros(len(like)) if needed.classes or needed.bias else None
        self.smoothing = None if smoothing is None else smoothing.clone_for_worker()


class Buffers:
    """Hold what a thread works in.

    Args:
        rows: of all classes in a tile.
        like: (C, D), the classes.
    """

    def __init__(self, rows: int, like: Tensor) -> None:
        num_classes, dim = like.shape
        self._tile = like.new_empty(rows * num_classes)
        self._num_classes = num_classes
        # zeros: pixels without label leave there what was there, and it is multiplied by zero
        self._work = like.new_zeros((SPARE_ROWS, num_classes))
        self.work = self._work.numpy()
        self.vectors = like.new_empty((2, dim)).numpy()
        self.of_group = np.zeros((2, 4), np.float32)

    def tile(self, first: int, rows: int) -> Tensor:
        """View rows from `first` on as (rows, C)."""
        start, columns = first * self._num_classes, self._num_classes
        return self._tile[start : start + rows * columns].view(rows, columns)


@dataclass(frozen=True)
class Targets:
    """Hold the targets of maps.

    Attributes:
        ids: (N, H, W) int64.
        ignore_index: target of pixels that take no part.
    """

    ids: np.ndarray
    ignore_index: int


class ProductSide:
    """Compare by inner products.

    Args:
        classes: embeddings, bias and weights.
        options: of the loss.
        needed: which gradients are wanted.
    """

    def __init__(self, classes: Classes, options: LossOptions, needed: Needed) -> None:
        table, self._needed = classes.embeddings, needed
        self.table, self.scale = table, 1 / options.temperature
        self._offsets = (torch.zeros(len(table)) if classes.bias is None else classes.bias) * _LOG2E
        self._smoothing: Smoothing | None = None
        factors = torch.ones(len(table)) if classes.weights is None else classes.weights
        if options.label_smoothing > 0:
            self._smoothing = Smoothing(classes, options.label_smoothing)
            factors = factors * (1 - options.label_smoothing) + self._smoothing.total
        self._factors = factors.contiguous().numpy()
        self._smooth = np.float32(0 if self._smoothing is None else self._smoothing.total)

    def lane(self) -> Lane:
        """Make the sums of a lane."""
        return Lane(self.table, self._needed, self._smoothing)

    def compare_rows(self, pixels: Tensor, target: Tensor, buffers: Buffers, lane: Lane) -> Tensor | None:
        """Add the loss of (p, D) scaled pixels with (p,) targets, and its gradients, to the sums.

        Returns:
            The (p, D) gradient of the scaled pixels, or None where it is not wanted.
        """
        from .product_kernels import rows_of_products

        logits = self._logits_of(pixels, buffers)
        multipliers = pixels.new_empty(len(pixels))
        lane.loss += rows_of_products(
            logits.numpy(), target.numpy(), self._factors, self._smooth, multipliers.numpy()
        )
        gradient = None
        if self._needed.pixels:
            gradient = (logits @ self.table).mul_(multipliers[:, None])
        if lane.sums is not None:
            lane.sums.addmm_(logits.t(), pixels * multipliers[:, None])
        if self._needed.bias and lane.columns is not None:
            lane.columns.addmv_(logits.t(), multipliers)
        if lane.smoothing is not None:
            lane.loss += lane.smoothing.add_pixels(pixels, torch.ones_like(multipliers), gradient)
        return gradient

    def compare_cells(
        self, corners: Tensor, block: CellBlock, grid: Grid, targets: Targets, buffers: Buffers, lane: Lane
    ) -> Tensor | None:
        """Add the loss of a block of cells, given by the (q, D) scaled corners, and its gradients.

        Returns:
            The (q, D) gradient of the scaled corners, or None where it is not wanted.
        """
        from .product_kernels import cells_of_products

        low, weights = self._tiles(corners, buffers)
        coverage = corners.new_zeros(len(corners))
        lane.loss += cells_of_products(
            low.numpy(), low.amax(dim=1).numpy(), targets.ids, targets.ignore_index, block.numbers,
            *grid.arrays, self._factors, self._smooth, weights.numpy(), coverage.numpy(), buffers.work[:6],
            buffers.of_group,
        )  # fmt: skip
        gradient = self._add_corners(corners, weights, lane)
        if lane.smoothing is not None:
            lane.loss += lane.smoothing.add_pixels(corners, coverage, gradient)
        return gradient

    def compare_nearest_of_cells(
        self,
        corners: Tensor,
        block: CellBlock,
        grid: Grid,
        targets: Targets,
        num_negatives: int,
        buffers: Buffers,
        lane: Lane,
    ) -> Tensor | None:
        """Compare a block of cells, as `compare_cells`, with the targets and so many other classes only.

        Takes no notice of class weights and label smoothing.
        """
        from .nearest_kernels import cells_of_nearest

        low, weights = self._tiles(corners, buffers)
        kept = np.empty((3, num_negatives), np.float32)
        ids = np.empty((2, num_negatives), np.int64)
        ids[0] = np.arange(num_negatives)
        lane.loss += cells_of_nearest(
            low.numpy(), targets.ids, targets.ignore_index, block.numbers, *grid.arrays,
            weights.numpy(), buffers.work[:3], kept, ids,
        )  # fmt: skip
        return self._add_corners(corners, weights, lane)

    def _logits_of(self, pixels: Tensor, buffers: Buffers) -> Tensor:
        """Write logits (p, C) of (p, D) scaled pixels into the first tile, without a copy of the table."""
        tile = buffers.tile(0, len(pixels))
        return torch.addmm(self._offsets, pixels, self.table.t(), alpha=_LOG2E, out=tile)

    def _tiles(self, corners: Tensor, buffers: Buffers) -> tuple[Tensor, Tensor]:
        """Return the logits (q, C) of the (q, D) scaled corners, and zeros to add weights to, if wanted."""
        count = len(corners)
        low = self._logits_of(corners, buffers)
        return low, buffers.tile(count, count).zero_() if self._needed.any else buffers.tile(count, 0)

    def _add_corners(self, corners: Tensor, weights: Tensor, lane: Lane) -> Tensor | None:
        """Add what (q, C) weights of corners give to the sums; return the corners' gradient, if wanted."""
        gradient = weights @ self.table if self._needed.pixels else None
        if lane.sums is not None:
            lane.sums.addmm_(weights.t(), corners)
        if self._needed.bias and lane.columns is not None:
            lane.columns.add_(weights.sum(dim=0))
        return gradient

    def class_gradient(self, lanes: Sequence[Lane]) -> Tensor:
        """Return the (C, D) gradient of the class embeddings for the sum of the losses."""
        return sum_in_order(
            [
                lane.sums if lane.smoothing is None else lane.smoothing.subtract_from_classes(lane.sums)
                for lane in lanes
                if lane.sums is not None
            ]
        )

    def bias_gradient(self, lanes: Sequence[Lane]) -> Tensor:
        """Return the (C,) gradient of the bias for the sum of the losses."""
        return sum_in_order(
            [
                lane.columns if lane.smoothing is None else lane.smoothing.subtract_from_bias(lane.columns)
                for lane in lanes
                if lane.columns is not None
            ]
        )


class DistanceSide:
    """Compare by distances, with a bias that needs no gradient.

    Args:
        classes: embeddings, bias and weights.
        options: of the loss.
        needed: which gradients are wanted.
    """

    def __init__(self, classes: Classes, options: LossOptions, needed: Needed) -> None:
        self._needed, self._temperature = needed, options.temperature
        self.scale = _LOG2E / options.temperature
        self.table = (classes.embeddings * self.scale).contiguous()
        self._numbers = self.table.numpy()
        self._norms = self.table.square().sum(dim=1)
        self._largest_norm = np.float32(self._norms.max())
        bias = torch.zeros(len(self.table)) if classes.bias is None else classes.bias * _LOG2E
        self._bias, self._has_bias = bias.contiguous().numpy(), bool(bias.any())
        weights = torch.ones(len(self.table)) if classes.weights is None else classes.weights
        self._factors = weights.contiguous().numpy()

    def lane(self) -> Lane:
        """Make the sums of a lane."""
        return Lane(self.table, self._needed)

    def compare_rows(self, pixels: Tensor, target: Tensor, buffers: Buffers, lane: Lane) -> Tensor | None:
        """Add the loss of rows, see `ProductSide.compare_rows`."""
        from .distance_kernels import rows_of_distances

        weights = self._squares_of(pixels, buffers)
        multipliers, gradient = pixels.new_empty(len(pixels)), torch.empty_like(pixels)
        lane.loss += rows_of_distances(
            weights.numpy(), pixels.numpy(), self._numbers, self._bias, target.numpy(), self._factors,
            self._largest_norm, multipliers.numpy(), gradient.numpy(), _sums_of(lane), buffers.work[6],
        )  # fmt: skip
        if lane.sums is not None and lane.columns is not None:
            lane.sums.addmm_(weights.t(), pixels * multipliers[:, None])
            lane.columns.addmv_(weights.t(), multipliers)
        if not self._needed.pixels:
            return None
        return gradient.add_((weights @ self.table).mul_(multipliers[:, None]))

    def compare_cells(
        self, corners: Tensor, block: CellBlock, grid: Grid, targets: Targets, buffers: Buffers, lane: Lane
    ) -> Tensor | None:
        """Add the loss of a block of cells, see `ProductSide.compare_cells`."""
        from .distance_kernels import cells_of_distances

        count, needed = len(corners), self._needed
        low = self._squares_of(corners, buffers)
        weights = buffers.tile(count, count).zero_() if needed.any else buffers.tile(count, 0)
        gradient = torch.zeros_like(corners)
        lane.loss += cells_of_distances(
            low.numpy(), corners.numpy(), self._numbers, self._bias, self._has_bias,
            targets.ids, targets.ignore_index, block.numbers, *grid.arrays, self._factors, self._largest_norm,
            weights.numpy(), gradient.numpy(), _sums_of(lane), buffers.work, buffers.vectors,
            buffers.of_group,
        )  # fmt: skip
        if lane.sums is not None and lane.columns is not None:
            lane.sums.addmm_(weights.t(), corners)
            lane.columns.add_(weights.sum(dim=0))
        return gradient.addmm_(weights, self.table) if needed.pixels else None

    def class_gradient(self, lanes: Sequence[Lane]) -> Tensor:
        """Return the (C, D) gradient of the class embeddings for the sum of the losses."""
        sums = sum_in_order([lane.sums for lane in lanes if lane.sums is not None])
        columns = sum_in_order([lane.columns for lane in lanes if lane.columns is not None])
        return sums.addcmul_(self.table, columns[:, None], value=-1).div_(self._temperature)

    def _squares_of(self, pixels: Tensor, buffers: Buffers) -> Tensor:
        """Write |w|² - 2 e·w, (p, C), of (p, D) scaled pixels into the first tile."""
        tile = buffers.tile(0, len(pixels))
        return torch.addmm(self._norms, pixels, self.table.t(), alpha=-2, out=tile)

    def bias_gradient(self, lanes: Sequence[Lane]) -> Tensor:
        """Refuse: `models.tiled` computes it."""
        raise NotImplementedError


def _sums_of(lane: Lane) -> np.ndarray:
    return np.empty((0, 0), np.float32) if lane.sums is None else lane.sums.numpy()


def make_side(classes: Classes, options: LossOptions, needed: Needed) -> ProductSide | DistanceSide:
    """Make the side of the options' similarity."""
    return (ProductSide if options.is_dot else DistanceSide)(classes, options, needed)
