"""TODO"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class LinearDecoder(nn.Module):
    """A 1x1 convolution of the normalized coarsest features, resized to stride 4: for vision transformers.

    With the embedding head, class scores are then distances of a linear map of the patch features.

    Args:
        high_channels: channels of the coarsest features.
        channels: of the output.
    """

    def __init__(self, high_channels: int, *, channels: int = 256) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(high_channels)
        self.project = nn.Conv2d(high_channels, channels, 1)
        self.channels = channels

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """(N, C_0, h, w), ..., (N, high_channels, h', w') to (N, channels, h, w)."""
        projected = self.project(self.norm(levels[-1]))
        return F.interpolate(projected, size=levels[0].shape[-2:], mode="bilinear", align_corners=False)
