"""Exact cross-entropy over every class as GPU kernels: the loss and both gradients, nothing of size pixels x
classes.

Same values as `models.losses.exact.exact_cross_entropy`; the kernels and their arithmetic are in
`models.fused.loss_kernels`. Pixels are taken in chunks. For each chunk one kernel finds the loss and the gradient
of its pixels, and a second the chunk's share of the class gradient while the chunk is still in the cache; so
the per-pixel softmax sums live for one chunk only, and when the forward pass ends both gradients exist and
are the only thing kept.

With upsampling folded in, a chunk is a band of full-resolution rows: it is interpolated into a bounded buffer
that fits the second-level cache, handled like any other chunk, and its pixel gradient is gathered back by the
exact transpose of the interpolation. The alternative, to interpolate inside the loss kernels, either repeats
the exponentials (each low-resolution pixel reaches 4 times its share of full-resolution ones) or scatters
with atomics, whose order, and so whose result, changes from run to run.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from .launch import on_device_of, require
from .loss_pass import WORK_BYTES, Measured, Plan, measure_rows
from .upsample import measure_maps


def fused_exact_cross_entropy(
    pixel_embeddings: torch.Tensor,
    class_embeddings: torch.Tensor,
    target: torch.Tensor,
    *,
    temperature: float = 0.05,
    similarity: str = "distance",
    ignore_index: int = -1,
) -> torch.Tensor:
    """Mean cross-entropy over the labeled pixels, against all classes.

    Args:
        pixel_embeddings: (P, D), D of 4..256, fp32, bf16 or fp16; used as they are, not normalized here.
        class_embeddings: (C, D), same choice of dtypes (the two may differ); fp32 sums throughout.
        target: (P,) integer class of each pixel, or `ignore_index`. Any other value outside 0..C-1 makes the
            loss NaN (looking for it on the host would stall the GPU).
        temperature: divides the similarity; above 0.
        similarity: "distance" for logits -|e - w| / temperature, "cosine" for e·w / temperature.
        ignore_index: target of the pixels that count for nothing.

    Returns:
        fp32 scalar, differentiable in both embeddings; 0 with zero gradients where no pixel is labeled. Two
        calls with the same input give the same bits. Not twice differentiable.

    Raises:
        ValueError: a shape, dtype or option outside the above.
        RuntimeError: no Triton, or tensors not on a CUDA device.
    """
    require(pixel_embeddings, class_embeddings, similarity)
    if pixel_embeddings.dim() != 2 or pixel_embeddings.shape[1] != class_embeddings.shape[1]:
        raise ValueError(
            f"pixel_embeddings has shape {tuple(pixel_embeddings.shape)}; "
            f"allowed: (P, {class_embeddings.shape[1]}), the D of class_embeddings"
        )
    if target.shape != pixel_embeddings.shape[:1]:
        raise ValueError(f"target has shape {tuple(target.shape)}; allowed: ({pixel_embeddings.shape[0]},)")
    plan = _plan(temperature, similarity, ignore_index, WORK_BYTES)
    return _FusedCrossEntropy.apply(pixel_embeddings, class_embeddings, target, plan)


def fused_exact_cross_entropy_upsampled(
    pixel_embeddings: torch.Tensor,
    class_embeddings: torch.Tensor,
    target: torch.Tensor,
    *,
    temperature: float = 0.05,
    similarity: str = "distance",
    ignore_index: int = -1,
    work_bytes: int = WORK_BYTES,
) -> torch.Tensor:
    """The same loss at the resolution of the target, from embeddings at a lower one.

    Equal to upsampling with `F.interpolate(pixel_embeddings, size=(H, W), mode="bilinear",
    align_corners=False)` and calling `fused_exact_cross_entropy` on all N·H·W pixels, but full-resolution
    embeddings and gradients exist for one band of rows at a time.

    Args:
        pixel_embeddings: (N, D, h, w); channels-last memory saves a copy.
        class_embeddings: (C, D).
        target: (N, H, W) integer classes, or `ignore_index`.
        temperature: as in `fused_exact_cross_entropy`.
        similarity: as there.
        ignore_index: as there.
        work_bytes: bound on the work buffers (at least one full-resolution row is taken whatever the bound).

    Returns:
        fp32 scalar, differentiable in both embeddings.

    Raises:
        ValueError: a shape, dtype or option outside the above.
        RuntimeError: no Triton, or tensors not on a CUDA device.
    """
    require(pixel_embeddings, class_embeddings, similarity)
    if pixel_embeddings.dim() != 4 or pixel_embeddings.shape[1] != class_embeddings.shape[1]:
        raise ValueError(
            f"pixel_embeddings has shape {tuple(pixel_embeddings.shape)}; "
            f"allowed: (N, {class_embeddings.shape[1]}, h, w), the D of class_embeddings"
        )
    if target.dim() != 3 or target.shape[0] != pixel_embeddings.shape[0]:
        raise ValueError(
            f"target has shape {tuple(target.shape)}; allowed: ({pixel_embeddings.shape[0]}, H, W)"
        )
    plan = _plan(temperature, similarity, ignore_index, work_bytes)
    return _FusedCrossEntropy.apply(pixel_embeddings, class_embeddings, target, plan)


def _plan(temperature: float, similarity: str, ignore_index: int, work_bytes: int) -> Plan:
    if not temperature > 0:
        raise ValueError(
            f"temperature is {temperature}; allowed: above 0 (the reference's factor 20 is 0.05 here)"
        )
    return Plan(temperature, similarity, ignore_index, work_bytes, torch.is_grad_enabled())


class _FusedCrossEntropy(torch.autograd.Function):
    """Loss and unscaled gradients in the forward pass; the backward pass scales them where they lie."""

    @staticmethod
    def forward(
        ctx: Any,
        pixel_embeddings: torch.Tensor,
        class_embeddings: torch.Tensor,
        target: torch.Tensor,
        plan: Plan,
    ) -> torch.Tensor:
        measured = _measure(pixel_embeddings, class_embeddings, target, plan, ctx.needs_input_grad)
        ctx.save_for_backward(pixel_embeddings, class_embeddings, target)
        ctx.plan = plan
        ctx.measured = measured if plan.with_gradients else None
        return measured.loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        measured: Measured | None = ctx.measured
        # Handed over, not kept: scaling a copy would double the largest tensor of the step. A second backward
        # pass through a retained graph finds nothing here and measures again.
        ctx.measured = None
        pixel_embeddings, class_embeddings, target = ctx.saved_tensors
        if measured is None:
            measured = _measure(pixel_embeddings, class_embeddings, target, ctx.plan, ctx.needs_input_grad)
        with on_device_of(class_embeddings):
            pixel_gradient, class_gradient = measured.scaled_gradients(grad_output)
        if pixel_gradient is not None:
            pixel_gradient = pixel_gradient.to(pixel_embeddings.dtype)
            if pixel_embeddings.dim() == 4:
                pixel_gradient = pixel_gradient.permute(0, 3, 1, 2)  # (N, h, w, D) -> (N, D, h, w)
        if class_gradient is not None:
            class_gradient = class_gradient.to(class_embeddings.dtype)
        return pixel_gradient, class_gradient, None, None


def _measure(
    pixel_embeddings: torch.Tensor,
    class_embeddings: torch.Tensor,
    target: torch.Tensor,
    plan: Plan,
    needs_gradient: tuple[bool, ...],
) -> Measured:
    measure = measure_maps if pixel_embeddings.dim() == 4 else measure_rows
    with_pixels, with_classes = (plan.with_gradients and needed for needed in needs_gradient[:2])
    if target.dtype not in (torch.int64, torch.int32):
        target = target.long()
    with on_device_of(class_embeddings):
        return measure(
            pixel_embeddings,
            class_embeddings.contiguous(),
            target.contiguous(),
            plan,
            with_pixels,
            with_classes,
        )
