"""Decoders of all levels: FPN (Kirillov et al., CVPR 2019) and UPerNet (Xiao et al., ECCV 2018).

Both bring all levels to the same number of channels, add each to the next finer one from the coarsest down,
and merge them at stride 4. They take any number of levels of any strides, so that a plain vision transformer,
whose levels all have one stride, serves as well: its first level is resized to stride 4 by the backbone.
Departure, as in `models.decoders.deeplabv3plus`: what is pooled from the whole image has no batch norm, since a batch of one
image has a single value per channel there.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .blocks import _resized, _TopDown


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
