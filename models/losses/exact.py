"""Compute the cross-entropy over all classes, without the pixels x classes matrix.

A logit is -|e - w| / temperature ("distance", Jain et al., ICCV 2021) or e.w / temperature ("dot"), plus a
bias. With "dot", the embeddings may be the features that go into the last layer of any network, a linear
layer or a 1 x 1 convolution, with its weight as class embeddings and its bias. The loss is then the one that
the network would have had from its logits, upsampled or not. Triton kernels (`fused`) are used where they
apply, tiles in plain torch (`tiled`) elsewhere.
"""

from __future__ import annotations

import dataclasses
import functools

from torch import Tensor, nn

from ..compiled import cross_entropy as compiled_rows
from ..compiled import cross_entropy_of_maps as compiled_maps
from ..embeddings import (
    IGNORE_INDEX,
    WORK_BYTES,
    LossOptions,
    Reduction,
    Similarity,
    check_class_vectors,
    check_maps,
    check_rows,
    check_target,
    class_matrix,
    default_temperature,
    never_compiled,
)
from ..fused import fused_exact_cross_entropy, to_kernel_dtypes
from ..gradients import Compute, keep_gradients
from ..implementation import implementation_for
from ..tiled import cross_entropy as tiled_rows
from ..tiled import cross_entropy_of_maps as tiled_maps
from ..upsampling import rows_of_pixels


@never_compiled
def exact_cross_entropy(
    embeddings: Tensor,
    class_embeddings: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    pixels: Tensor | None = None,
    temperature: float | None = None,
    similarity: Similarity = "distance",
    align_corners: bool = False,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    ignore_index: int = IGNORE_INDEX,
    work_bytes: int = WORK_BYTES,
) -> Tensor:
    """Compute the mean cross-entropy of the labeled pixels over all classes.

    Forward and backward together allocate O(P D + C D) and a fixed work buffer. Differentiable once.

    Takes rows (P, D), or maps (N, D, h, w) with a target of any size (N, H, W). Maps are upsampled bilinearly
    to the target's size (not normalized again), a few pixels at a time. This is fastest where H and W are the
    same multiple of h and w and corners are not aligned.

    Args:
        embeddings: (P, D) or (N, D, h, w) float, any D; used as they are, normalize them beforehand.
        class_embeddings: (C, D) float, or the weight (C, D, 1, 1) of a 1 x 1 convolution; likewise.
        target: (P,) or (N, H, W) int64, the class of each pixel, 0..C-1, or `ignore_index`.
        bias: (C,) float, added to the logits.
        pixels: for maps only: (B,) int64 in 0..N * H * W - 1, the only pixels that take part, all labeled;
            None for all labeled pixels.
        temperature: divides the similarities, not the bias. None is 1 for "dot", and 0.05 for "distance" and
            "cosine": the paper multiplies by 20.
        similarity: "distance", "dot", or "cosine", which is "dot" of vectors that you normalized.
        align_corners: how maps are upsampled, as in `torch.nn.functional.interpolate`.
        class_weights: (C,) float, weights of the classes, as `weight` of `torch.nn.functional.cross_entropy`.
        label_smoothing: share of the target spread evenly over all classes; for inner products only.
        reduction: "mean" or "sum".
        ignore_index: target of pixels that take no part.
        work_bytes: size of the work buffer in bytes (for rows, the CUDA kernels need none).

    Returns:
        Scalar in float32 (float64 for float64 inputs): zero, with zero gradients, if no pixel counts.

    Raises:
        ValueError: shapes that do not fit together, an option outside its range, label smoothing of
            distances; a target outside its range (with the CUDA kernels the loss is NaN instead, since
            checking the target would stall the GPU).
    """
    if temperature is None:
        temperature = default_temperature(similarity)
    options = LossOptions(
        temperature, similarity, ignore_index, work_bytes, label_smoothing, reduction, align_corners
    )
    table = class_matrix(class_embeddings)
    is_map = embeddings.dim() == 4
    (check_maps if is_map else check_rows)(embeddings, table, target)
    check_class_vectors(len(table), embeddings, bias=bias, class_weights=class_weights)
    if not is_map and pixels is not None:
        raise ValueError(
            "pixels chooses among the pixels of maps (N, D, h, w); of rows (P, D) pass only those that count"
        )
    if not is_map and align_corners:
        raise ValueError("align_corners is for maps (N, D, h, w); rows (P, D) are not upsampled")
    with_bias = bias is not None and similarity == "distance"  # only inner products have it in a kernel
    plain = class_weights is None and not with_bias and _is_plain(options)
    implementation = implementation_for(embeddings, table, fused_knows=plain)
    if implementation == "fused":
        if pixels is not None:
            embeddings = rows_of_pixels(embeddings, target.shape[1:], pixels)
            target = target.flatten()[pixels]
        return fused_exact_cross_entropy(*to_kernel_dtypes(embeddings, table), target, options, bias)
    check_target(target, len(table), ignore_index)
    compute: Compute
    if is_map:
        of_maps = compiled_maps if implementation == "compiled" else tiled_maps
        compute = functools.partial(
            of_maps.cross_entropy_of_maps,
            target=target,
            pixels=pixels,
            class_weights=class_weights,
            options=options,
        )
    else:
        of_rows = compiled_rows if implementation == "compiled" else tiled_rows
        compute = functools.partial(
            of_rows.cross_entropy_of_rows, target=target, class_weights=class_weights, options=options
        )
    return keep_gradients(compute, embeddings, table, bias)


exact_cross_entropy_of_maps = exact_cross_entropy
"""Alias, kept for one release: `exact_cross_entropy` takes maps itself."""


def _is_plain(options: LossOptions) -> bool:
    """Tell whether the kernels know these options."""
    return not options.label_smoothing and options.reduction == "mean" and not options.align_corners


class EmbeddingCrossEntropy(nn.Module):
    """Compute `exact_cross_entropy` as a module, as `torch.nn.CrossEntropyLoss` does of logits.

    The module has no parameters: class embeddings and bias are inputs, learned elsewhere (`EmbeddingHead`, or
    the last layer of your network).

    Args:
        temperature: divides the similarities; None as for the function.
        similarity: "distance", "dot" or "cosine".
        align_corners: how maps are upsampled.
        class_weights: (C,) float, weights of the classes; a buffer of the module.
        label_smoothing: share of the target spread evenly over all classes; for inner products only.
        reduction: "mean" or "sum".
        ignore_index: target of pixels that take no part.
        work_bytes: size of the work buffer in bytes.

    Raises:
        ValueError: as `exact_cross_entropy`, for options outside their range.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        *,
        temperature: float | None = None,
        similarity: Similarity = "distance",
        align_corners: bool = False,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
        ignore_index: int = IGNORE_INDEX,
        work_bytes: int = WORK_BYTES,
    ) -> None:
        super().__init__()
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.options = LossOptions(
            default_temperature(similarity) if temperature is None else temperature,
            similarity,
            ignore_index,
            work_bytes,
            label_smoothing,
            reduction,
            align_corners,
        )

    def forward(
        self, embeddings: Tensor, class_embeddings: Tensor, target: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """Compute the loss of rows (P, D) or maps (N, D, h, w), as `exact_cross_entropy`."""
        return exact_cross_entropy(
            embeddings,
            class_embeddings,
            target,
            bias=bias,
            class_weights=self.class_weights,
            **dataclasses.asdict(self.options),
        )

    def extra_repr(self) -> str:
        """Show the options that decide the value."""
        options = self.options
        shown = f"temperature={options.temperature}, similarity={options.similarity!r}"
        if options.label_smoothing:
            shown += f", label_smoothing={options.label_smoothing}"
        return f"{shown}, ignore_index={options.ignore_index}"
