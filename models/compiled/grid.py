"""Cut maps into cells, the parts of the picture between four low-resolution pixels, at any upsampling."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..tiled.cross_entropy_of_maps import edges_of
from ..upsampling import corners_of_pixels, neighbors


@dataclass(frozen=True)
class CellBlock:
    """Name a block of cells of one image, counted from the upper left one."""

    image: int
    rows: slice
    columns: slice

    @cached_property
    def numbers(self) -> np.ndarray:
        """Return image, first row, first column, rows and columns."""
        rows, columns = self.rows, self.columns
        return np.array(
            [self.image, rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start]
        )

    @property
    def corners(self) -> tuple[int, slice, slice]:
        """Index the pixels of the padded maps that the block is interpolated from."""
        rows, columns = (slice(cells.start, cells.stop + 1) for cells in (self.rows, self.columns))
        return self.image, rows, columns


class Grid:
    """Say which pixels lie in which cell, and how they are interpolated.

    A cell for each low-resolution pixel begins there. Those of the last row and column have no corners
    beyond, so the maps are padded by one row and column, with those at the edge repeated.

    Args:
        low_res: (h, w).
        full_res: (H, W).
        align_corners: as in `torch.nn.functional.interpolate`.
    """

    def __init__(self, low_res: Sequence[int], full_res: Sequence[int], align_corners: bool) -> None:
        self.low_res, self.full_res = tuple(low_res), tuple(full_res)
        self._align_corners = align_corners
        starts, weights = [], []
        for low, full in zip(low_res, full_res, strict=True):
            positions = torch.arange(full)
            before, _, weight = neighbors(positions, low, full, torch.float32, align_corners)
            starts.append(torch.searchsorted(before, torch.arange(low + 1)).numpy())
            weights.append(weight.numpy())
        self.arrays = (*starts, *weights)
        """Row and column starts (h + 1,), (w + 1,) int64; weights of lower and right corners (H,), (W,)."""

    @property
    def enlarges(self) -> bool:
        """Tell whether cells have several pixels, so that products at low resolution pay."""
        pixels, low = math.prod(self.full_res), math.prod(self.low_res)
        return pixels >= 2 * low > 0

    def pad(self, maps: Tensor) -> Tensor:
        """Turn (N, D, h, w) into (N, h+1, w+1, D)."""
        return F.pad(maps, (0, 1, 0, 1), mode="replicate").permute(0, 2, 3, 1).contiguous()

    def unpad(self, gradient: Tensor) -> Tensor:
        """Turn (N, h+1, w+1, D) into (N, D, h, w): add the gradient of repeated pixels to the edge pixels."""
        gradient[:, -2] += gradient[:, -1]
        gradient[:, :, -2] += gradient[:, :, -1]
        return gradient[:, :-1, :-1].permute(0, 3, 1, 2).contiguous()

    def corners_of(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Find the rows of the padded maps that pixels are interpolated from, and their weights.

        Args:
            pixels: (p,) int64 in 0..N * H * W - 1.

        Returns:
            (p, 4) int64, rows of padded maps as (N * (h+1) * (w+1), D), and (p, 4).
        """
        width = self.low_res[1]
        corners, weights = corners_of_pixels(
            pixels, self.low_res, self.full_res, torch.float32, align_corners=self._align_corners
        )
        lines = corners // width  # of all images
        lines += lines // self.low_res[0]  # of the padded ones
        return lines * (width + 1) + corners % width, weights

    def blocks(self, images: int, max_corners: int, fewest: int) -> tuple[list[int], list[int]]:
        """Cut the rows and the columns of cells into parts of nearly equal size, and return the cuts.

        Args:
            images: N.
            max_corners: of a block, at least 4.
            fewest: blocks wanted where there are as many cells.
        """
        height, width = self.low_res
        side = max(1, math.isqrt(max_corners) - 1)
        side = max(1, min(side, math.isqrt(max(1, images * height * width // fewest))))
        columns = edges_of(width, side)
        widest = max(stop - start for start, stop in pairwise(columns))
        return edges_of(height, max(1, min(max_corners // (widest + 1) - 1, side))), columns


def blocks_of(images: int, rows: Sequence[int], columns: Sequence[int]) -> Iterator[CellBlock]:
    """Name all blocks between the cuts."""
    for image in range(images):
        for row in pairwise(rows):
            for column in pairwise(columns):
                yield CellBlock(image, slice(*row), slice(*column))
