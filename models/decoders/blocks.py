"""Build the blocks that decoders share: convolutions with batch norm, and the top-down pathway."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def convolution(in_channels: int, out_channels: int, kernel: int, *, dilation: int = 1) -> nn.Sequential:
    """Build a convolution that keeps the size, batch norm and ReLU."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def separable_convolution(
    in_channels: int, out_channels: int, kernel: int, *, dilation: int = 1
) -> nn.Sequential:
    """Build a depthwise convolution and a 1x1 convolution, in place of `convolution`."""
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


class TopDown(nn.Module):
    """Bring all levels to `channels` channels, add each to the next finer one, and smooth them by a 3x3.

    Args:
        in_channels: of each level, fine to coarse.
        channels: of every level of the result.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(convolution(of_level, channels, 1) for of_level in in_channels)
        self.smooth = nn.ModuleList(convolution(channels, channels, 3) for _ in in_channels)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Map (N, C_i, h_i, w_i) each, fine to coarse, to (N, channels, h_i, w_i) each."""
        merged: list[Tensor] = []  # coarse to fine
        for lateral, level in zip(reversed(self.lateral), reversed(levels), strict=True):
            own = lateral(level)
            merged.append(own + resize(merged[-1], own) if merged else own)
        return [smooth(level) for smooth, level in zip(self.smooth, reversed(merged), strict=True)]


def resize(features: Tensor, like: Tensor) -> Tensor:
    """Resize features bilinearly to the height and width of others."""
    return F.interpolate(features, size=like.shape[-2:], mode="bilinear", align_corners=False)
