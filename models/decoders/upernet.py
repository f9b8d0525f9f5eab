"""Decode all levels by pyramid pooling and a feature pyramid (UPerNet; Xiao et al., ECCV 2018).

Departure, as in `deeplabv3plus`: maps pooled from the whole image have no batch norm, since a batch of one
image has a single value per channel there. Any number of levels of any strides will do, as in `fpn`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import TopDown, convolution, resize

POOLED_SIZES = (1, 2, 3, 6)  # cells along each side of the grids of pyramid pooling


class UPerNetDecoder(nn.Module):
    """Pool the coarsest level, build a feature pyramid, and fuse all levels by a 3x3 convolution.

    Args:
        in_channels: of each level, fine to coarse.
        channels: of the pyramid and of the output.
        output_stride: unused here.
    """

    def __init__(self, in_channels: Sequence[int], *, channels: int = 256, output_stride: int = 16) -> None:
        super().__init__()
        self.pooling = PyramidPooling(in_channels[-1], channels)
        self.pyramid = TopDown([*in_channels[:-1], channels], channels)
        self.fuse = convolution(len(in_channels) * channels, channels, 3)
        self.channels = channels

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Decode (N, C_i, h_i, w_i) each, fine to coarse, to (N, channels, h_0, w_0)."""
        finest, *coarser = self.pyramid([*levels[:-1], self.pooling(levels[-1])])
        return self.fuse(torch.cat([finest, *(resize(level, finest) for level in coarser)], dim=1))


class PyramidPooling(nn.Module):
    """Add the features' means over grids of 1, 2, 3 and 6 cells a side, fused by a 3x3 convolution.

    Args:
        in_channels: of the features.
        channels: of every grid and of the output.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.grids = nn.ModuleList(
            nn.Sequential(GridPool(size), nn.Conv2d(in_channels, channels, 1), nn.ReLU(inplace=True))
            for size in POOLED_SIZES
        )
        self.fuse = convolution(in_channels + len(POOLED_SIZES) * channels, channels, 3)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, in_channels, h, w) to (N, channels, h, w)."""
        pooled = [resize(grid(features), features) for grid in self.grids]
        return self.fuse(torch.cat([features, *pooled], dim=1))


class GridPool(nn.Module):
    """Take the means over the cells of a grid; can be exported with a free height and width."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, h, w) to (N, C, size, size)."""
        if not torch.compiler.is_exporting():
            return F.adaptive_avg_pool2d(features, self.size)
        down, across = (self._shares(side, features) for side in features.shape[-2:])
        return down @ features @ across.T

    def _shares(self, length: int, like: Tensor) -> Tensor:
        """Return (size, length): how much each place adds to the mean of each cell."""
        cells = torch.arange(self.size)[:, None]
        places = like.new_ones(length, dtype=torch.int64).cumsum(0) - 1
        first, end = cells * length // self.size, -(-(cells + 1) * length // self.size)
        inside = (places >= first) & (places < end)
        return inside.to(like.dtype) / (end - first)
