"""Losses between pixel embeddings and class embeddings, in memory that does not grow with pixels x classes.

A logit is -|e - w| / temperature ("distance", Jain et al., ICCV 2021) or e.w / temperature ("cosine").
`exact_cross_entropy` compares every pixel with every class. `knn_cross_entropy` is the paper's approximation,
`sampled_cross_entropy` the usual one for very many classes. The paper's loss mends two things of its released
code: a class is never its own negative, and ignored pixels take no part.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.exact import ExactCrossEntropy
from models.exact_maps import ExactCrossEntropyOfMaps
from models.knn import KnnCrossEntropy
from models.nearest import (
    WORK_BYTES,
    Similarity,
    check_embeddings,
    check_similarity,
    fused_kernels,
    nearest_classes,
    to_kernel_dtype,
)
from models.upsampling import rows_of_pixels

_SEPARATION_BYTES = 2**21  # of pairs of classes there are few; a larger buffer would only show in the peak


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
    """Compute the mean cross-entropy of the labelled pixels over all classes.

    Forward and backward together allocate O(P D + C D) and a fixed work buffer. Differentiable once.

    Args:
        pixel_embeddings: (P, D) float; used as they are, normalise them beforehand.
        class_embeddings: (C, D) float; likewise.
        target: (P,) int64, the class of each pixel, 0..C-1, or `ignore_index`.
        temperature: divides the similarities; the paper multiplies by 20, so 0.05.
        similarity: "distance" or "cosine".
        ignore_index: target of pixels that take no part.
        work_bytes: size of the work buffer in bytes (the fused CUDA kernels need none).

    Returns:
        Scalar in float32 (float64 for float64 inputs): zero, with zero gradients, if no pixel is labelled.

    Raises:
        ValueError: shapes that do not fit together, an unknown similarity, a temperature that is not
            positive; a target outside its range (with the fused CUDA kernels the loss is NaN instead, since
            looking for it would stall the GPU).
    """
    _check(pixel_embeddings, class_embeddings, target, temperature, similarity)
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
    _check_classes(target, len(class_embeddings), ignore_index)
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

    They are upsampled bilinearly (not normalised again), a few pixels at a time: on CUDA folded into the
    fused kernels, elsewhere by `models.exact_maps`, fastest where H and W are the same multiple of h and w.

    Args:
        pixel_embeddings: (N, D, h, w) float.
        class_embeddings: (C, D) float.
        target: (N, H, W) int64, 0..C-1 or `ignore_index`.
        pixels: (B,) int64 in 0..N * H * W - 1, the only ones that take part, all of them labelled; or None
            for all that are labelled.
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
    _check(some_rows, class_embeddings, target.flatten()[:0], temperature, similarity)
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
    _check_classes(target, len(class_embeddings), ignore_index)
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


@torch.compiler.disable
def knn_cross_entropy(
    pixel_embeddings: Tensor,
    class_embeddings: Tensor,
    target: Tensor,
    *,
    num_negatives: int = 7,
    temperature: float = 0.05,
    similarity: Similarity = "distance",
    ignore_index: int = -1,
    work_bytes: int = WORK_BYTES,
) -> Tensor:
    """Compute the paper's loss: cross-entropy over the target and the classes nearest to each pixel.

    num_negatives + 1 classes are searched; the target is dropped from them, or the furthest where it is not
    among them. A lower bound of `exact_cross_entropy`, and equal to it with num_negatives = C - 1.

    Args:
        pixel_embeddings: (P, D) float.
        class_embeddings: (C, D) float.
        target: (P,) int64, 0..C-1 or `ignore_index`.
        num_negatives: K, other classes a pixel is compared with; at most C - 1 are used.
        temperature: divides the similarities.
        similarity: "distance" or "cosine", of the search and of the logits.
        ignore_index: target of pixels that take no part.
        work_bytes: size of the work buffer in bytes.

    Returns:
        Scalar, as `exact_cross_entropy`.

    Raises:
        ValueError: as `exact_cross_entropy`, and `num_negatives` below 1.
    """
    _check(pixel_embeddings, class_embeddings, target, temperature, similarity)
    _check_classes(target, len(class_embeddings), ignore_index)
    _check_num_negatives(num_negatives)
    return KnnCrossEntropy.apply(
        pixel_embeddings,
        class_embeddings,
        target,
        min(num_negatives, len(class_embeddings) - 1),
        temperature,
        similarity,
        ignore_index,
        work_bytes,
        torch.is_grad_enabled(),
    )


@torch.compiler.disable
def sampled_cross_entropy(
    pixel_embeddings: Tensor,
    class_embeddings: Tensor,
    target: Tensor,
    *,
    num_negatives: int = 256,
    generator: torch.Generator | None = None,
    temperature: float = 0.05,
    similarity: Similarity = "distance",
    ignore_index: int = -1,
    work_bytes: int = WORK_BYTES,
) -> Tensor:
    """Compute cross-entropy over the classes present in the batch and a sample of the others.

    All pixels share the sample, drawn evenly and without replacement. Each drawn class stands for several
    that were not, so -log(probability of being drawn) is added to its logits: the sum of exponentials is
    then right on average. A pixel's target is never its own negative. With all other classes drawn, and so
    always with num_negatives >= C - 1, this equals `exact_cross_entropy`.

    Args:
        pixel_embeddings: (P, D) float.
        class_embeddings: (C, D) float.
        target: (P,) int64, 0..C-1 or `ignore_index`.
        num_negatives: K, classes drawn from those that no labelled pixel has; at most all of them.
        generator: source of the draw, on any device; the default generator where None.
        temperature: divides the similarities.
        similarity: "distance" or "cosine".
        ignore_index: target of pixels that take no part.
        work_bytes: size of the work buffer in bytes.

    Returns:
        Scalar, as `exact_cross_entropy`.

    Raises:
        ValueError: as `exact_cross_entropy`, and `num_negatives` below 1.
    """
    _check(pixel_embeddings, class_embeddings, target, temperature, similarity)
    _check_classes(target, len(class_embeddings), ignore_index)
    _check_num_negatives(num_negatives)
    device, num_classes = class_embeddings.device, len(class_embeddings)
    labelled = target[target != ignore_index]
    present = torch.zeros(num_classes, dtype=torch.bool, device=device)
    present[labelled] = True
    absent = (~present).nonzero()[:, 0]
    draw_device = device if generator is None else generator.device
    order = torch.randperm(len(absent), generator=generator, device=draw_device)[:num_negatives]
    drawn = absent[order.to(device)]
    kept = torch.cat([present.nonzero()[:, 0], drawn])  # (U + K,)
    offsets = class_embeddings.new_zeros(len(kept), dtype=torch.float32)
    if len(drawn) > 0:
        offsets[-len(drawn) :] = math.log(len(absent) / len(drawn))
    places = torch.zeros(num_classes, dtype=torch.int64, device=device)
    places[kept] = torch.arange(len(kept), device=device)
    kept_target = torch.full_like(target, -1)
    kept_target[target != ignore_index] = places[labelled]
    return ExactCrossEntropy.apply(
        pixel_embeddings,
        class_embeddings[kept],
        kept_target,
        offsets,
        temperature,
        similarity,
        -1,
        work_bytes,
        torch.is_grad_enabled(),
    )


def separation_loss(
    class_embeddings: Tensor, *, min_separation: float = 0.2, work_bytes: int = WORK_BYTES
) -> Tensor:
    """Compute (1/C) sum over c of max(0, min_separation - distance from c to the nearest other class).

    The nearest is searched without a C x C matrix, and the gradient goes to both classes of a pair. Two
    classes at the very same place get none: no direction leads apart.

    Args:
        class_embeddings: (C, D) float.
        min_separation: least wanted Euclidean distance between two classes; the paper's code has 0.2.
        work_bytes: size of the work buffer of the search in bytes; no more than 2 MiB are used.

    Returns:
        Scalar; zero for a single class.

    Raises:
        ValueError: class_embeddings is not (C, D) floating, or min_separation is not positive.
    """
    check_embeddings(class_embeddings, class_embeddings)
    if not min_separation > 0:
        raise ValueError(f"min_separation is {min_separation}; allowed are distances above 0")
    num_classes = len(class_embeddings)
    with torch.autocast(class_embeddings.device.type, enabled=False):
        classes = class_embeddings if class_embeddings.dtype == torch.float64 else class_embeddings.float()
        if num_classes == 1:
            return classes.sum() * 0
        enough = min(work_bytes, _SEPARATION_BYTES)
        two = nearest_classes(class_embeddings, class_embeddings, 2, work_bytes=enough)
        own = torch.arange(num_classes, device=two.device)
        other = torch.where(two[:, 0] == own, two[:, 1], two[:, 0])
        distances = torch.linalg.vector_norm(classes - classes[other], dim=1)
        return (min_separation - distances).clamp_min(0).mean()


def _check(
    pixel_embeddings: Tensor,
    class_embeddings: Tensor,
    target: Tensor,
    temperature: float,
    similarity: str,
) -> None:
    check_embeddings(pixel_embeddings, class_embeddings)
    check_similarity(similarity)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; allowed are finite numbers above 0")
    if target.dtype != torch.int64 or target.shape != pixel_embeddings.shape[:1]:
        raise ValueError(
            f"target has shape {tuple(target.shape)} and dtype {target.dtype}; expected is "
            f"({len(pixel_embeddings)},) int64, one class for each row of pixel_embeddings"
        )
    if target.device != pixel_embeddings.device:
        raise ValueError(f"target is on {target.device}, the embeddings are on {pixel_embeddings.device}")


def _check_classes(target: Tensor, num_classes: int, ignore_index: int) -> None:
    """Looks at every target, for which the host waits: the fused kernels answer with NaN instead."""
    if target.numel() == 0:
        return
    lowest, highest = target.masked_fill(target == ignore_index, 0).aminmax()
    wrong = int(lowest) if lowest < 0 else int(highest)
    if not 0 <= wrong < num_classes:
        raise ValueError(
            f"target contains {wrong}; allowed are 0 to {num_classes - 1} and ignore_index {ignore_index}"
        )


def _check_num_negatives(num_negatives: int) -> None:
    if num_negatives < 1:
        raise ValueError(f"num_negatives is {num_negatives}; allowed are 1 and more")
