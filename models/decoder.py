"""DeepLabV3+'s decoder: context from the high-level features, edges from the low-level ones.

As in the paper's reference network: atrous spatial pyramid pooling (ASPP) with rates that follow the output
stride, low-level features cut to 48 channels, both concatenated (304) and fused by one 3x3 convolution.
Departure: the image-pooling branch has no batch norm. Its maps are 1x1, so a batch of one image has a single
value per channel, of which batch norm can take no variance.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_RATES = {8: (12, 24, 36), 16: (6, 12, 18), 32: (3, 6, 9)}


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1x1, three dilated 3x3 and an image-pooling branch, fused by a 1x1.

    Args:
        in_channels: of the high-level features.
        channels: of every branch and of the output.
        rates: dilations of the 3x3 branches, in cells of the high-level map.
        dropout: share of the fused values that training sets to zero.
    """

    def __init__(
        self, in_channels: int, channels: int, rates: tuple[int, int, int], *, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                _convolution(in_channels, channels, 1),
                *(_convolution(in_channels, channels, 3, dilation=rate) for rate in rates),
            ]
        )
        self.image_pooling = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(in_channels, channels, 1), nn.ReLU(inplace=True)
        )
        self.fuse = nn.Sequential(_convolution(5 * channels, channels, 1), nn.Dropout(dropout))

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_channels, h, w) to (N, channels, h, w)."""
        pooled = self.image_pooling(features).expand(-1, -1, *features.shape[-2:])
        return self.fuse(torch.cat([*(branch(features) for branch in self.branches), pooled], dim=1))


class DeepLabV3PlusDecoder(nn.Module):
    """ASPP on the high-level features, resized to stride 4 and fused with the low-level ones.

    Args:
        low_channels: channels of the features at stride 4.
        high_channels: channels of the features at the output stride.
        output_stride: of the high-level features; picks the rates of the nearest of 8, 16 and 32.
        channels: of the output, 256 in the paper.
        low_channels_out: to which the low-level features are cut.
    """

    def __init__(
        self,
        low_channels: int,
        high_channels: int,
        *,
        output_stride: int,
        channels: int = 256,
        low_channels_out: int = 48,
    ) -> None:
        super().__init__()
        rates = _RATES[min(_RATES, key=lambda stride: abs(stride - output_stride))]
        self.aspp = ASPP(high_channels, channels, rates)
        self.low = _convolution(low_channels, low_channels_out, 1)
        self.fuse = _convolution(channels + low_channels_out, channels, 3)
        self.channels = channels

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """(N, low_channels, h, w) and (N, high_channels, h', w') to (N, channels, h, w)."""
        context = F.interpolate(self.aspp(high), size=low.shape[-2:], mode="bilinear", align_corners=False)
        return self.fuse(torch.cat([context, self.low(low)], dim=1))


def _convolution(in_channels: int, out_channels: int, kernel: int, *, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
