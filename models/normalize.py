"""Normalize vectors to length 1 with a gradient that makes no more copies of them than it must.

That of `F.normalize` makes several, while all activations of the network still exist.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_SHORTEST = 1e-6
"""Shorter vectors are divided by this."""


def unit_length(vectors: Tensor) -> Tensor:
    """Normalize along dimension 1, in float32: bfloat16 is too coarse to tell many classes apart.

    Args:
        vectors: (P, D) or (N, D, h, w) float.

    Returns:
        The same shape, float32; a vector shorter than 1e-6 is divided by 1e-6.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        if torch.is_grad_enabled() and vectors.requires_grad:
            unit: Tensor = _UnitLength.apply(vectors.float())[0]
            return unit
        return F.normalize(vectors.float(), dim=1, eps=_SHORTEST)


class _UnitLength(torch.autograd.Function):
    """Return unit vectors and the lengths (P, 1) or (N, 1, h, w), both differentiable."""

    @staticmethod
    def forward(vectors: Tensor) -> tuple[Tensor, Tensor]:
        lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_min_(_SHORTEST)
        return vectors / lengths, lengths

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, unit_gradient: Tensor | None, length_gradient: Tensor | None) -> Tensor | None:
        # Only a second derivative hands over a gradient of the lengths: through the formula below.
        unit, lengths = ctx.saved_tensors
        gradient = None
        if unit_gradient is not None:
            along = (unit * unit_gradient).sum(dim=1, keepdim=True)
            along = along.masked_fill(lengths <= _SHORTEST, 0)  # such a length is a constant
            gradient = torch.addcmul(unit_gradient, unit, along, value=-1)
            gradient = gradient / lengths if torch.is_grad_enabled() else gradient.div_(lengths)
        if length_gradient is not None:
            of_length = unit * length_gradient.masked_fill(lengths <= _SHORTEST, 0)
            gradient = of_length if gradient is None else gradient + of_length
        return gradient
