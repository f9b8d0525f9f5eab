"""The classes nearest to each pixel, searched tile by tile.

One search serves the paper's hard negatives (`models.losses.knn_cross_entropy`), the separation term and
prediction. Scores exist for one tile of pixels x classes at a time, never for all pixels and all classes.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from models.threads import for_each, num_workers, pieces_of

Similarity = Literal["distance", "cosine"]

SIMILARITIES = ("distance", "cosine")
WORK_BYTES = 32 * 2**20
"""Default work buffer: what a search or a loss may hold besides its inputs, results and gradients."""

_GROUP = 16  # classes whose smallest score is looked at before the classes themselves


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


def check_embeddings(pixel_embeddings: Tensor, class_embeddings: Tensor) -> None:
    """Refuse embeddings that are not (P, D) and (C, D) with the same D, floating, on one device."""
    for name, tensor in (("pixel_embeddings", pixel_embeddings), ("class_embeddings", class_embeddings)):
        if tensor.dim() != 2 or not tensor.is_floating_point():
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}; "
                "allowed is a floating (rows, embedding_dim) tensor"
            )
    if pixel_embeddings.shape[1] != class_embeddings.shape[1]:
        raise ValueError(
            f"pixel_embeddings have {pixel_embeddings.shape[1]} channels and class_embeddings "
            f"{class_embeddings.shape[1]}; both must have the same embedding_dim"
        )
    if pixel_embeddings.device != class_embeddings.device:
        raise ValueError(
            f"pixel_embeddings are on {pixel_embeddings.device} and class_embeddings on "
            f"{class_embeddings.device}; move one of them"
        )
    if len(class_embeddings) == 0:
        raise ValueError("class_embeddings has no rows; at least one class is needed")


def check_similarity(similarity: str) -> None:
    """Refuse a similarity other than the two known ones."""
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity is {similarity!r}; allowed are {', '.join(map(repr, SIMILARITIES))}")


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Tell the dtype to accumulate in: float64 where an input has it, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


@contextmanager
def full_precision(tensor: Tensor) -> Iterator[None]:
    """Keep float32 products exact on the tensor's device: no autocast, no TensorFloat32.

    A squared distance is a difference of products; with ten bits of mantissa little of it would be left.
    """
    before = torch.get_float32_matmul_precision()
    if before != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(tensor.device.type, enabled=False):
            yield
    finally:
        if before != "highest":
            torch.set_float32_matmul_precision(before)


def fused_kernels(pixel_embeddings: Tensor, class_embeddings: Tensor) -> ModuleType | None:
    """Return `models.fused` where its kernels can take these tensors, else None.

    They need CUDA, triton and 4 to 256 channels, and accumulate in float32, so float64 stays in torch.
    """
    if not pixel_embeddings.is_cuda or not 4 <= pixel_embeddings.shape[1] <= 256:
        return None
    if compute_dtype(pixel_embeddings, class_embeddings) == torch.float64:
        return None
    if importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("models.fused")


def to_kernel_dtype(tensor: Tensor) -> Tensor:
    """Return the tensor as the kernels read it: float16 as float32, everything else unchanged."""
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def _search(pixels: Tensor, classes: Tensor, k: int, similarity: str, work_bytes: int) -> Tensor:
    dtype = compute_dtype(pixels, classes)
    keys = _class_keys(classes.to(dtype), similarity)  # (C', D+1)
    num_pixels, num_classes, num_keys = len(pixels), len(classes), len(keys)
    found = pixels.new_empty((num_pixels, k), dtype=torch.int64)
    workers = num_workers(pixels.device, pieces_of(num_pixels, num_classes), work_bytes)
    # A quarter of the buffer for scores; the rest for what the selection makes of them.
    tile_elements = max(1, work_bytes // workers // 4 // keys.element_size())
    columns = min(num_keys, max(_GROUP, tile_elements // 256 // _GROUP * _GROUP))
    rows = max(1, min(-(-num_pixels // workers), tile_elements // max(columns, 4 * k)))
    buffers = [keys.new_empty(rows * columns) for _ in range(workers)]

    def search(worker: int, first: int) -> None:
        chunk = pixels[first : first + rows].to(dtype)
        queries = torch.cat([chunk, chunk.new_ones(len(chunk), 1)], dim=1)  # (p, D+1)
        best_scores = best_ids = None
        for start in range(0, num_keys, columns):
            block = keys[start : start + columns]
            scores = buffers[worker][: len(chunk) * len(block)].view(len(chunk), len(block))
            torch.mm(queries, block.t(), out=scores)
            tile_scores, tile_ids = _smallest(scores, min(k, num_classes - start, len(block)))
            tile_ids += start
            if best_scores is None or best_ids is None:
                best_scores, best_ids = tile_scores, tile_ids
            else:
                best_scores, best_ids = _merge(best_scores, best_ids, tile_scores, tile_ids, k)
        assert best_ids is not None
        # Of pixels that are not numbers no class is nearest, and the padding may be listed.
        found[first : first + rows] = best_ids.clamp_max_(num_classes - 1)

    for_each(range(0, num_pixels, rows), search, workers)
    return found


def _class_keys(classes: Tensor, similarity: str) -> Tensor:
    """Make rows whose product with (e, 1) grows with the distance: (C', D+1), C padded to whole groups.

    |e - w|^2 and |w|^2 - 2 e.w order classes alike, and the latter is a single matrix product.
    """
    if similarity == "distance":
        keys = torch.cat([-2 * classes, classes.square().sum(dim=1, keepdim=True)], dim=1)
    else:
        keys = torch.cat([-classes, classes.new_zeros(len(classes), 1)], dim=1)
    missing = -len(classes) % _GROUP
    if missing == 0:
        return keys
    padding = keys.new_zeros(missing, keys.shape[1])
    padding[:, -1] = torch.finfo(keys.dtype).max  # further away than any class
    return torch.cat([keys, padding])


def _smallest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k smallest scores of each row and their columns, ascending, equal ones by column.

    The k smallest lie in the k groups with the smallest minima, so the slow selection sees only those. A
    group is every G-th column: then the minima are taken over whole rows at a time.
    """
    num_rows, num_columns = scores.shape
    num_groups = num_columns // _GROUP
    if k * 4 > num_groups:
        values, columns = scores.topk(k, dim=1, largest=False)
    else:
        minima = scores.view(num_rows, _GROUP, num_groups).amin(dim=1)  # (p, G)
        groups = minima.topk(k, dim=1, largest=False).indices  # (p, k)
        steps = torch.arange(_GROUP, device=scores.device) * num_groups
        candidates = (groups[:, :, None] + steps).flatten(1)  # (p, k * _GROUP)
        values, order = scores.gather(1, candidates).topk(k, dim=1, largest=False)
        columns = candidates.gather(1, order)
    return _by_score_then_id(values, columns)


def _merge(
    scores: Tensor, ids: Tensor, more_scores: Tensor, more_ids: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    scores, ids = torch.cat([scores, more_scores], dim=1), torch.cat([ids, more_ids], dim=1)
    order = scores.argsort(dim=1, stable=True)[:, :k]  # the earlier tile, of lower ids, comes first
    return scores.gather(1, order), ids.gather(1, order)


def _by_score_then_id(scores: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    if ids.shape[1] == 1:
        return scores, ids
    ids, order = ids.sort(dim=1)
    scores = scores.gather(1, order)
    scores, order = scores.sort(dim=1, stable=True)
    return scores, ids.gather(1, order)
