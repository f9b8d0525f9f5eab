"""Pad with constants what timm pads by a formula of the size, while a graph of free size is traced."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import timm.layers.padding
import torch


@contextlib.contextmanager
def constant_same_padding() -> Iterator[None]:
    """Replace TensorFlow's "same" padding of free sides inside the block.

    The backbone's input is padded to multiples of all its strides, so every layer's sides are multiples of
    its stride, and what is lacking is a constant. With the formula, sizes are nested once a layer: tracing
    tf_efficientnet_lite0 did not end in ten minutes, and `torch.export.save` knows no math.ceil.
    """
    module: Any = timm.layers.padding
    formula = module.get_same_padding

    def constant(side: Any, kernel_size: int, stride: int, dilation: int) -> Any:
        if isinstance(side, torch.SymInt):
            return max((kernel_size - 1) * dilation + 1 - stride, 0)
        return formula(side, kernel_size, stride, dilation)

    module.get_same_padding = constant
    try:
        yield
    finally:
        module.get_same_padding = formula
