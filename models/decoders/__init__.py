"""Decode a backbone's features of several strides to one map at stride 4.

Every decoder is a module that takes all levels of a backbone, fine to coarse and the first at stride 4, and
returns one map of `channels` channels at stride 4. All are made by the same arguments: `in_channels` of each
level, `channels` of the output, `output_stride` of the coarsest level.

To add one: write its module beside these, and name it in `DECODERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from .deeplabv3plus import DeepLabV3PlusDecoder
from .fpn import FPNDecoder
from .linear import LinearDecoder
from .upernet import UPerNetDecoder

DECODERS: dict[str, Callable[..., nn.Module]] = {
    "deeplabv3plus": DeepLabV3PlusDecoder,
    "deeplabv3plus_separable": partial(DeepLabV3PlusDecoder, separable=True),
    "fpn": FPNDecoder,
    "upernet": UPerNetDecoder,
    "linear": LinearDecoder,
}

__all__ = ["DECODERS", "DeepLabV3PlusDecoder", "FPNDecoder", "LinearDecoder", "UPerNetDecoder"]
