"""The classes nearest to each pixel, searched tile by tile.

One search serves the paper's hard negatives (`models.losses.knn.knn_cross_entropy`), the separation term and
prediction. Scores exist for one tile of pixels x classes at a time, never for all pixels and all classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .embeddings import WORK_BYTES, Similarity, check_embeddings, check_similarity, full_precision
from .fused.launch import fused_kernels, to_kernel_dtype
from .tiled.search import _search


@torch.compiler.disable
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
    only some fit, is left open). Inputs of lower precision are compared in float32; distances closer to each
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
    fused = fused_kernels(pixel_embeddings, class_embeddings)
    if fused is not None and k <= fused.MAX_NEAREST:
        return fused.fused_nearest_classes(
            to_kernel_dtype(pixel_embeddings), to_kernel_dtype(class_embeddings), k, similarity=similarity
        )
    with full_precision(pixel_embeddings):
        return _search(pixel_embeddings, class_embeddings, k, similarity, work_bytes)
