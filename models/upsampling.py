"""Upsample maps bilinearly to rows, one per pixel: of all pixels, of some, or of a block.

The values are those of `F.interpolate(mode="bilinear", align_corners=False)`, as in the paper's code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_UPSAMPLED = 2**31 - 1
"""Numbers that torch's interpolation writes at once on a GPU: beyond, it raises for channels last."""


def full_resolution_rows(output: Tensor, size: Sequence[int]) -> Tensor:
    """Upsample (N, K, h, w) to `size` (H, W), as rows (N * H * W, K), float32 (float64 for float64).

    With the channels last in memory the rows are a view of the upsampled map, without a copy. torch's losses
    of rows are several times faster on the CPU than those of maps, and deterministic on the GPU.
    """
    channels_last = _at_least_float32(output).contiguous(memory_format=torch.channels_last)
    of_an_image = max(1, output.shape[1] * size[0] * size[1])
    rows = [
        F.interpolate(images, size=tuple(size), mode="bilinear", align_corners=False)
        .permute(0, 2, 3, 1)
        .reshape(-1, output.shape[1])
        for images in channels_last.split(max(1, MOST_UPSAMPLED // of_an_image))
    ]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def rows_of_pixels(
    output: Tensor, size: Sequence[int], pixels: Tensor, *, align_corners: bool = False
) -> Tensor:
    """Compute the rows `full_resolution_rows(output, size)[pixels]`, without making the others.

    Args:
        output: (N, K, h, w).
        size: (H, W) to which it is upsampled.
        pixels: (B,) int64 in 0..N * H * W - 1, in any order.
        align_corners: as in `torch.nn.functional.interpolate`.

    Returns:
        (B, K) float32 (float64 for float64).
    """
    images, channels, *low_res = output.shape
    rows = _at_least_float32(output).permute(0, 2, 3, 1).reshape(images * low_res[0] * low_res[1], channels)
    corners, weights = corners_of_pixels(pixels, low_res, size, rows.dtype, align_corners=align_corners)
    return F.embedding_bag(corners, rows, mode="sum", per_sample_weights=weights)


def corners_of_pixels(
    pixels: Tensor,
    low_res: Sequence[int],
    full_res: Sequence[int],
    dtype: torch.dtype,
    *,
    align_corners: bool = False,
) -> tuple[Tensor, Tensor]:
    """Find the four low-resolution pixels that each pixel is interpolated from, and their weights.

    Args:
        pixels: (B,) int64 in 0..N * H * W - 1.
        low_res: (h, w).
        full_res: (H, W).
        dtype: of the weights.
        align_corners: as in `torch.nn.functional.interpolate`.

    Returns:
        (B, 4) int64 in 0..N * h * w - 1, of which some may be the same, and their (B, 4) weights.
    """
    (low_height, low_width), (height, width) = low_res, full_res
    above, below, down = neighbors(pixels // width % height, low_height, height, dtype, align_corners)
    left, right, across = neighbors(pixels % width, low_width, width, dtype, align_corners)
    first = pixels // (height * width) * (low_height * low_width)
    upper, lower = first + above * low_width, first + below * low_width
    corners = torch.stack([upper + left, upper + right, lower + left, lower + right], dim=1)
    weights = torch.stack(
        [(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across], dim=1
    )
    return corners, weights


class CellUpsampling:
    """Upsample blocks of cells bilinearly by a whole factor s, and apply the transpose.

    A cell is the square between four pixels at low resolution; s x s pixels at full resolution lie in it. A
    block of r x c cells is interpolated from (r+1) x (c+1) pixels. With its edge pixels repeated once, a map
    of h x w has (h+1) x (w+1) cells. The first cell begins s - s // 2 pixels left of and above the image.

    The s s r c pixels at full resolution are ordered by their place in the cell: first the upper left pixel
    of every cell, then the next one of every cell. So each step is one long operation.

    Args:
        factor: s.
        cells: (r, c).
        like: its dtype and device are those of the values.
    """

    def __init__(self, factor: int, cells: tuple[int, int], like: Tensor) -> None:
        self._factor, (self._rows, self._columns) = factor, cells
        places = torch.arange(factor, dtype=like.dtype, device=like.device) + (factor // 2 + 0.5)
        right = places / factor - 0.5  # (s,) weight of the right or lower pixel
        self._weights = right[:, None, None, None]
        both = torch.stack([1 - right, right])
        # (4, s s): upper left, upper right, lower left, lower right
        self._corner_weights = torch.kron(both, both)

    def upsample(self, values: Tensor, out: Tensor | None = None) -> Tensor:
        """Interpolate ((r+1) (c+1), K), in the order of the image, to (s s r c, K); or several blocks."""
        factor, rows, columns, width = self._factor, self._rows, self._columns, values.shape[1]
        corners = values.view(-1, 1, rows + 1, columns + 1, width)  # (T, 1, r+1, c+1, K)
        down = torch.lerp(corners[:, :, :-1], corners[:, :, 1:], self._weights)
        down = down[:, :, None]  # (T, s, 1, r, c+1, K)
        across = values.new_empty(len(corners) * factor**2 * rows * columns, width) if out is None else out
        places = across.view(-1, factor, factor, rows, columns, width)
        torch.lerp(down[..., :-1, :], down[..., 1:, :], self._weights, out=places)
        return across

    def upsample_transpose(self, values: Tensor) -> Tensor:
        """Scatter-add each pixel (s s r c, K) to its four low-resolution neighbors ((r+1) (c+1), K)."""
        rows, columns, width = self._rows, self._columns, values.shape[1]
        by_place = values.view(-1, self._factor**2, rows * columns * width)
        products = self._corner_weights @ (by_place[0] if len(by_place) == 1 else by_place)
        corners = values.new_zeros(len(by_place), rows + 1, columns + 1, width)
        products = products.view(-1, 4, rows, columns, width)
        for number, product in enumerate(products.unbind(dim=1)):
            start = number // 2 * corners.stride(1) + number % 2 * width
            corners.as_strided(product.shape, corners.stride(), start).add_(product)
        return corners.view(-1, width)


def whole_factor(low_res: Sequence[int], full_res: Sequence[int]) -> int | None:
    """Return the whole number by which (H, W) is larger than (h, w) in both directions, or None."""
    factor = full_res[0] // max(1, low_res[0])
    multiples = factor * low_res[0], factor * low_res[1]
    return factor if factor > 0 and tuple(full_res) == multiples else None


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def neighbors(
    positions: Tensor, low_res: int, full_res: int, dtype: torch.dtype, align_corners: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the two low-resolution rows (or columns) around full-resolution ones, and the second's weight."""
    if align_corners:  # the centers of the outermost pixels coincide; in units of 1 / (H - 1): exact
        unit = max(full_res - 1, 1)
        centers = positions * (low_res - 1)
    else:  # in units of 1 / (2 H): exact
        unit = 2 * full_res
        centers = ((2 * positions + 1) * low_res - full_res).clamp_(min=0)
    before = (centers // unit).clamp_(max=low_res - 1)
    weights = (centers - before * unit).to(dtype) / unit
    return before, (before + 1).clamp_(max=low_res - 1), weights
