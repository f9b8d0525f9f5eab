"""Exact cross-entropy of low-resolution maps at the resolution of their target, in plain torch.

As `models.exact`, but embeddings at full resolution, and their gradients, exist for a few pixels at a time.
And where the factor of upsampling is whole, the matrix products are done at low resolution: interpolation is
linear, so the products of interpolated embeddings with the classes are the interpolated products, and what a
tile adds to the gradients is brought to low resolution by the transpose before it meets the classes. At
stride 4 this leaves a tenth of the multiplications. It pays where most pixels of a block are labelled, since
all of them are computed; the labelled pixels elsewhere are compared as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.cosine_tiles import CosineTiles
from models.distance_tiles import DistanceTiles
from models.exact import (
    compare,
    make_tiles,
    scaled_gradients,
    share_out,
    summed_class_gradients,
)
from models.nearest import compute_dtype, full_precision
from models.threads import for_each
from models.tiles import PixelChunk
from models.upsampling import CellUpsampling, corners_of_pixels, whole_factor

_LEAST_LABELLED = 0.6  # of a block's pixels; with fewer, comparing the labelled ones alone is faster
_MOST_CELLS = 1024  # in a block: what is unlabelled should fill blocks of its own


class ExactCrossEntropyOfMaps(torch.autograd.Function):
    """Mean cross-entropy of the labelled pixels over all classes; `models.losses` has the public function."""

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
            pixels: (B,) int64 in 0..N * H * W - 1, the only ones that take part, all labelled; or None.
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

            def work(worker: int, part: _Block | Tensor) -> None:
                own = tiles[worker]
                place = maps.block(own, part) if isinstance(part, _Block) else maps.pixels(own, part)
                losses, of_given = compare(own, place.chunk, size, 1 / count, need_pixel)
                totals[worker] += losses.sum(dtype=torch.float64)
                if of_given is not None:
                    place.add(gradients[worker], of_given)

            some = pixels.split(size.chunk_rows) if len(pixels) else ()
            for_each([*blocks, *some], work, workers)
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
    all_labelled: bool

    @property
    def cells(self) -> tuple[int, int]:
        """How many rows and columns."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    @property
    def corners(self) -> tuple[int, slice, slice]:
        """Where in the padded maps it is interpolated from."""
        rows, columns = (slice(cells.start, cells.stop + 1) for cells in (self.rows, self.columns))
        return self.image, rows, columns


@dataclass(frozen=True)
class _Place:
    """Some pixels, prepared, and where in the (N, h+2, w+2, D) padded maps they come from.

    Attributes:
        chunk: the pixels.
        corners: the slice of the maps they are interpolated from; or of each pixel the (p, 4) rows.
        weights: (p, 4) of those rows.
    """

    chunk: PixelChunk
    corners: tuple[int, slice, slice] | Tensor
    weights: Tensor | None = None

    def add(self, gradient: Tensor, of_given: Tensor) -> None:
        """Add the gradient of what the chunk was given to that of the padded maps."""
        if isinstance(self.corners, Tensor):
            assert self.weights is not None
            of_corners = (self.weights[:, :, None] * of_given[:, None]).flatten(0, 1)
            gradient.view(-1, gradient.shape[-1]).index_add_(0, self.corners.flatten(), of_corners)
        else:
            part = gradient[self.corners]
            part += of_given.view(part.shape)


class _Maps:
    """Embeddings at low resolution and the target at full, cut into blocks of cells and single pixels.

    Args:
        scaled: (N, D, h, w), e'.
        target: (N, H, W).
        ignore_index: target of pixels without label.

    Attributes:
        padded: (N, h+2, w+2, D) e', the pixels at the edges repeated once beyond them.
    """

    def __init__(self, scaled: Tensor, target: Tensor, ignore_index: int) -> None:
        self._low, self._full = scaled.shape[2:], target.shape[1:]
        mode = "replicate" if scaled.numel() > 0 else "constant"
        self.padded = F.pad(scaled, (1, 1, 1, 1), mode=mode).permute(0, 2, 3, 1).contiguous()
        self._target, self._ignore_index = target, ignore_index
        self._factor = whole_factor(self._low, self._full) or 1
        self._before = self._factor - self._factor // 2  # pixels of the first cell beyond the edge
        self._cells: Tensor | None = None
        self._upsamplings: dict[tuple[int, int], CellUpsampling] = {}

    def parts(self, most_pixels: int) -> tuple[list[_Block], Tensor]:
        """Return blocks of as many pixels, worth computing whole, and (B,) int64 labelled pixels outside.

        Args:
            most_pixels: in a block.
        """
        labelled = self._target != self._ignore_index
        factor, height, width = self._factor, self._low[0] + 1, self._low[1] + 1
        most_cells = min(most_pixels // factor**2, _MOST_CELLS)
        if factor == 1 or most_cells == 0 or labelled.numel() == 0:
            return [], labelled.flatten().nonzero()[:, 0]
        self._cells = self._in_cells()
        of_cells = (self._cells != self._ignore_index).sum(dim=(1, 2))  # (N, h+1, w+1) labelled pixels
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
        return blocks, (labelled & outside[:, *inside]).flatten().nonzero()[:, 0]

    def _in_cells(self) -> Tensor:
        """The target as (N, s, s, h+1, w+1), with `ignore_index` beyond the edges."""
        factor, before = self._factor, self._before
        padding = (before, factor - before, before, factor - before)
        padded = F.pad(self._target, padding, value=self._ignore_index)
        cells = padded.view(len(padded), self._low[0] + 1, factor, self._low[1] + 1, factor)
        return cells.permute(0, 2, 4, 1, 3)

    def block(self, tiles: DistanceTiles | CosineTiles, block: _Block) -> _Place:
        """Prepare a block."""
        assert self._cells is not None
        target = self._cells[block.image, :, :, block.rows, block.columns].flatten()
        unlabelled = None
        if not block.all_labelled:
            unlabelled = (target == self._ignore_index).nonzero()[:, 0]
            target.index_fill_(0, unlabelled, 0)
        upsampling = self._upsamplings.get(block.cells)
        if upsampling is None:
            upsampling = CellUpsampling(self._factor, block.cells, self.padded)
            self._upsamplings[block.cells] = upsampling
        given = self.padded[block.corners].flatten(0, 1)
        return _Place(tiles.chunk(given, target, upsampling, unlabelled), block.corners)

    def pixels(self, tiles: DistanceTiles | CosineTiles, pixels: Tensor) -> _Place:
        """Prepare (B,) labelled pixels."""
        height, width = self._low
        corners, weights = corners_of_pixels(pixels, self._low, self._full, self.padded.dtype)
        lines = corners // width  # of all images
        corners = (lines + 2 * (lines // height) + 1) * (width + 2) + corners % width + 1
        rows = self.padded.flatten(0, 2)
        given = F.embedding_bag(corners, rows, mode="sum", per_sample_weights=weights)
        return _Place(tiles.chunk(given, self._target.flatten()[pixels]), corners, weights)

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
