"""Decoders of all levels: FPN (Kirillov et al., CVPR 2019) and UPerNet (Xiao et al., ECCV 2018).

Both bring all levels to the same number of channels, add each to the next finer one from the coarsest down,
and merge them at stride 4. They take any number of levels of any strides, so that a plain vision transformer,
whose levels all have one stride, serves as well: its first level is resized to stride 4 by the backbone.
Departure, as in `models.decoder`: what is pooled from the whole image has no batch norm, since a batch of one
image has a single value per channel there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.decoder import convolution

POOLED_SIZES = (1, 2, 3, 6)  # cells a side, in UPerNet's pyramid pooling


class FPNDecoder(nn.Module):
    """A feature pyramid whose levels are resized to the finest and summed.

    Args:
        in_channels: of each level, fine to coarse.
        channels: of the pyramid and of the output.
    """

    def __init__(self, in_channels: Sequence[int], *, channels: int = 256) -> None:
        super().__init__()
        self.pyramid = _TopDown(in_channels, channels)
        self.channels = channels

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """(N, C_i, h_i, w_i) each, fine to coarse, to (N, channels, h_0, w_0)."""
        finest, *coarser = self.pyramid(levels)
        for level in coarser:
            finest = finest + _resized(level, finest)
        return finest


class UPerNetDecoder(nn.Module):
    """Pyramid pooling on the coarsest level, a feature pyramid, and all levels fused by a 3x3 convolution.

    Args:
        in_channels: of each level, fine to coarse.
        channels: of the pyramid and of the output.
    """

    def __init__(self, in_channels: Sequence[int], *, channels: int = 256) -> None:
        super().__init__()
        self.pooling = PyramidPooling(in_channels[-1], channels)
        self.pyramid = _TopDown([*in_channels[:-1], channels], channels)
        self.fuse = convolution(len(in_channels) * channels, channels, 3)
        self.channels = channels

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """(N, C_i, h_i, w_i) each, fine to coarse, to (N, channels, h_0, w_0)."""
        finest, *coarser = self.pyramid([*levels[:-1], self.pooling(levels[-1])])
        return self.fuse(torch.cat([finest, *(_resized(level, finest) for level in coarser)], dim=1))


class PyramidPooling(nn.Module):
    """The features beside their means over grids of 1, 2, 3 and 6 cells a side, fused by a 3x3 convolution.

    Args:
        in_channels: of the features.
        channels: of every grid and of the output.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.grids = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(size), nn.Conv2d(in_channels, channels, 1), nn.ReLU(inplace=True)
            )
            for size in POOLED_SIZES
        )
        self.fuse = convolution(in_channels + len(POOLED_SIZES) * channels, channels, 3)

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_channels, h, w) to (N, channels, h, w)."""
        pooled = [_resized(grid(features), features) for grid in self.grids]
        return self.fuse(torch.cat([features, *pooled], dim=1))


class _TopDown(nn.Module):
    """All levels in `channels` channels, each with the coarser ones added, smoothed by a 3x3 convolution."""

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(convolution(of_level, channels, 1) for of_level in in_channels)
        self.smooth = nn.ModuleList(convolution(channels, channels, 3) for _ in in_channels)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        merged: list[Tensor] = []  # coarse to fine
        for lateral, level in zip(reversed(self.lateral), reversed(levels), strict=True):
            own = lateral(level)
            merged.append(own + _resized(merged[-1], own) if merged else own)
        return [smooth(level) for smooth, level in zip(self.smooth, reversed(merged), strict=True)]


def _resized(features: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(features, size=like.shape[-2:], mode="bilinear", align_corners=False)
