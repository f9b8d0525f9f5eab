"""Compute the cross-entropy of pixel embeddings over all classes, without the pixels x classes matrix.

A logit is -|e - w| / temperature ("distance", Jain et al., ICCV 2021) or e.w / temperature ("cosine"). Triton
kernels (`fused`) are used where they apply, tiles in plain torch (`tiled`) elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..embeddings import (
    WORK_BYTES,
    LossOptions,
    Similarity,
    check_maps,
    check_rows,
    check_target,
    never_compiled,
)
from ..fused import fused_exact_cross_entropy, supports, to_kernel_dtype
from ..tiled.cross_entropy import ExactCrossEntropy
from ..tiled.cross_entropy_of_maps import ExactCrossEntropyOfMaps
from ..upsampling import rows_of_pixels


@never_compiled
def exact_cross_entropy(
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
    """Compute the mean cross-entropy of the labeled pixels over all classes.

    Forward and backward together allocate O(P D + C D) and a fixed work buffer. Differentiable once.

    Takes rows (P, D), or maps (N, D, h, w) with a target of any size (N, H, W). Maps are upsampled bilinearly
    to the target's size (not normalized again), a few pixels at a time. This is fastest where H and W are the
    same multiple of h and w.

    Args:
        pixel_embeddings: (P, D) or (N, D, h, w) float; used as they are, normalize them beforehand.
        class_embeddings: (C, D) float; likewise.
        target: (P,) or (N, H, W) int64, the class of each pixel, 0..C-1, or `ignore_index`.
        pixels: for maps only: (B,) int64 in 0..N * H * W - 1, the only pixels that take part, all labeled;
            None for all labeled pixels.
        temperature: divides the similarities; the paper multiplies by 20, so 0.05.
        similarity: "distance" or "cosine".
        ignore_index: target of pixels that take no part.
        work_bytes: size of the work buffer in bytes (for rows, the CUDA kernels need none).

    Returns:
        Scalar in float32 (float64 for float64 inputs): zero, with zero gradients, if no pixel is labeled.

    Raises:
        ValueError: shapes that do not fit together, an unknown similarity, a temperature that is not
            positive; a target outside its range (with the CUDA kernels the loss is NaN instead, since
            checking the target would stall the GPU).
    """
    options = LossOptions(temperature, similarity, ignore_index, work_bytes)
    if pixel_embeddings.dim() == 4:
        return _cross_entropy_of_maps(pixel_embeddings, class_embeddings, target, pixels, options)
    if pixels is not None:
        raise ValueError(
            "pixels chooses among the pixels of maps (N, D, h, w); of rows (P, D) pass only those that count"
        )
    return _cross_entropy_of_rows(pixel_embeddings, class_embeddings, target, options)


exact_cross_entropy_of_maps = exact_cross_entropy
"""Alias, kept for one release: `exact_cross_entropy` takes maps itself."""


class EmbeddingCrossEntropy(nn.Module):
    """Compute `exact_cross_entropy` as a module, as `torch.nn.CrossEntropyLoss` does of logits.

    The module has no parameters: the class embeddings are an input, learned elsewhere (`EmbeddingHead`).

    Args:
        temperature: divides the similarities; the paper multiplies by 20, so 0.05.
        similarity: "distance" or "cosine".
        ignore_index: target of pixels that take no part.
        work_bytes: size of the work buffer in bytes.

    Raises:
        ValueError: an unknown similarity, a temperature that is not positive.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.05,
        similarity: Similarity = "distance",
        ignore_index: int = -1,
        work_bytes: int = WORK_BYTES,
    ) -> None:
        super().__init__()
        self.options = LossOptions(temperature, similarity, ignore_index, work_bytes)

    def forward(self, pixel_embeddings: Tensor, class_embeddings: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of rows (P, D) or maps (N, D, h, w), as `exact_cross_entropy`."""
        options = self.options
        return exact_cross_entropy(
            pixel_embeddings,
            class_embeddings,
            target,
            temperature=options.temperature,
            similarity=options.similarity,
            ignore_index=options.ignore_index,
            work_bytes=options.work_bytes,
        )

    def extra_repr(self) -> str:
        """Name the options that decide the value."""
        options = self.options
        return (
            f"temperature={options.temperature}, similarity={options.similarity!r}, "
            f"ignore_index={options.ignore_index}"
        )


def _cross_entropy_of_rows(
    pixel_embeddings: Tensor, class_embeddings: Tensor, target: Tensor, options: LossOptions
) -> Tensor:
    check_rows(pixel_embeddings, class_embeddings, target)
    if supports(pixel_embeddings, class_embeddings):
        embeddings = to_kernel_dtype(pixel_embeddings), to_kernel_dtype(class_embeddings)
        return fused_exact_cross_entropy(*embeddings, target, options)
    check_target(target, len(class_embeddings), options.ignore_index)
    return ExactCrossEntropy.apply(
        pixel_embeddings, class_embeddings, target, None, options, torch.is_grad_enabled()
    )


def _cross_entropy_of_maps(
    pixel_embeddings: Tensor,
    class_embeddings: Tensor,
    target: Tensor,
    pixels: Tensor | None,
    options: LossOptions,
) -> Tensor:
    check_maps(pixel_embeddings, class_embeddings, target)
    if supports(pixel_embeddings, class_embeddings):
        if pixels is not None:
            rows = rows_of_pixels(pixel_embeddings, target.shape[1:], pixels)
            return _cross_entropy_of_rows(rows, class_embeddings, target.flatten()[pixels], options)
        embeddings = to_kernel_dtype(pixel_embeddings), to_kernel_dtype(class_embeddings)
        return fused_exact_cross_entropy(*embeddings, target, options)
    check_target(target, len(class_embeddings), options.ignore_index)
    return ExactCrossEntropyOfMaps.apply(
        pixel_embeddings, class_embeddings, target, pixels, options, torch.is_grad_enabled()
    )
