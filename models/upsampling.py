"""Bilinear upsampling of the stride-4 output to rows, one a pixel: of all pixels, of some, or of a block.

As `F.interpolate(mode="bilinear", align_corners=False)`, which the paper's code uses as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def full_resolution_rows(output: Tensor, size: Sequence[int]) -> Tensor:
    """(N, K, h, w) upsampled to `size` (H, W), as rows (N * H * W, K), float32 (float64 for float64).

    With the channels last in memory the rows are a view of the upsampled map: no copy, and losses of rows are
    several times faster on the CPU than of maps, and deterministic on the GPU.
    """
    channels_last = _at_least_float32(output).contiguous(memory_format=torch.channels_last)
    upsampled = F.interpolate(channels_last, size=tuple(size), mode="bilinear", align_corners=False)
    return upsampled.permute(0, 2, 3, 1).reshape(-1, output.shape[1])


def rows_of_pixels(output: Tensor, size: Sequence[int], pixels: Tensor) -> Tensor:
    """The rows `full_resolution_rows(output, size)[pixels]`, without making the others.

    Args:
        output: (N, K, h, w).
        size: (H, W) to which it is upsampled.
        pixels: (B,) int64 in 0..N * H * W - 1, in any order.

    Returns:
        (B, K) float32 (float64 for float64).
    """
    images, channels, *low = output.shape
    rows = _at_least_float32(output).permute(0, 2, 3, 1).reshape(images * low[0] * low[1], channels)
    corners, weights = corners_of_pixels(pixels, low, size, rows.dtype)
    return F.embedding_bag(corners, rows, mode="sum", per_sample_weights=weights)


def corners_of_pixels(
    pixels: Tensor, low: Sequence[int], full: Sequence[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """From which pixels at low resolution others are interpolated.

    Args:
        pixels: (B,) int64 in 0..N * H * W - 1.
        low: (h, w).
        full: (H, W).
        dtype: of the weights.

    Returns:
        (B, 4) int64 in 0..N * h * w - 1, of which some may be the same, and their (B, 4) weights.
    """
    (low_height, low_width), (height, width) = low, full
    above, below, down = _neighbors(pixels // width % height, low_height, height, dtype)
    left, right, across = _neighbors(pixels % width, low_width, width, dtype)
    first = pixels // (height * width) * (low_height * low_width)
    upper, lower = first + above * low_width, first + below * low_width
    corners = torch.stack([upper + left, upper + right, lower + left, lower + right], dim=1)
    weights = torch.stack(
        [(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across], dim=1
    )
    return corners, weights


class CellUpsampling:
    """Bilinear upsampling of a block of cells by a whole factor s, and its transpose.

    A cell is the square between four pixels at low resolution; s x s pixels at full resolution lie in it. A
    block of r x c cells is interpolated from (r+1) x (c+1) pixels. With its pixels repeated once beyond the
    edges, a map of h x w has (h+1) x (w+1) cells, the first of which begins s - s // 2 pixels left of and
    above the image.

    The s s r c pixels at full resolution come in the order of their place in the cell: first the upper left
    pixel of every cell, then the next one of every cell. So each step is one long operation.

    Args:
        factor: s.
        cells: (r, c).
        like: its dtype and device are those of the values.
    """

    def __init__(self, factor: int, cells: tuple[int, int], like: Tensor) -> None:
        self._factor, (self._rows, self._columns) = factor, cells
        places = torch.arange(factor, dtype=like.dtype, device=like.device) + (factor // 2 + 0.5)
        right = places / factor - 0.5  # (s,) share of the right or lower pixel
        self._shares = right[:, None, None, None]
        both = torch.stack([1 - right, right])
        self._of_corners = torch.kron(
            both, both
        )  # (4, s s): upper left, upper right, lower left, lower right

    def spread(self, values: Tensor, out: Tensor | None = None) -> Tensor:
        """Interpolate ((r+1) (c+1), K), in the order of the image, to (s s r c, K); or several blocks."""
        factor, rows, columns, width = self._factor, self._rows, self._columns, values.shape[1]
        corners = values.view(-1, 1, rows + 1, columns + 1, width)  # (T, 1, r+1, c+1, K)
        down = torch.lerp(corners[:, :, :-1], corners[:, :, 1:], self._shares)[
            :, :, None
        ]  # (T, s, 1, r, c+1, K)
        across = values.new_empty(len(corners) * factor**2 * rows * columns, width) if out is None else out
        places = across.view(-1, factor, factor, rows, columns, width)
        torch.lerp(down[..., :-1, :], down[..., 1:, :], self._shares, out=places)
        return across

    def gathered(self, values: Tensor) -> Tensor:
        """Give each of (s s r c, K) to its four corners, ((r+1) (c+1), K); or of several blocks."""
        rows, columns, width = self._rows, self._columns, values.shape[1]
        by_place = values.view(-1, self._factor**2, rows * columns * width)
        of_corners = self._of_corners @ (by_place[0] if len(by_place) == 1 else by_place)
        corners = values.new_zeros(len(by_place), rows + 1, columns + 1, width)
        of_corners = of_corners.view(-1, 4, rows, columns, width)
        for number, of_corner in enumerate(of_corners.unbind(dim=1)):
            start = number // 2 * corners.stride(1) + number % 2 * width
            corners.as_strided(of_corner.shape, corners.stride(), start).add_(of_corner)
        return corners.view(-1, width)


def whole_factor(low: Sequence[int], full: Sequence[int]) -> int | None:
    """By which number (h, w) is smaller than (H, W) in both directions, or None where there is none."""
    factor = full[0] // max(1, low[0])
    return factor if factor > 0 and tuple(full) == (factor * low[0], factor * low[1]) else None


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _neighbors(positions: Tensor, low: int, full: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Of full-resolution rows or columns: the two at low resolution around them, and the second's share."""
    centers = ((2 * positions + 1) * low - full).clamp_(min=0)  # in units of 1 / (2 full): exact
    before = (centers // (2 * full)).clamp_(max=low - 1)
    shares = (centers - before * (2 * full)).to(dtype) / (2 * full)
    return before, (before + 1).clamp_(max=low - 1), shares
