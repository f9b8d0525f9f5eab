"""Exact cross-entropy of low-resolution maps at the resolution of their target, in plain torch.

As `models.tiled.cross_entropy`, but embeddings at full resolution, and their gradients, exist for a few pixels at a time.
And where the factor of upsampling is whole, the matrix products are done at low resolution: interpolation is
linear, so the products of interpolated embeddings with the classes are the interpolated products, and what a
tile adds to the gradients is brought to low resolution by the transpose before it meets the classes. At
stride 4 this leaves a tenth of the multiplications. It pays where most pixels of a block are labeled, since
all of them are computed; the labeled pixels elsewhere are compared as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..embeddings import compute_dtype, full_precision
from ..upsampling import CellUpsampling, corners_of_pixels, whole_factor
from .cross_entropy import (
    TileSize,
    compare,
    make_tiles,
    scaled_gradients,
    share_out,
    summed_class_gradients,
)
from .threads import for_each
from .tiles import Tiles

_LEAST_LABELLED = 0.6  # of a block's pixels; with fewer, comparing the labeled ones alone is faster
_MOST_CELLS = 1024  # in a block: what is unlabeled should fill blocks of its own


class ExactCrossEntropyOfMaps(torch.autograd.Function):
    """Mean cross-entropy of the labeled pixels over all classes; `models.losses.exact` has the public function."""

    @staticmethod
    def forward(
        ctx: Any,
        pixel_embeddings: Tensor,
        class_embeddings: Tensor,
        target: Tensor,
        pixels: Tensor | None,
        temperature: float,
        similarity: str,
        ignore_index: int,
        work_bytes: int,
        with_gradients: bool,
    ) -> Tensor:
        """Return the scalar loss and keep both gradients.

        Args:
            ctx: what autograd hands to `backward`.
            pixel_embeddings: (N, D, h, w).
            class_embeddings: (C, D).
            target: (N, H, W) int64, 0..C-1 or `ignore_index`.
            pixels: (B,) int64 in 0..N * H * W - 1, the only ones that take part, all labeled; or None.
            temperature: divides the similarities.
            similarity: "distance" or "cosine".
            ignore_index: target of the pixels left out.
            work_bytes: size of the work buffer.
            with_gradients: False where nothing will be differentiated.
        """
        need_pixel, need_class = (with_gradients and need for need in ctx.needs_input_grad[:2])
        classes = class_embeddings.to(compute_dtype(pixel_embeddings, class_embeddings))
        count = int((target != ignore_index).sum()) if pixels is None else len(pixels)
        workers, size = share_out(count, classes, work_bytes, similarity)
        with full_precision(pixel_embeddings):
            maps = _Maps(pixel_embeddings.to(classes.dtype) / temperature, target, ignore_index)
            blocks: list[_Block] = []
            if pixels is None:
                blocks, pixels = maps.parts(size.rows if size.columns == len(classes) else 0)
            first = make_tiles(classes, None, temperature, similarity, size, need_class)
            tiles = [first, *(first.another() for _ in range(workers - 1))]
            gradients = [torch.zeros_like(maps.padded) for _ in (tiles if need_pixel else ())]
            totals = classes.new_zeros(workers, dtype=torch.float64)

            def work(worker: int, part: list[_Block] | Tensor) -> None:
                own, gradient = tiles[worker], gradients[worker] if need_pixel else None
                if isinstance(part, Tensor):
                    losses = maps.compare_pixels(own, part, size, 1 / count, gradient)
                else:
                    losses = maps.compare_blocks(own, part, 1 / count, gradient)
                totals[worker] += losses.sum(dtype=torch.float64)

            some = pixels.split(size.chunk_rows) if len(pixels) else ()
            for_each([*_groups(blocks, maps.factor, size.chunk_rows), *some], work, workers)
            class_gradient = summed_class_gradients(tiles).to(class_embeddings.dtype) if need_class else None
            pixel_gradient = None
            if need_pixel:
                whole = maps.unpadded(torch.stack(gradients).sum(dim=0)).div_(temperature)
                pixel_gradient = whole.to(pixel_embeddings.dtype)
        ctx.save_for_backward(pixel_gradient, class_gradient)
        return (totals.sum() / max(count, 1)).to(classes.dtype)

    @staticmethod
    def backward(ctx: Any, loss_gradient: Tensor) -> Any:
        """Scale the gradients that the forward pass left."""
        return *scaled_gradients(ctx, loss_gradient), None, None, None, None, None, None, None


@dataclass(frozen=True)
class _Block:
    """A block of cells (`CellUpsampling`) of one image, rows and columns counted from the upper left one."""

    image: int
    rows: slice
    columns: slice
    all_labeled: bool

    @property
    def cells(self) -> tuple[int, int]:
        """How many rows and columns."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    @property
    def pixels(self) -> tuple[int, slice, slice, slice, slice]:
        """Where in the target in cells they are."""
        return self.image, slice(None), slice(None), self.rows, self.columns

    @property
    def corners(self) -> tuple[int, slice, slice]:
        """Where in the padded maps it is interpolated from."""
        rows, columns = (slice(cells.start, cells.stop + 1) for cells in (self.rows, self.columns))
        return self.image, rows, columns


class _Maps:
    """Embeddings at low resolution and the target at full, cut into blocks of cells and single pixels.

    Args:
        scaled: (N, D, h, w), e'.
        target: (N, H, W).
        ignore_index: target of pixels without label.

    Attributes:
        padded: (N, h+2, w+2, D) e', the pixels at the edges repeated once beyond them.
        factor: s, of the upsampling; 1 where it is no whole number.
    """

    def __init__(self, scaled: Tensor, target: Tensor, ignore_index: int) -> None:
        self._low, self._full = scaled.shape[2:], target.shape[1:]
        mode = "replicate" if scaled.numel() > 0 else "constant"
        self.padded = F.pad(scaled, (1, 1, 1, 1), mode=mode).permute(0, 2, 3, 1).contiguous()
        self._target, self._ignore_index = target, ignore_index
        self.factor = whole_factor(self._low, self._full) or 1
        self._before = self.factor - self.factor // 2  # pixels of the first cell beyond the edge
        self._cells: Tensor | None = None
        self._upsamplings: dict[tuple[int, int], CellUpsampling] = {}

    def parts(self, most_pixels: int) -> tuple[list[_Block], Tensor]:
        """Return blocks of as many pixels, worth computing whole, and (B,) int64 labeled pixels outside.

        Args:
            most_pixels: in a block.
        """
        labeled = self._target != self._ignore_index
        factor, height, width = self.factor, self._low[0] + 1, self._low[1] + 1
        most_cells = min(most_pixels // factor**2, _MOST_CELLS)
        if factor == 1 or most_cells == 0 or labeled.numel() == 0:
            return [], labeled.flatten().nonzero()[:, 0]
        self._cells = self._in_cells()
        of_cells = (self._cells != self._ignore_index).sum(dim=(1, 2))  # (N, h+1, w+1) labeled pixels
        columns = _edges(width, min(width, max(1, math.isqrt(most_cells))))
        widest = max(end - first for first, end in pairwise(columns))
        rows = _edges(height, min(height, most_cells // widest))
        sums = F.pad(of_cells.cumsum(dim=1).cumsum(dim=2), (1, 0, 1, 0))
        of_blocks = sums[:, rows][:, :, columns].diff(dim=1).diff(dim=2)  # (N, R, K)
        heights, widths = (torch.tensor(edges, device=sums.device).diff() for edges in (rows, columns))
        pixels = factor**2 * heights[:, None] * widths  # (R, K)
        worth, whole = of_blocks >= _LEAST_LABELLED * pixels, (of_blocks == pixels).tolist()
        blocks = [
            _Block(
                image,
                slice(*rows[row : row + 2]),
                slice(*columns[column : column + 2]),
                whole[image][row][column],
            )
            for image, row, column in worth.nonzero().tolist()
        ]
        outside = (~worth).repeat_interleave(widths * factor, dim=2)
        outside = outside.repeat_interleave(heights * factor, dim=1)  # (N, H+s, W+s)
        inside = (slice(self._before, self._before + side) for side in self._full)
        return blocks, (labeled & outside[:, *inside]).flatten().nonzero()[:, 0]

    def _in_cells(self) -> Tensor:
        """The target as (N, s, s, h+1, w+1), with `ignore_index` beyond the edges."""
        factor, before = self.factor, self._before
        padding = (before, factor - before, before, factor - before)
        padded = F.pad(self._target, padding, value=self._ignore_index)
        cells = padded.view(len(padded), self._low[0] + 1, factor, self._low[1] + 1, factor)
        return cells.permute(0, 2, 4, 1, 3)

    def compare_blocks(
        self, tiles: Tiles, blocks: list[_Block], weight: float, gradient: Tensor | None
    ) -> Tensor:
        """Compare blocks of one size with all classes, and add to the gradient of the padded maps.

        Returns:
            The (p, 1) losses of all their pixels, zero where unlabeled.
        """
        assert self._cells is not None
        cells = blocks[0].cells
        target = torch.cat([self._cells[block.pixels].reshape(-1) for block in blocks])
        unlabeled = None
        if not all(block.all_labeled for block in blocks):
            unlabeled = (target == self._ignore_index)[:, None]
            target.masked_fill_(unlabeled[:, 0], 0)
        upsampling = self._upsamplings.get(cells)
        if upsampling is None:
            upsampling = self._upsamplings[cells] = CellUpsampling(self.factor, cells, self.padded)
        given = torch.cat([self.padded[block.corners].flatten(0, 1) for block in blocks])
        chunk = tiles.chunk(given, target, upsampling, unlabeled)
        rows = len(target) // len(blocks)
        losses, of_given = tiles.add_whole(chunk, rows, weight, gradient is not None)
        if gradient is not None and of_given is not None:
            for block, of_block in zip(blocks, of_given.split(len(given) // len(blocks)), strict=True):
                part = gradient[block.corners]
                part.add_(of_block.view(part.shape))
        return losses

    def compare_pixels(
        self, tiles: Tiles, pixels: Tensor, size: TileSize, weight: float, gradient: Tensor | None
    ) -> Tensor:
        """Compare (B,) labeled pixels with all classes, and add to the gradient of the padded maps.

        Returns:
            Their (B, 1) losses.
        """
        height, width = self._low
        corners, weights = corners_of_pixels(pixels, self._low, self._full, self.padded.dtype)
        lines = corners // width  # of all images
        corners = (lines + 2 * (lines // height) + 1) * (width + 2) + corners % width + 1
        rows = self.padded.flatten(0, 2)
        embeddings = F.embedding_bag(corners, rows, mode="sum", per_sample_weights=weights)
        chunk = tiles.chunk(embeddings, self._target.flatten()[pixels])
        losses, of_pixels = compare(tiles, chunk, size, weight, gradient is not None)
        if gradient is not None and of_pixels is not None:
            of_corners = (weights[:, :, None] * of_pixels[:, None]).flatten(0, 1)
            gradient.flatten(0, 2).index_add_(0, corners.flatten(), of_corners)
        return losses

    def unpadded(self, gradient: Tensor) -> Tensor:
        """(N, h+2, w+2, D) to (N, D, h, w): what belongs to repeated pixels goes to those at the edges."""
        gradient[:, 1] += gradient[:, 0]
        gradient[:, -2] += gradient[:, -1]
        gradient[:, :, 1] += gradient[:, :, 0]
        gradient[:, :, -2] += gradient[:, :, -1]
        return gradient[:, 1:-1, 1:-1].permute(0, 3, 1, 2).contiguous()


def _edges(cells: int, most: int) -> list[int]:
    """Where to cut a row of cells into as few parts as possible, of nearly the same length."""
    parts = -(-cells // most)
    return [cells * part // parts for part in range(parts + 1)]


def _groups(blocks: list[_Block], factor: int, most_pixels: int) -> Iterator[list[_Block]]:
    """Blocks of one size, of at most so many pixels together but at least one block."""
    of_sizes: dict[tuple[int, int], list[_Block]] = {}
    for block in blocks:
        of_sizes.setdefault(block.cells, []).append(block)
    for (rows, columns), same in of_sizes.items():
        number = max(1, most_pixels // (factor**2 * rows * columns))
        for first in range(0, len(same), number):
            yield same[first : first + number]
