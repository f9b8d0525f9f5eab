"""Decode all levels by a feature pyramid (FPN; Kirillov et al., CVPR 2019).

All levels are brought to the same number of channels, each is added to the next finer one from the coarsest
down, and they are summed at stride 4. Any number of levels of any strides will do. So a plain vision
transformer, whose levels all have one stride, works too: the backbone resizes its first level to stride 4.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .blocks import TopDown, resize


class FPNDecoder(nn.Module):
    """Build a feature pyramid, resize its levels to the finest and sum them.

    Args:
        in_channels: of each level, fine to coarse.
        channels: of the pyramid and of the output.
        output_stride: unused here.
    """

    def __init__(self, in_channels: Sequence[int], *, channels: int = 256, output_stride: int = 16) -> None:
        super().__init__()
        self.pyramid = TopDown(in_channels, channels)
        self.channels = channels

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Decode (N, C_i, h_i, w_i) each, fine to coarse, to (N, channels, h_0, w_0)."""
        finest, *coarser = self.pyramid(levels)
        for level in coarser:
            finest = finest + resize(level, finest)
        return finest
