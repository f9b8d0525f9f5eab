"""Search the nearest classes of each pixel: products by torch, the selection by compiled kernels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..embeddings import Similarity, full_precision
from ..tiled import search as tiled
from ..tiled.search import ClassKeys
from .grid import CellBlock, Grid, blocks_of
from .lanes import Plan, num_workers, plan, run_lanes

MOST_NEAREST = 64  # with more, keeping them sorted takes longer than `torch.topk`
_LOG2E = 1.4426950408889634
_WORK_ROWS = 3  # of all classes, that the kernel needs besides a tile


def search_nearest(pixels: Tensor, class_keys: ClassKeys, k: int, work_bytes: int) -> Tensor:
    """Find the k nearest classes of each pixel, as `models.tiled.search.search_nearest`.

    Hands over to that where a few pixels' scores of all classes exceed the work buffer, or k is large.

    Args:
        pixels: (P, D) float.
        class_keys: of the classes.
        k: 1..C.
        work_bytes: size of the work buffer in bytes.

    Returns:
        (P, k) int64, nearest first.
    """
    num_classes = class_keys.num_classes
    table = class_keys.table[:num_classes]
    cut = plan(len(pixels), num_classes, 1, work_bytes)
    if cut is None or k > min(MOST_NEAREST, max(1, num_classes // 4)):
        return tiled.search_nearest(pixels, class_keys, k, work_bytes)
    from .search_kernels import several_smallest_of_rows, smallest_of_rows

    found = pixels.new_empty((len(pixels), k), dtype=torch.int64)
    results = found.numpy()
    offsets, keys = table[:, -1], table[:, :-1].t()
    tiles = [table.new_empty((cut.rows, num_classes)) for _ in range(num_workers(cut.lanes))]

    def search(worker: int, _: int, first: int) -> None:
        chunk = pixels[first : first + cut.rows].float()
        scores = torch.addmm(offsets, chunk, keys, out=tiles[worker][: len(chunk)])
        own = results[first : first + len(chunk)]
        if k == 1:
            smallest_of_rows(scores.numpy(), own[:, 0])
        else:
            several_smallest_of_rows(scores.numpy(), own, np.empty(k, np.float32))

    run_lanes(range(0, len(pixels), cut.rows), cut.lanes, search)
    return found


@dataclass(frozen=True)
class Band:
    """Hold what was found in some rows of a picture.

    Attributes:
        rows: of the picture.
        ids: (R, W) int64, the nearest class of each pixel.
        probability: (R, W) float32, the softmax over all classes at that class; (0, 0) where not wanted.
    """

    rows: slice
    ids: Tensor
    probability: Tensor


@dataclass(frozen=True)
class Softmax:
    """Say what the softmax is taken of.

    Attributes:
        similarity: "distance", "dot" or "cosine".
        temperature: divides it; 1 with a bias.
    """

    similarity: Similarity
    temperature: float


def search_bands(
    image: Tensor,
    class_keys: ClassKeys,
    size: Sequence[int],
    *,
    align_corners: bool = False,
    softmax: Softmax | None = None,
    work_bytes: int,
) -> Iterator[Band]:
    """Find the nearest class of each pixel of an upsampled map, with scores formed at low resolution.

    `can_search` must say so. Besides the buffer, the image's map is copied.

    Args:
        image: (D, h, w) float.
        class_keys: of the classes.
        size: (H, W) of the result.
        align_corners: how the map is upsampled.
        softmax: whose probability is wanted; None for none.
        work_bytes: size of the work buffer in bytes, a quarter of it for a band.
    """
    from .search_kernels import smallest_of_cells

    num_classes = class_keys.num_classes
    table = class_keys.table[:num_classes]
    grid = Grid(image.shape[1:], size, align_corners)
    cut = _cut(class_keys, size, work_bytes)
    assert cut is not None
    offsets, keys = table[:, -1], table[:, :-1].t()
    workers = range(num_workers(cut.lanes))
    tiles = [table.new_empty((cut.rows, num_classes)) for _ in workers]
    work = [table.new_empty((_WORK_ROWS, num_classes)).numpy() for _ in workers]
    vectors = [np.empty(len(image), np.float32) for _ in workers]
    is_distance = softmax is not None and softmax.similarity == "distance"
    factor = np.float32(1 if softmax is None else _LOG2E / softmax.temperature)
    padded = grid.pad(image[None].float())[0]
    rows, columns = grid.blocks(1, cut.rows, cut.lanes)
    lines, starts = max(1, work_bytes // 4 // (12 * size[1])), grid.arrays[0]
    first = 0  # of the cuts between rows of blocks
    while first < len(rows) - 1:
        last = first + 1
        while last < len(rows) - 1 and starts[rows[last + 1]] - starts[rows[first]] <= lines:
            last += 1
        top, bottom = int(starts[rows[first]]), int(starts[rows[last]])
        ids = image.new_empty((bottom - top, size[1]), dtype=torch.int64)
        probability = torch.empty((0, 0) if softmax is None else (bottom - top, size[1]))
        results = ids.numpy(), probability.numpy()

        def search(worker: int, _: int, block: CellBlock, results: Any = results, top: int = top) -> None:
            corners = padded[block.corners[1:]].flatten(0, 1)
            place = np.array([top, *block.numbers[1:]])
            low = torch.addmm(offsets, corners, keys, out=tiles[worker][: len(corners)])
            smallest_of_cells(
                low.numpy(), corners.numpy(), place, *grid.arrays, factor, is_distance,
                work[worker], vectors[worker], *results,
            )  # fmt: skip

        with full_precision(image):
            run_lanes(list(blocks_of(1, rows[first : last + 1], columns)), cut.lanes, search)
        yield Band(slice(top, bottom), ids, probability)
        first = last


def can_search(low_res: Sequence[int], size: Sequence[int], class_keys: ClassKeys, work_bytes: int) -> bool:
    """Tell whether `search_bands` applies: the map is enlarged, and scores of some pixels fit the buffer.

    Args:
        low_res: (h, w).
        size: (H, W).
        class_keys: of the classes.
        work_bytes: size of the work buffer in bytes.
    """
    enlarges = 0 < 2 * low_res[0] * low_res[1] <= size[0] * size[1]
    return enlarges and _cut(class_keys, size, work_bytes) is not None


def _cut(class_keys: ClassKeys, size: Sequence[int], work_bytes: int) -> Plan | None:
    cut = plan(size[0] * size[1], class_keys.num_classes, 1, work_bytes * 3 // 4)
    return cut if cut is not None and cut.rows >= 4 else None
