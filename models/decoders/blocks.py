"""TODO"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def convolution(in_channels: int, out_channels: int, kernel: int, *, dilation: int = 1) -> nn.Sequential:
    """A convolution that keeps the size, batch norm and ReLU."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def separable_convolution(
    in_channels: int, out_channels: int, kernel: int, *, dilation: int = 1
) -> nn.Sequential:
    """A convolution within each channel and one across them, instead of `convolution`."""
    depthwise = nn.Conv2d(
        in_channels,
        in_channels,
        kernel,
        padding=dilation * (kernel // 2),
        dilation=dilation,
        groups=in_channels,
        bias=False,
    )
    return nn.Sequential(depthwise, *convolution(in_channels, out_channels, 1))


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
