"""Search the nearest classes of each pixel tile by tile: one matrix product and a selection per tile."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..embeddings import compute_dtype
from ..upsampling import CellUpsampling
from .threads import for_each, num_workers, pieces_of

_GROUP = 16  # classes whose smallest score is looked at before the classes themselves


@dataclass(frozen=True)
class ClassKeys:
    """Hold what pixels are multiplied with in a search.

    Attributes:
        table: (C', D+1), whose product with (e, 1) grows with the distance; C padded to whole groups.
        num_classes: C.
    """

    table: Tensor
    num_classes: int


def search_nearest(pixels: Tensor, class_keys: ClassKeys, k: int, work_bytes: int) -> Tensor:
    """Find the k nearest classes of each pixel; `models.nearest.nearest_classes` checks its inputs.

    Args:
        pixels: (P, D) float.
        class_keys: of the classes.
        k: 1..C.
        work_bytes: size of the work buffer in bytes.

    Returns:
        (P, k) int64, nearest first.
    """
    keys, num_classes = class_keys.table, class_keys.num_classes
    dtype, num_pixels, num_keys = keys.dtype, len(pixels), len(keys)
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
            if k == 1:
                tile_scores, tile_ids = (column[:, None] for column in _best(scores))
            else:
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


def search_cells(image: Tensor, class_keys: ClassKeys, factor: int, work_bytes: int, out: Tensor) -> None:
    """Find the nearest class of each pixel of a map upsampled by a whole factor.

    Scores are formed at low resolution and interpolated, a block of cells (`CellUpsampling`) at a time.

    Args:
        image: (D, h, w) float.
        class_keys: of the classes.
        factor: s.
        work_bytes: size of the work buffer in bytes.
        out: (s h, s w) int64, to write to.
    """
    keys = class_keys.table
    height, width = image.shape[1] + 1, image.shape[2] + 1  # in cells
    workers = num_workers(image.device, pieces_of(out.numel(), len(keys)), work_bytes)
    # A quarter of a worker's part for the scores of a tile; the rest for its parts and for the selection.
    tile_elements = max(1, work_bytes // workers // 4 // keys.element_size())
    columns = min(len(keys), max(_GROUP, tile_elements // (2 * factor**2) // _GROUP * _GROUP))
    cells = max(1, tile_elements // (factor**2 * columns))
    block_width = min(width, max(1, math.isqrt(cells)))
    block_height = min(height, max(1, cells // block_width))
    padded = (
        F.pad(image.to(keys.dtype)[None], (1, 1, 1, 1), mode="replicate")[0].permute(1, 2, 0).contiguous()
    )
    found = out.new_empty(height, factor, width, factor)  # with what lies outside of the image

    def search(_: int, corner: tuple[int, int]) -> None:
        rows = slice(corner[0], min(corner[0] + block_height, height))
        cols = slice(corner[1], min(corner[1] + block_width, width))
        shape = rows.stop - rows.start, cols.stop - cols.start
        upsampling = CellUpsampling(factor, shape, padded)
        pixels = padded[rows.start : rows.stop + 1, cols.start : cols.stop + 1].flatten(0, 1)  # (q, D)
        best_scores = best_ids = None
        for start in range(0, len(keys), columns):
            block = keys[start : start + columns]
            low_res = torch.addmm(block[:, -1], pixels, block[:, :-1].t())  # (q, c)
            scores, ids = _best(upsampling.upsample(low_res))
            ids += start
            if best_scores is None or best_ids is None:
                best_scores, best_ids = scores, ids
            else:
                better = scores < best_scores  # of equal ones the earlier, of lower id, stays
                best_scores, best_ids = scores.where(better, best_scores), ids.where(better, best_ids)
        assert best_ids is not None
        # A pixel of NaN has no nearest class, and the padding may be listed: return ids that exist.
        best_ids.clamp_max_(class_keys.num_classes - 1)
        found[rows, :, cols] = best_ids.view(factor, factor, *shape).permute(2, 0, 3, 1)

    corners = [(row, col) for row in range(0, height, block_height) for col in range(0, width, block_width)]
    for_each(corners, search, workers)
    before = factor - factor // 2
    whole = found.view(height * factor, width * factor)
    out.copy_(whole[before : before + out.shape[0], before : before + out.shape[1]])


def class_keys(like: Tensor, classes: Tensor, bias: Tensor | None, similarity: str) -> ClassKeys:
    """Make rows whose product with (e, 1) grows with the distance.

    |e - w|^2 and |w|^2 - 2 e.w order classes alike, and the latter is a single matrix product.

    Args:
        like: pixels (P, D) that will be compared, for the dtype.
        classes: (C, D).
        bias: (C,) added to inner products; or None.
        similarity: "distance", "dot" or "cosine".
    """
    classes = classes.to(compute_dtype(like, classes))
    if similarity == "distance":
        keys = torch.cat([-2 * classes, classes.square().sum(dim=1, keepdim=True)], dim=1)
    else:
        last = classes.new_zeros(len(classes)) if bias is None else -bias.to(classes.dtype)
        keys = torch.cat([-classes, last[:, None]], dim=1)
    num_padding = -len(classes) % _GROUP
    padding = keys.new_zeros(num_padding, keys.shape[1])
    padding[:, -1] = torch.finfo(keys.dtype).max  # further away than any class
    return ClassKeys(torch.cat([keys, padding]) if num_padding else keys, len(classes))


def _best(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest score of each row (p,) and its column, of equal ones the first.

    Looks for the smallest of groups of columns first: that is a plain minimum over whole rows, which is much
    faster than one that tells the place.
    """
    num_rows, num_columns = scores.shape
    num_groups = num_columns // _GROUP
    if num_groups < 4:
        values, columns = scores.min(dim=1)
        return values, columns
    grouped = scores.view(num_rows, _GROUP, num_groups)
    minima = grouped.amin(dim=1)  # (p, G)
    groups = minima.argmin(dim=1)
    values, places = grouped.gather(2, groups[:, None, None].expand(-1, _GROUP, 1))[:, :, 0].min(dim=1)
    columns = places * num_groups + groups
    several = ((minima == values[:, None]).sum(dim=1) > 1).nonzero()[:, 0]
    for rows in several.split(max(1, num_rows // 8)) if len(several) else ():
        columns[rows] = scores[rows].min(dim=1)[1]
    return values, columns


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
