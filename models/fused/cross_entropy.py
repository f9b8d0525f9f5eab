"""Compute exact cross-entropy over all classes, and both gradients, with GPU kernels.

The values are those of the implementation in plain torch (`tiled`); the kernels are in `loss_kernels`. Pixels
are taken in chunks. For each chunk one kernel finds the loss and the gradient of its pixels. A second adds
the chunk's part of the class gradient while the chunk is still in the cache. So the softmax sums of pixels
live for one chunk only, and after the forward pass only the two gradients are kept.

For maps, a chunk is a band of full-resolution rows. It is interpolated into a bounded buffer that fits the
second-level cache and handled like any other chunk. Its pixel gradient is brought back by the exact transpose
of the interpolation (`upsample` says why not inside the loss kernels).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..embeddings import LossOptions
from ..gradients import Needed, saved_to_change
from .launch import on_device_of, require
from .loss_pass import LossAndGrads, loss_and_grads_of_rows, scale_in_place
from .upsample import loss_and_grads_of_maps


def fused_exact_cross_entropy(
    pixel_embeddings: Tensor,
    class_embeddings: Tensor,
    target: Tensor,
    options: LossOptions | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Compute the mean cross-entropy of the labeled pixels over all classes.

    For maps, equal to upsampling them with `F.interpolate(pixel_embeddings, size=(H, W), mode="bilinear",
    align_corners=False)` first, but embeddings and gradients at full resolution exist for one band of rows at
    a time.

    Args:
        pixel_embeddings: (P, D) or (N, D, h, w), D of 4..512, fp32, bf16 or fp16; used as they are, not
            normalized here. Channels-last memory of maps saves a copy.
        class_embeddings: (C, D), same choice of dtypes (the two may differ); fp32 sums throughout.
        target: (P,) or (N, H, W) integer class of each pixel, or the options' `ignore_index`. Any other value
            outside 0..C-1 makes the loss NaN (checking it on the host would stall the GPU).
        options: of the loss. `work_bytes` bounds the buffers of maps (at least one full-resolution row is
            taken whatever the bound).
        bias: (C,), added to logits of inner products.

    Returns:
        fp32 scalar, differentiable in both embeddings and the bias; 0 with zero gradients where no pixel is
        labeled. Two calls with the same input give the same bits. Not twice differentiable.

    Raises:
        ValueError: a shape, dtype or option outside the above.
        RuntimeError: no Triton, or tensors not on a CUDA device.
    """
    require(pixel_embeddings, class_embeddings)
    _check_shapes(pixel_embeddings, class_embeddings, target)
    options = options or LossOptions()
    if bias is not None and options.similarity == "distance":
        raise ValueError("bias is given and similarity is 'distance'; the fused kernels add it to products")
    return _FusedCrossEntropy.apply(
        pixel_embeddings, class_embeddings, bias, target, options, torch.is_grad_enabled()
    )


def _check_shapes(pixel_embeddings: Tensor, class_embeddings: Tensor, target: Tensor) -> None:
    dim = class_embeddings.shape[1]
    if pixel_embeddings.dim() not in (2, 4) or pixel_embeddings.shape[1] != dim:
        raise ValueError(
            f"pixel_embeddings has shape {tuple(pixel_embeddings.shape)}; "
            f"allowed: (P, {dim}) or (N, {dim}, h, w), the D of class_embeddings"
        )
    if pixel_embeddings.dim() == 2 and target.shape != pixel_embeddings.shape[:1]:
        raise ValueError(f"target has shape {tuple(target.shape)}; allowed: ({pixel_embeddings.shape[0]},)")
    if pixel_embeddings.dim() == 4 and (target.dim() != 3 or len(target) != len(pixel_embeddings)):
        raise ValueError(
            f"target has shape {tuple(target.shape)}; allowed: ({pixel_embeddings.shape[0]}, H, W)"
        )


class _FusedCrossEntropy(torch.autograd.Function):
    """Compute the loss and unscaled gradients in the forward pass; scale them in place in the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        pixel_embeddings: Tensor,
        class_embeddings: Tensor,
        bias: Tensor | None,
        target: Tensor,
        options: LossOptions,
        with_gradients: bool,
    ) -> Tensor:
        needed = Needed(*(with_gradients and need for need in ctx.needs_input_grad[:3]))
        result = _loss_and_grads(pixel_embeddings, class_embeddings, bias, target, options, needed)
        ctx.save_for_backward(*result.gradients, result.labeled)
        ctx.is_map = pixel_embeddings.dim() == 4
        ctx.dtypes = pixel_embeddings.dtype, class_embeddings.dtype, None if bias is None else bias.dtype
        return result.loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        *gradients, labeled = saved_to_change(ctx)
        assert labeled is not None
        with on_device_of(grad_output):
            scale_in_place(gradients, grad_output, labeled)
        pixels, classes, bias = (
            None if gradient is None else gradient.to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        if pixels is not None and ctx.is_map:
            pixels = pixels.permute(0, 3, 1, 2)  # (N, h, w, D) -> (N, D, h, w)
        return pixels, classes, bias, None, None, None


def _loss_and_grads(
    pixel_embeddings: Tensor,
    class_embeddings: Tensor,
    bias: Tensor | None,
    target: Tensor,
    options: LossOptions,
    needed: Needed,
) -> LossAndGrads:
    """Run the forward pass of rows or maps."""
    function = loss_and_grads_of_maps if pixel_embeddings.dim() == 4 else loss_and_grads_of_rows
    if target.dtype not in (torch.int64, torch.int32):
        target = target.long()
    with on_device_of(class_embeddings):
        return function(
            pixel_embeddings, class_embeddings.contiguous(), target.contiguous(), options, needed, bias
        )
