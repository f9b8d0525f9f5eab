"""Find the classes nearest to each pixel, without scores of all pixels and all classes.

One search serves the paper's hard negatives (`losses.knn`), the separation term and prediction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .compiled import search as compiled_search
from .embeddings import (
    WORK_BYTES,
    Similarity,
    check_class_vectors,
    check_embeddings,
    check_search_bias,
    check_similarity,
    class_matrix,
    full_precision,
    never_compiled,
)
from .fused import MAX_NEAREST, fused_classes_of_map, fused_nearest_classes, to_kernel_dtypes
from .implementation import implementation_for
from .tiled import search as tiled_search
from .tiled.search import class_keys, search_cells
from .upsampling import rows_of_pixels, whole_factor


@never_compiled
@torch.no_grad()
def nearest_classes(
    pixel_embeddings: Tensor,
    class_embeddings: Tensor,
    k: int,
    *,
    bias: Tensor | None = None,
    similarity: Similarity = "distance",
    work_bytes: int = WORK_BYTES,
) -> Tensor:
    """Find the k classes most similar to each pixel, without gradient.

    Classes at exactly the same distance are listed in the order of their ids (which of them are listed, when
    only some fit, is left open). Inputs of lower precision are compared in float32. Distances closer to each
    other than the rounding of their squares, about 1e-7 for unit vectors, may change places.

    Args:
        pixel_embeddings: (P, D), any floating dtype.
        class_embeddings: (C, D), or the weight (C, D, 1, 1) of a 1 x 1 convolution, on the same device.
        k: classes to return for each pixel, 1..C.
        bias: (C,) float, added to inner products.
        similarity: "distance" (Euclidean, smallest first), "dot" or "cosine" (inner product, largest first).
        work_bytes: size of the work buffer in bytes. It bounds the memory beyond inputs and result.

    Returns:
        (P, k) int64 class indices, nearest first.

    Raises:
        ValueError: shapes that do not fit together, `k` outside 1..C, unknown `similarity`, a bias of
            distances.
    """
    class_embeddings = class_matrix(class_embeddings)
    check_embeddings(pixel_embeddings, class_embeddings)
    check_similarity(similarity)
    check_search_bias(similarity, bias)
    check_class_vectors(len(class_embeddings), pixel_embeddings, bias=bias)
    num_classes = len(class_embeddings)
    if not 1 <= k <= num_classes:
        raise ValueError(f"k is {k}; allowed are 1 to {num_classes}, the number of classes")
    fused_knows = k <= MAX_NEAREST
    implementation = implementation_for(pixel_embeddings, class_embeddings, fused_knows=fused_knows)
    if implementation == "fused":
        embeddings = to_kernel_dtypes(pixel_embeddings, class_embeddings)
        return fused_nearest_classes(*embeddings, k, similarity=similarity, bias=bias)
    with full_precision(pixel_embeddings):
        keys = class_keys(pixel_embeddings, class_embeddings, bias, similarity)
        search = compiled_search if implementation == "compiled" else tiled_search
        return search.search_nearest(pixel_embeddings, keys, k, work_bytes)


@never_compiled
@torch.no_grad()
def predict_classes(
    embeddings: Tensor,
    class_embeddings: Tensor,
    size: Sequence[int] | None = None,
    *,
    bias: Tensor | None = None,
    similarity: Similarity = "distance",
    align_corners: bool = False,
    work_bytes: int = WORK_BYTES,
) -> Tensor:
    """Find the nearest class of every pixel at full resolution, the argmax of a network's upsampled logits.

    With "dot", the embeddings are the features that go into the last layer of any network, a 1 x 1
    convolution, and its weight and bias are the class embeddings and the bias. Scores exist for a few pixels
    at a time. Where H and W are the same multiple of h and w, they are multiplied at low resolution and
    interpolated, as the logits of a network are.

    Args:
        embeddings: (N, D, h, w), any floating dtype.
        class_embeddings: (C, D), or the weight (C, D, 1, 1) of a 1 x 1 convolution, on the same device.
        size: (H, W) of the result; None for (h, w).
        bias: (C,) float, added to inner products.
        similarity: "distance", "dot" or "cosine", as of `nearest_classes`.
        align_corners: how maps are upsampled, as in `torch.nn.functional.interpolate`.
        work_bytes: size of the work buffer in bytes. Besides it, one image's map and result are copied.

    Returns:
        (N, H, W) int64 class indices.

    Raises:
        ValueError: as `nearest_classes`.
    """
    class_embeddings = class_matrix(class_embeddings)
    if embeddings.dim() != 4:
        raise ValueError(f"embeddings has shape {tuple(embeddings.shape)}; allowed is (N, D, h, w)")
    check_embeddings(embeddings[:0].movedim(1, -1).flatten(0, 2), class_embeddings)
    check_similarity(similarity)
    check_search_bias(similarity, bias)
    check_class_vectors(len(class_embeddings), embeddings, bias=bias)
    low_res = embeddings.shape[2:]
    height, width = size if size is not None else low_res
    full_res = (height, width)
    factor = None if align_corners else whole_factor(low_res, full_res)
    implementation = implementation_for(embeddings, class_embeddings)
    if implementation == "fused" and not align_corners:
        maps, table = to_kernel_dtypes(embeddings, class_embeddings)
        result = torch.empty((len(maps), *full_res), dtype=torch.int64, device=maps.device)
        for image, of_image in zip(maps, result, strict=True):
            of_image.copy_(
                fused_classes_of_map(
                    image, table, full_res, similarity=similarity, bias=bias, work_bytes=work_bytes
                )
            )
        return result
    search = compiled_search if implementation == "compiled" else tiled_search
    with full_precision(embeddings):
        keys = class_keys(embeddings, class_embeddings, bias, similarity)
        found = embeddings.new_empty((len(embeddings), *full_res), dtype=torch.int64)
        compiled = implementation == "compiled" and compiled_search.can_search(
            low_res, full_res, keys, work_bytes
        )
        for image, of_image in zip(embeddings, found, strict=True):
            if compiled:
                for band in compiled_search.search_bands(
                    image, keys, full_res, align_corners=align_corners, work_bytes=work_bytes
                ):
                    of_image[band.rows] = band.ids
                continue
            if factor is not None and factor > 1 and implementation == "tiled":
                search_cells(image, keys, factor, work_bytes, out=of_image)
                continue
            for pixels, rows in _bands(image, full_res, align_corners, work_bytes):
                if implementation == "fused":
                    nearest = nearest_classes(rows, class_embeddings, 1, bias=bias, similarity=similarity)
                else:
                    nearest = search.search_nearest(rows, keys, 1, work_bytes // 2)
                of_image.view(-1)[pixels] = nearest[:, 0]
    return found


def _bands(
    image: Tensor, size: Sequence[int], align_corners: bool, work_bytes: int
) -> Iterator[tuple[slice, Tensor]]:
    """Interpolate (D, h, w) to rows (p, D), some pixels at a time, and tell which they are."""
    total, dim = size[0] * size[1], image.shape[0]
    maps = image[None].contiguous(memory_format=torch.channels_last)  # copied once, not for every band
    step = max(1, work_bytes // 2 // (4 * dim + 64) // 4)
    for first in range(0, total, step):
        pixels = torch.arange(first, min(first + step, total), device=image.device)
        rows = rows_of_pixels(maps, size, pixels, align_corners=align_corners)
        yield slice(first, first + step), rows
