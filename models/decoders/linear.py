"""Decode the coarsest level by a 1x1 convolution: for plain vision transformers."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class LinearDecoder(nn.Module):
    """Normalize and project the coarsest features by a 1x1 convolution, resized to stride 4.

    With the embedding head, class scores are then distances of a linear map of the patch features.

    Args:
        in_channels: of each level, fine to coarse; only the last is used.
        channels: of the output.
        output_stride: unused here.
    """

    def __init__(self, in_channels: Sequence[int], *, channels: int = 256, output_stride: int = 16) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels[-1])
        self.project = nn.Conv2d(in_channels[-1], channels, 1)
        self.channels = channels

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Decode (N, C_0, h, w), ..., (N, C_n, h', w') to (N, channels, h, w)."""
        projected = self.project(self.norm(levels[-1]))
        return F.interpolate(projected, size=levels[0].shape[-2:], mode="bilinear", align_corners=False)
