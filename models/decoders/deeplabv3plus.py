"""Decode the finest and the coarsest level as DeepLabV3+ does: context from the coarse, edges from the fine.

As in the paper's reference network: atrous spatial pyramid pooling (ASPP) with rates that follow the output
stride, low-level features cut to 48 channels, both concatenated (304) and fused by one 3x3 convolution.

Departure: the image-pooling branch has no batch norm. Its maps are 1x1, so a batch of one image has a single
value per channel, of which batch norm can take no variance. With `separable`, its 3x3 convolutions are
depthwise separable, as in DeepLabV3+ itself (Chen et al., ECCV 2018): about an eighth of the multiplications.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import convolution, separable_convolution

_RATES = {8: (12, 24, 36), 16: (6, 12, 18), 32: (3, 6, 9)}


class ASPP(nn.Module):
    """Pool an atrous spatial pyramid: a 1x1, three dilated 3x3 and an image-pooling branch, fused by a 1x1.

    Args:
        in_channels: of the high-level features.
        channels: of every branch and of the output.
        rates: dilations of the 3x3 branches, in cells of the high-level map.
        dropout: fraction of the fused values that training sets to zero.
        separable: depthwise separable 3x3 convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        rates: tuple[int, int, int],
        *,
        dropout: float = 0.1,
        separable: bool = False,
    ) -> None:
        super().__init__()
        of_3x3 = separable_convolution if separable else convolution
        self.branches = nn.ModuleList(
            [
                convolution(in_channels, channels, 1),
                *(of_3x3(in_channels, channels, 3, dilation=rate) for rate in rates),
            ]
        )
        self.image_pooling = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(in_channels, channels, 1), nn.ReLU(inplace=True)
        )
        self.fuse = nn.Sequential(convolution(5 * channels, channels, 1), nn.Dropout(dropout))

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, in_channels, h, w) to (N, channels, h, w)."""
        pooled = self.image_pooling(features).expand(-1, -1, *features.shape[-2:])
        return self.fuse(torch.cat([*(branch(features) for branch in self.branches), pooled], dim=1))


class DeepLabV3PlusDecoder(nn.Module):
    """Apply ASPP to the high-level features, resize them to stride 4 and fuse them with the low-level ones.

    Args:
        in_channels: of each level, fine to coarse; the first and the last are used.
        channels: of the output, 256 in the paper.
        output_stride: of the high-level features; picks the rates of the nearest of 8, 16 and 32.
        low_channels_out: to which the low-level features are cut.
        separable: depthwise separable 3x3 convolutions.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        channels: int = 256,
        output_stride: int = 16,
        low_channels_out: int = 48,
        separable: bool = False,
    ) -> None:
        super().__init__()
        of_3x3 = separable_convolution if separable else convolution
        rates = _RATES[min(_RATES, key=lambda stride: abs(stride - output_stride))]
        self.aspp = ASPP(in_channels[-1], channels, rates, separable=separable)
        self.low = convolution(in_channels[0], low_channels_out, 1)
        self.fuse = of_3x3(channels + low_channels_out, channels, 3)
        self.channels = channels

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Decode (N, C_0, h, w), ..., (N, C_n, h', w') to (N, channels, h, w)."""
        low, high = levels[0], levels[-1]
        context = F.interpolate(self.aspp(high), size=low.shape[-2:], mode="bilinear", align_corners=False)
        return self.fuse(torch.cat([context, self.low(low)], dim=1))
