"""Search the nearest classes of each pixel: products by torch, the selection by compiled kernels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..tiled import search as tiled
from ..tiled.search import ClassKeys
from .grid import CellBlock, Grid, blocks_of
from .lanes import num_workers, plan, run_lanes

MOST_NEAREST = 64  # with more, keeping them sorted takes longer than `torch.topk`
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


def search_maps(
    embeddings: Tensor,
    class_keys: ClassKeys,
    size: Sequence[int],
    align_corners: bool,
    work_bytes: int,
) -> Tensor | None:
    """Find the nearest class of each pixel of upsampled maps, with scores formed at low resolution.

    Args:
        embeddings: (N, D, h, w) float.
        class_keys: of the classes.
        size: (H, W) of the result.
        align_corners: how maps are upsampled.
        work_bytes: size of the work buffer in bytes.

    Returns:
        (N, H, W) int64; None where the maps are not enlarged, or few scores fit the work buffer.
    """
    num_classes = class_keys.num_classes
    table = class_keys.table[:num_classes]
    grid = Grid(embeddings.shape[2:], size, align_corners)
    found = embeddings.new_empty((len(embeddings), *size), dtype=torch.int64)
    cut = plan(found.numel(), num_classes, 1, work_bytes)
    if cut is None or cut.rows < 4 or not grid.enlarges:
        return None
    from .search_kernels import smallest_of_cells

    offsets, keys = table[:, -1], table[:, :-1].t()
    workers = range(num_workers(cut.lanes))
    tiles = [table.new_empty((cut.rows, num_classes)) for _ in workers]
    work = [table.new_empty((_WORK_ROWS, num_classes)).numpy() for _ in workers]
    result = found.numpy()
    for number, image in enumerate(embeddings):  # one by one: an image's map is copied
        padded = grid.pad(image[None].float())[0]

        def search(worker: int, _: int, block: CellBlock, padded: Tensor = padded) -> None:
            corners = padded[block.corners[1:]].flatten(0, 1)
            low = torch.addmm(offsets, corners, keys, out=tiles[worker][: len(corners)])
            smallest_of_cells(low.numpy(), block.numbers, *grid.arrays, work[worker], result)

        rows, columns = grid.blocks(1, cut.rows, cut.lanes)
        blocks = [CellBlock(number, block.rows, block.columns) for block in blocks_of(1, rows, columns)]
        run_lanes(blocks, cut.lanes, search)
    return found
