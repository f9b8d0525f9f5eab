"""Find the smallest scores of pixels. Importing this needs numba.

The place of a minimum is found in vector code: minima of blocks of classes first, then the place within the
one block that has the smallest. Of equal scores the first class is found.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .launch import kernel
from .parts import compiled, f32, interpolate_down, smallest

_BLOCK = 128  # classes
_NOWHERE: Any = np.int64(0)  # of a pixel that is not a number


@compiled
def _place_of(values: np.ndarray, wanted: Any) -> int:
    """Return the first place of a value that is there."""
    for place in range(values.shape[0]):
        if values[place] == wanted:
            return place
    return _NOWHERE


@compiled
def _place_of_smallest(scores: np.ndarray) -> int:
    """Return the place of the smallest score, of equal ones the first."""
    least, start_of_least = f32(np.inf), _NOWHERE
    for start in range(0, scores.shape[0], _BLOCK):
        of_block = smallest(scores[start : start + _BLOCK])
        if of_block < least:
            least, start_of_least = of_block, start
    return start_of_least + _place_of(scores[start_of_least : start_of_least + _BLOCK], least)


@kernel("void(float32[:,::1], int64[::1])")
def smallest_of_rows(scores: np.ndarray, found: np.ndarray) -> None:
    """Write the place of the smallest of each row of (p, C) scores to (p,)."""
    for row in range(scores.shape[0]):
        found[row] = _place_of_smallest(scores[row])


@kernel("void(float32[:,::1], int64[:,::1], float32[::1])")
def several_smallest_of_rows(scores: np.ndarray, found: np.ndarray, kept: np.ndarray) -> None:
    """Write the places of the k smallest of each row of (p, C) scores to (p, k), ascending.

    Args:
        scores: (p, C), C at least k.
        found: (p, k).
        kept: (k,), for work.
    """
    k = kept.shape[0]
    for row in range(scores.shape[0]):
        of_row, places = scores[row], found[row]
        kept[:] = f32(np.inf)
        places[:] = -1
        for start in range(0, of_row.shape[0], 16):
            block = of_row[start : start + 16]
            if not smallest(block) < kept[k - 1]:
                continue
            for c in range(block.shape[0]):
                score = block[c]
                if score < kept[k - 1]:
                    place = k - 1
                    while place > 0 and score < kept[place - 1]:
                        kept[place], places[place] = kept[place - 1], places[place - 1]
                        place -= 1
                    kept[place], places[place] = score, start + c
        for place in range(k):  # of scores that are no numbers: other classes
            if places[place] < 0:
                _fill(places, place)


@compiled
def _fill(places: np.ndarray, place: int) -> None:
    """Write the first class that is not among the places."""
    candidate = 0
    while True:
        taken = False
        for other in range(places.shape[0]):
            taken = taken or places[other] == candidate
        if not taken:
            places[place] = candidate
            return
        candidate += 1


@kernel(
    "void(float32[:,::1], int64[::1], int64[::1], int64[::1], float32[::1], float32[::1], float32[:,::1], "
    "int64[:,:,::1])"
)
def smallest_of_cells(
    low: np.ndarray,
    block: np.ndarray,
    row_starts: np.ndarray,
    column_starts: np.ndarray,
    down: np.ndarray,
    across: np.ndarray,
    work: np.ndarray,
    found: np.ndarray,
) -> None:
    """Write the class of the smallest interpolated score of each pixel of a block of cells.

    Args:
        low: (q, C) scores of the block's corners.
        block: image, first row and column of cells, rows and columns.
        row_starts: (h + 1,) the first row of pixels in each row of cells.
        column_starts: likewise, (w + 1,).
        down: (H,) weight of the lower corners.
        across: (W,) weight of the right corners.
        work: (3, C).
        found: (N, H, W), written.
    """
    image, first_row, first_column, rows, columns = block[0], block[1], block[2], block[3], block[4]
    left, right, scores = work[0], work[1], work[2]
    for cell in range(rows * columns):
        row, column = cell // columns, cell % columns
        corner = row * (columns + 1) + column
        below = corner + columns + 1
        for y in range(row_starts[first_row + row], row_starts[first_row + row + 1]):
            interpolate_down(low, corner, below, down[y], work)
            for x in range(column_starts[first_column + column], column_starts[first_column + column + 1]):
                weight = across[x]
                for c in range(scores.shape[0]):
                    scores[c] = left[c] + (right[c] - left[c]) * weight
                found[image, y, x] = _place_of_smallest(scores)
