"""Search the nearest classes of each pixel tile by tile: one matrix product and a selection per tile."""

from __future__ import annotations

import torch
from torch import Tensor

from ..embeddings import compute_dtype
from .threads import for_each, num_workers, pieces_of

_GROUP = 16  # classes whose smallest score is looked at before the classes themselves


def search_nearest(pixels: Tensor, classes: Tensor, k: int, similarity: str, work_bytes: int) -> Tensor:
    """Find the k nearest classes of each pixel; `models.nearest.nearest_classes` checks its inputs.

    Args:
        pixels: (P, D) float.
        classes: (C, D) float.
        k: 1..C.
        similarity: "distance" or "cosine".
        work_bytes: size of the work buffer in bytes.

    Returns:
        (P, k) int64, nearest first.
    """
    dtype = compute_dtype(pixels, classes)
    keys = _class_keys(classes.to(dtype), similarity)  # (C', D+1)
    num_pixels, num_classes, num_keys = len(pixels), len(classes), len(keys)
    found = pixels.new_empty((num_pixels, k), dtype=torch.int64)
    workers = num_workers(pixels.device, pieces_of(num_pixels, num_classes), work_bytes)
    # A quarter of the buffer for scores; the rest for the copies that the selection makes.
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
        # A pixel of NaN has no nearest class, and the padding may be listed: return ids that exist.
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
    num_padding = -len(classes) % _GROUP
    if num_padding == 0:
        return keys
    padding = keys.new_zeros(num_padding, keys.shape[1])
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
    """Return the k best of two lists; `more_ids` are all larger than `ids`."""
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
