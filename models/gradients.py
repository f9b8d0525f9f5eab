"""Keep the gradients that a loss computes together with its value, for autograd.

Every loss here has its gradients when it has its value. `keep_gradients` is the autograd function of those in
torch and in compiled code; backward only scales. `scaled_gradients` and `saved_to_change` see to it that no
second copy of a gradient is made: with 100,000 classes that of the class embeddings is as large as these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Needed:
    """Say which gradients are wanted: of the pixel embeddings, the class embeddings and the bias."""

    pixels: bool
    classes: bool
    bias: bool

    @property
    def any(self) -> bool:
        """Tell whether one is."""
        return self.pixels or self.classes or self.bias


@dataclass(frozen=True)
class LossAndGradients:
    """Hold a scalar loss and its gradients, in shape and dtype those of the inputs; None where not wanted."""

    loss: Tensor
    pixels: Tensor | None
    classes: Tensor | None
    bias: Tensor | None


class Compute(Protocol):
    """Compute a loss of pixel embeddings, class embeddings and a bias (or None), and its gradients."""

    def __call__(  # noqa: D102
        self, pixel_embeddings: Tensor, class_embeddings: Tensor, bias: Tensor | None, needed: Needed, /
    ) -> LossAndGradients: ...


def keep_gradients(
    compute: Compute, pixel_embeddings: Tensor, class_embeddings: Tensor, bias: Tensor | None
) -> Tensor:
    """Return the scalar loss, once differentiable for the three tensors."""
    return _KeptGradients.apply(compute, torch.is_grad_enabled(), pixel_embeddings, class_embeddings, bias)


class _KeptGradients(torch.autograd.Function):
    """Compute loss and gradients in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        compute: Compute,
        with_gradients: bool,
        pixel_embeddings: Tensor,
        class_embeddings: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        needed = Needed(*(with_gradients and need for need in ctx.needs_input_grad[2:5]))
        result = compute(pixel_embeddings, class_embeddings, bias, needed)
        ctx.save_for_backward(result.pixels, result.classes, result.bias)
        return result.loss

    @staticmethod
    def backward(ctx: Any, loss_gradient: Tensor) -> Any:
        return None, None, *scaled_gradients(ctx, loss_gradient)


def scaled_gradients(ctx: Any, loss_gradient: Tensor) -> list[Tensor | None]:
    """Return the saved gradients times that of the loss."""
    with torch.no_grad():
        gradients = [
            None if gradient is None else gradient.mul_(loss_gradient.to(gradient.dtype))
            for gradient in saved_to_change(ctx)
        ]
    if not torch.is_grad_enabled():  # it is with create_graph=True
        return gradients
    return [
        None if gradient is None else _FirstDerivativeOnly.apply(gradient.requires_grad_())
        for gradient in gradients
    ]


def saved_to_change(ctx: Any) -> list[Tensor | None]:
    """Return the saved tensors of a backward pass, to be changed in place.

    They are the saved ones themselves, or copies where the pass keeps its graph and may so come again.
    """
    saved = list(ctx.saved_tensors)
    return [None if tensor is None else tensor.clone() for tensor in saved] if _keeps_graph() else saved


def _keeps_graph() -> bool:
    """Tell whether the backward pass under way keeps its graph: retain_graph=True or create_graph=True.

    PyTorch tells it to its own compiled graphs only (pytorch/pytorch#131038). Where it does not, say yes.
    """
    tell = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if tell is None else bool(tell())


class _FirstDerivativeOnly(torch.autograd.Function):
    """Pass a gradient on, and refuse to differentiate it.

    Without this, a second derivative would silently lack a term. `once_differentiable` refuses only where the
    incoming gradient requires one itself, which that of a loss does not.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(
            "this loss keeps its gradients from the forward pass and can be differentiated only once; for "
            "second derivatives use torch.nn.functional.cross_entropy on full logits"
        )
