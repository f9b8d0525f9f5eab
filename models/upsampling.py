"""Bilinear upsampling of the stride-4 output to rows, one a pixel: of all pixels, or of some only.

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
    images, channels, low_height, low_width = output.shape
    height, width = size
    above, below, down = _neighbours(pixels // width % height, low_height, height)
    left, right, across = _neighbours(pixels % width, low_width, width)
    first = pixels // (height * width) * (low_height * low_width)
    upper, lower = first + above * low_width, first + below * low_width
    corners = torch.stack([upper + left, upper + right, lower + left, lower + right], dim=1)  # (B, 4)
    weights = torch.stack(
        [(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across], dim=1
    )
    rows = _at_least_float32(output).permute(0, 2, 3, 1).reshape(images * low_height * low_width, channels)
    return F.embedding_bag(corners, rows, mode="sum", per_sample_weights=weights.to(rows.dtype))


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _neighbours(positions: Tensor, low: int, full: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of full-resolution rows or columns: the two at low resolution around them, and the second's share."""
    centres = ((positions + 0.5) * (low / full) - 0.5).clamp(min=0)
    before = centres.long().clamp(max=low - 1)
    return before, (before + 1).clamp(max=low - 1), centres - before
