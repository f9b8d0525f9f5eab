"""Losses between pixel embeddings and class embeddings, in memory that does not grow with pixels x classes.

A logit is -|e - w| / temperature ("distance", Jain et al., ICCV 2021) or e.w / temperature ("cosine").
`exact_cross_entropy` compares every pixel with every class. `knn_cross_entropy` is the paper's approximation,
`sampled_cross_entropy` the usual one for very many classes. The paper's loss mends two things of its released
code: a class is never its own negative, and ignored pixels take no part.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..embeddings import WORK_BYTES, Similarity, check_loss_inputs, check_target
from ..fused.launch import fused_kernels, to_kernel_dtype
from ..tiled.cross_entropy import ExactCrossEntropy
from ..tiled.cross_entropy_of_maps import ExactCrossEntropyOfMaps
from ..upsampling import rows_of_pixels


@torch.compiler.disable
def exact_cross_entropy(
    pixel_embeddings: Tensor,
    class_embeddings: Tensor,
    target: Tensor,
    *,
    temperature: float = 0.05,
    similarity: Similarity = "distance",
    ignore_index: int = -1,
    work_bytes: int = WORK_BYTES,
) -> Tensor:
    """Compute the mean cross-entropy of the labeled pixels over all classes.

    Forward and backward together allocate O(P D + C D) and a fixed work buffer. Differentiable once.

    Args:
        pixel_embeddings: (P, D) float; used as they are, normalize them beforehand.
        class_embeddings: (C, D) float; likewise.
        target: (P,) int64, the class of each pixel, 0..C-1, or `ignore_index`.
        temperature: divides the similarities; the paper multiplies by 20, so 0.05.
        similarity: "distance" or "cosine".
        ignore_index: target of pixels that take no part.
        work_bytes: size of the work buffer in bytes (the fused CUDA kernels need none).

    Returns:
        Scalar in float32 (float64 for float64 inputs): zero, with zero gradients, if no pixel is labeled.

    Raises:
        ValueError: shapes that do not fit together, an unknown similarity, a temperature that is not
            positive; a target outside its range (with the fused CUDA kernels the loss is NaN instead, since
            looking for it would stall the GPU).
    """
    check_loss_inputs(pixel_embeddings, class_embeddings, target, temperature, similarity)
    fused = fused_kernels(pixel_embeddings, class_embeddings)
    if fused is not None:
        return fused.fused_exact_cross_entropy(
            to_kernel_dtype(pixel_embeddings),
            to_kernel_dtype(class_embeddings),
            target,
            temperature=temperature,
            similarity=similarity,
            ignore_index=ignore_index,
        )
    check_target(target, len(class_embeddings), ignore_index)
    return ExactCrossEntropy.apply(
        pixel_embeddings,
        class_embeddings,
        target,
        None,
        temperature,
        similarity,
        ignore_index,
        work_bytes,
        torch.is_grad_enabled(),
    )


@torch.compiler.disable
def exact_cross_entropy_of_maps(
    pixel_embeddings: Tensor,
    class_embeddings: Tensor,
    target: Tensor,
    *,
    pixels: Tensor | None = None,
    temperature: float = 0.05,
    similarity: Similarity = "distance",
    ignore_index: int = -1,
    work_bytes: int = WORK_BYTES,
) -> Tensor:
    """Compute `exact_cross_entropy` at the target's resolution, of embeddings at a lower one.

    They are upsampled bilinearly (not normalized again), a few pixels at a time: on CUDA folded into the
    fused kernels, elsewhere by `models.tiled.cross_entropy_of_maps`, fastest where H and W are the same multiple of h and w.

    Args:
        pixel_embeddings: (N, D, h, w) float.
        class_embeddings: (C, D) float.
        target: (N, H, W) int64, 0..C-1 or `ignore_index`.
        pixels: (B,) int64 in 0..N * H * W - 1, the only ones that take part, all of them labeled; or None
            for all that are labeled.
        temperature: divides the similarities.
        similarity: "distance" or "cosine".
        ignore_index: target of pixels that take no part.
        work_bytes: size of the work buffer in bytes.

    Returns:
        Scalar, as `exact_cross_entropy`.

    Raises:
        ValueError: as `exact_cross_entropy`.
    """
    if pixel_embeddings.dim() != 4 or target.dim() != 3 or len(pixel_embeddings) != len(target):
        raise ValueError(
            f"pixel_embeddings has shape {tuple(pixel_embeddings.shape)} and target {tuple(target.shape)}; "
            "allowed are (N, D, h, w) and (N, H, W)"
        )
    some_rows = pixel_embeddings[:0].movedim(1, -1).flatten(0, 2)  # (0, D): what can be checked of the maps
    check_loss_inputs(some_rows, class_embeddings, target.flatten()[:0], temperature, similarity)
    fused = fused_kernels(pixel_embeddings, class_embeddings)
    if fused is not None and pixels is not None:
        rows = rows_of_pixels(pixel_embeddings, target.shape[1:], pixels)
        return exact_cross_entropy(
            rows,
            class_embeddings,
            target.flatten()[pixels],
            temperature=temperature,
            similarity=similarity,
            ignore_index=ignore_index,
        )
    if fused is not None:
        return fused.fused_exact_cross_entropy_upsampled(
            to_kernel_dtype(pixel_embeddings),
            to_kernel_dtype(class_embeddings),
            target,
            temperature=temperature,
            similarity=similarity,
            ignore_index=ignore_index,
            work_bytes=work_bytes,
        )
    check_target(target, len(class_embeddings), ignore_index)
    return ExactCrossEntropyOfMaps.apply(
        pixel_embeddings,
        class_embeddings,
        target,
        pixels,
        temperature,
        similarity,
        ignore_index,
        work_bytes,
        torch.is_grad_enabled(),
    )
