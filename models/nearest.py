"""Find the classes nearest to each pixel, without scores of all pixels and all classes.

One search serves the paper's hard negatives (`losses.knn`), the separation term and prediction.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .embeddings import (
    WORK_BYTES,
    Similarity,
    check_embeddings,
    check_similarity,
    full_precision,
    never_compiled,
)
from .fused import MAX_NEAREST, fused_nearest_classes, supports, to_kernel_dtype
from .tiled.search import search_nearest


@never_compiled
@torch.no_grad()
def nearest_classes(
    pixel_embeddings: Tensor,
    class_embeddings: Tensor,
    k: int,
    *,
    similarity: Similarity = "distance",
    work_bytes: int = WORK_BYTES,
) -> Tensor:
    """Find the k classes most similar to each pixel, without gradient.

    Classes at exactly the same distance are listed in the order of their ids (which of them are listed, when
    only some fit, is left open). Inputs of lower precision are compared in float32. Distances closer to each
    other than the rounding of their squares, about 1e-7 for unit vectors, may change places.

    Args:
        pixel_embeddings: (P, D), any floating dtype.
        class_embeddings: (C, D), on the same device.
        k: classes to return for each pixel, 1..C.
        similarity: "distance" (Euclidean, smallest first) or "cosine" (inner product, largest first).
        work_bytes: size of the work buffer in bytes. It bounds the memory beyond inputs and result.

    Returns:
        (P, k) int64 class indices, nearest first.

    Raises:
        ValueError: shapes that do not fit together, `k` outside 1..C, unknown `similarity`.
    """
    check_embeddings(pixel_embeddings, class_embeddings)
    check_similarity(similarity)
    num_classes = len(class_embeddings)
    if not 1 <= k <= num_classes:
        raise ValueError(f"k is {k}; allowed are 1 to {num_classes}, the number of classes")
    if k <= MAX_NEAREST and supports(pixel_embeddings, class_embeddings):
        embeddings = to_kernel_dtype(pixel_embeddings), to_kernel_dtype(class_embeddings)
        return fused_nearest_classes(*embeddings, k, similarity=similarity)
    with full_precision(pixel_embeddings):
        return search_nearest(pixel_embeddings, class_embeddings, k, similarity, work_bytes)
