"""Share work out to threads such that the result does not depend on their number.

The pieces of work are dealt out to lanes, whose number depends on the sizes only. A lane takes its pieces in
their order and keeps sums of its own, which are added in the order of the lanes. So it does not matter which
thread works on a lane; each takes the next that nobody has taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from ..tiled.threads import for_each, pieces_of

MOST_LANES = 8
_LEAST_LANE_BYTES = 2**22
_TILE_BYTES = 2**21  # of logits: half of it passes through the second-level cache at a time
_ENOUGH_ROWS, _FEWEST_ROWS = 20, 8  # in a tile: with fewer, the products with all classes take the time
SPARE_ROWS = 7  # rows of all classes that the kernels need besides a tile
Piece = TypeVar("Piece")


@dataclass(frozen=True)
class Plan:
    """Say how work is cut.

    Attributes:
        lanes: how many.
        rows: logits of all classes that a lane holds at a time, a tile of rows x C.
    """

    lanes: int
    rows: int


def plan(num_pixels: int, num_classes: int, dim: int, work_bytes: int) -> Plan | None:
    """Cut the comparison of pixels with classes such that all lanes fit one work buffer.

    Args:
        num_pixels: that are compared.
        num_classes: C.
        dim: D.
        work_bytes: size of the buffer. The lanes' sums (C, D) come on top of it, at most as much again.

    Returns:
        None where so few rows of all classes fit that tiles of some classes are better (`models.tiled`).
    """
    row_bytes, sum_bytes = 4 * num_classes, 4 * num_classes * (dim + 2)
    most = min(MOST_LANES, pieces_of(num_pixels, num_classes))
    lanes = max(1, min(most, work_bytes // max(_LEAST_LANE_BYTES, sum_bytes)))
    while lanes > 2 and work_bytes // lanes < (_ENOUGH_ROWS + SPARE_ROWS) * row_bytes:
        lanes //= 2
    share = work_bytes // lanes
    per_row = row_bytes + 16 * (dim + 2)  # logits; embedding, gradient and what is copied for products
    fitting = (share - SPARE_ROWS * row_bytes) // per_row
    rows = min(fitting, max(_ENOUGH_ROWS, _TILE_BYTES // row_bytes), max(_FEWEST_ROWS, num_pixels))
    return None if rows < min(_FEWEST_ROWS, num_pixels) else Plan(lanes, rows)


def run_lanes(pieces: Sequence[Piece], lanes: int, work: Callable[[int, int, Piece], None]) -> None:
    """Call `work(worker, lane, piece)` for every piece, piece i on lane i modulo `lanes`, in threads.

    Each thread works with one of torch's threads, so that products are the same with any number of them.

    Args:
        pieces: of work.
        lanes: how many.
        work: is called with the number of the thread, 0 to `num_workers(lanes)` - 1.
    """
    waiting = iter(range(lanes))

    def take(worker: int, _: int) -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for lane in waiting:  # the interpreter's lock makes taking the next one safe
                for piece in pieces[lane::lanes]:
                    work(worker, lane, piece)
        except BaseException:
            for _ in waiting:  # nobody takes another one
                pass
            raise
        finally:
            torch.set_num_threads(threads)

    workers = num_workers(lanes)
    for_each(range(workers), take, workers)


def num_workers(lanes: int) -> int:
    """Count the threads that work on so many lanes."""
    return max(1, min(lanes, torch.get_num_threads()))
