"""Compute cross-entropy over the classes present in a batch and a random sample of the others."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from ..compiled import cross_entropy as compiled_rows
from ..embeddings import (
    IGNORE_INDEX,
    WORK_BYTES,
    LossOptions,
    Similarity,
    check_class_vectors,
    check_rows,
    check_target,
    class_matrix,
    default_temperature,
    never_compiled,
)
from ..gradients import keep_gradients
from ..implementation import implementation_for
from ..tiled import cross_entropy as tiled_rows
from .knn import check_num_negatives


@never_compiled
def sampled_cross_entropy(
    embeddings: Tensor,
    class_embeddings: Tensor,
    target: Tensor,
    *,
    num_negatives: int = 256,
    generator: torch.Generator | None = None,
    bias: Tensor | None = None,
    temperature: float | None = None,
    similarity: Similarity = "distance",
    ignore_index: int = IGNORE_INDEX,
    work_bytes: int = WORK_BYTES,
) -> Tensor:
    """Compute cross-entropy over the classes present in the batch and a sample of the others.

    All pixels share the sample, drawn evenly and without replacement. Each drawn class stands for several
    that were not, so -log(probability of being drawn) is added to its logits: the sum of exponentials is
    then right on average. A pixel's target is never its own negative. With all other classes drawn, and so
    always with num_negatives >= C - 1, this equals `exact_cross_entropy`.

    Args:
        embeddings: (P, D) float.
        class_embeddings: (C, D) float.
        target: (P,) int64, 0..C-1 or `ignore_index`.
        num_negatives: K, classes drawn from those that no labeled pixel has; at most all of them.
        generator: source of the draw, on any device; the default generator where None.
        bias: (C,) float, added to the logits.
        temperature: divides the similarities; None as for `exact_cross_entropy`.
        similarity: "distance", "dot" or "cosine".
        ignore_index: target of pixels that take no part.
        work_bytes: size of the work buffer in bytes.

    Returns:
        Scalar, as `exact_cross_entropy`.

    Raises:
        ValueError: as `exact_cross_entropy`, and `num_negatives` below 1.
    """
    class_embeddings = class_matrix(class_embeddings)
    temperature = default_temperature(similarity) if temperature is None else temperature
    options = LossOptions(temperature, similarity, IGNORE_INDEX, work_bytes)
    check_rows(embeddings, class_embeddings, target)
    check_class_vectors(len(class_embeddings), embeddings, bias=bias)
    check_target(target, len(class_embeddings), ignore_index)
    check_num_negatives(num_negatives)
    device, num_classes = class_embeddings.device, len(class_embeddings)
    labeled = target[target != ignore_index]
    present = torch.zeros(num_classes, dtype=torch.bool, device=device)
    present[labeled] = True
    absent = (~present).nonzero()[:, 0]
    draw_device = device if generator is None else generator.device
    order = torch.randperm(len(absent), generator=generator, device=draw_device)[:num_negatives]
    drawn = absent[order.to(device)]
    kept = torch.cat([present.nonzero()[:, 0], drawn])  # (U + K,)
    offsets = class_embeddings.new_zeros(len(kept), dtype=torch.float32)
    if len(drawn) > 0:
        offsets[-len(drawn) :] = math.log(len(absent) / len(drawn))
    index_among_kept = torch.zeros(num_classes, dtype=torch.int64, device=device)
    index_among_kept[kept] = torch.arange(len(kept), device=device)
    kept_target = torch.full_like(target, options.ignore_index)
    kept_target[target != ignore_index] = index_among_kept[labeled]
    offsets = offsets if bias is None else bias[kept] + offsets
    table = class_embeddings[kept]
    name = implementation_for(embeddings, table, fused_knows=False)
    of_rows = compiled_rows if name == "compiled" else tiled_rows
    compute = functools.partial(
        of_rows.cross_entropy_of_rows, target=kept_target, class_weights=None, options=options
    )
    return keep_gradients(compute, embeddings, table, offsets)
