"""Find the smallest scores of pixels.

The place of a minimum is found in vector code: minima of blocks of classes first, then the place within the
one block that has the smallest. Of equal scores the first class is found.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .launch import kernel
from .machine_code import compiled
from .parts import (
    CHUNK,
    MOST_BITS,
    ZERO,
    exp2,
    f32,
    from_order,
    in_order,
    interpolate_down,
    interpolate_pixel,
    smallest,
)

_BLOCK = 256  # classes
_SMALL_BLOCK = 32
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


@compiled
def _interpolate_across(left: np.ndarray, right: np.ndarray, across: Any, out: np.ndarray) -> Any:
    """Interpolate a row's scores between its ends to a pixel, and return the smallest."""
    found = MOST_BITS
    for c in range(out.shape[0]):
        score = left[c] + (right[c] - left[c]) * across
        out[c] = score
        number = in_order(score)
        found = number if number < found else found
    return from_order(found)


@compiled
def _place_between(left: np.ndarray, right: np.ndarray, across: Any, scores: np.ndarray) -> tuple[int, Any]:
    """Interpolate scores; return the place of the smallest, of equal ones the first, and it."""
    least, start_of_least = f32(np.inf), _NOWHERE
    for start in range(0, scores.shape[0], _BLOCK):
        part = slice(start, start + _BLOCK)
        of_block = _interpolate_across(left[part], right[part], across, scores[part])
        if of_block < least:
            least, start_of_least = of_block, start
    place = start_of_least + _place_of(scores[start_of_least : start_of_least + _BLOCK], least)
    return place, least


@compiled
def _probability(scores: np.ndarray, least: Any, factor: Any, norm: Any, is_distance: bool) -> Any:
    """Return the softmax at the smallest score: one over the sum of the exponentials less its own.

    Args:
        scores: (C,) minus inner products, or squared distances less `norm`.
        least: the smallest of them.
        factor: from distances or inner products to logits to base 2.
        norm: the pixel's squared norm.
        is_distance: whether they are squared distances.
    """
    total = 0.0
    nearest = least + norm
    nearest = np.sqrt(ZERO if nearest < ZERO else nearest)
    for start in range(0, scores.shape[0], CHUNK):
        part = scores[start : start + CHUNK]
        of_part = ZERO
        if is_distance:
            for c in range(part.shape[0]):
                square = part[c] + norm
                of_part += exp2((nearest - np.sqrt(ZERO if square < ZERO else square)) * factor)
        else:
            for c in range(part.shape[0]):
                of_part += exp2((least - part[c]) * factor)
        total += of_part
    return f32(1 / total)


@compiled
def _squared_norm(pixel: np.ndarray) -> Any:
    total = ZERO
    for d in range(pixel.shape[0]):
        total += pixel[d] * pixel[d]
    return total


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
        for start in range(0, of_row.shape[0], _SMALL_BLOCK):
            block = of_row[start : start + _SMALL_BLOCK]
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
    "void(float32[:,::1], float32[:,::1], int64[::1], int64[::1], int64[::1], float32[::1], float32[::1], "
    "float32, int64, float32[:,::1], float32[::1], int64[:,::1], float32[:,::1])"
)
def smallest_of_cells(
    low: np.ndarray,
    embeddings: np.ndarray,
    block: np.ndarray,
    row_starts: np.ndarray,
    column_starts: np.ndarray,
    down: np.ndarray,
    across: np.ndarray,
    factor: Any,
    is_distance: bool,
    work: np.ndarray,
    pixel: np.ndarray,
    found: np.ndarray,
    probability: np.ndarray,
) -> None:
    """Write the class of the smallest interpolated score of each pixel of a block of cells.

    Args:
        low: (q, C) scores of the block's corners.
        embeddings: (q, D) of the corners.
        block: first row of pixels of `found`, first row and column of cells, rows and columns.
        row_starts: (h + 1,) the first row of pixels in each row of cells.
        column_starts: likewise, (w + 1,).
        down: (H,) weight of the lower corners.
        across: (W,) weight of the right corners.
        factor: from distances or inner products to logits to base 2.
        is_distance: whether scores are squared distances less the pixel's squared norm.
        work: (3, C).
        pixel: (D,), for work.
        found: (R, W), written.
        probability: (R, W), written; (0, 0) where it is not wanted.
    """
    first_of_found, first_row, first_column, rows, columns = block[0], block[1], block[2], block[3], block[4]
    left, right, scores = work[0], work[1], work[2]
    for cell in range(rows * columns):
        row, column = cell // columns, cell % columns
        corner = row * (columns + 1) + column
        below = corner + columns + 1
        for y in range(row_starts[first_row + row], row_starts[first_row + row + 1]):
            interpolate_down(low, corner, below, down[y], work)
            line = y - first_of_found
            for x in range(column_starts[first_column + column], column_starts[first_column + column + 1]):
                place, least = _place_between(left, right, across[x], scores)
                found[line, x] = place
                if probability.shape[0] > 0:
                    norm = ZERO
                    if is_distance:
                        interpolate_pixel(embeddings, corner, below, down[y], across[x], pixel)
                        norm = _squared_norm(pixel)
                    probability[line, x] = _probability(scores, least, factor, norm, is_distance)
