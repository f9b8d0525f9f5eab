"""Compare the pixels of cells with their targets and the classes of the largest logits besides.

The classes that were nearest to the pixel before are looked at first. The least of their logits is a bound:
of the others, those above it are few, and are found by the largest of each block of classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .launch import kernel
from .machine_code import compiled
from .parts import (
    FAR,
    LOG2E,
    MOST_BITS,
    exp2,
    f32,
    from_order,
    in_order,
    interpolate_down,
    log_sum,
    scatter,
)

_BLOCK = 64  # classes


@compiled
def _interpolate_across(left: np.ndarray, right: np.ndarray, across: Any, out: np.ndarray) -> Any:
    """Interpolate a row's logits between its ends to a pixel; return the largest, NaN if one of them is."""
    found = np.int32(~MOST_BITS)
    for c in range(out.shape[0]):
        logit = left[c] + (right[c] - left[c]) * across
        out[c] = logit
        number = in_order(logit)
        found = number if number > found else found
    return from_order(found)


@compiled
def _insert(logit: Any, class_id: int, place: int, logits: np.ndarray, ids: np.ndarray) -> None:
    """Insert a class into a descending list: what is at `place` is lost, what is before it may move there."""
    while place > 0 and logit > logits[place - 1]:
        logits[place], ids[place] = logits[place - 1], ids[place - 1]
        place -= 1
    logits[place], ids[place] = logit, class_id


@compiled
def _find_nearest(
    ends: np.ndarray, across: Any, scores: np.ndarray, before: np.ndarray, hidden: np.ndarray,
    logits: np.ndarray, ids: np.ndarray,
) -> None:  # fmt: skip
    """Find the classes of the largest logits of a pixel between two ends.

    Args:
        ends: (2, C) logits of the ends; the same afterwards.
        across: weight of the right end.
        scores: (_BLOCK,), for work.
        before: (K,), for work.
        hidden: (2, K), for work.
        logits: (K,), written, descending; -FAR of classes without one.
        ids: (K,) different classes, those of the pixel before; overwritten by this pixel's.
    """
    left, right, last = ends[0], ends[1], ids.shape[0] - 1
    # 1. Put the classes of the pixel before in order, and hide them.
    for place in range(ids.shape[0]):
        before[place] = ids[place]
    for place in range(ids.shape[0]):
        class_id = before[place]
        hidden[0, place], hidden[1, place] = left[class_id], right[class_id]
        logit = left[class_id] + (right[class_id] - left[class_id]) * across
        _insert(logit if logit > -FAR else -FAR, class_id, place, logits, ids)
        left[class_id] = right[class_id] = -FAR
    # 2. Take what is larger from the others.
    for start in range(0, left.shape[0], _BLOCK):
        of_left, of_right = left[start : start + _BLOCK], right[start : start + _BLOCK]
        of_block = scores[: of_left.shape[0]]
        if _interpolate_across(of_left, of_right, across, of_block) <= logits[last]:
            continue
        for c in range(of_block.shape[0]):
            if of_block[c] > logits[last]:
                _insert(of_block[c], start + c, last, logits, ids)
    # 3. Show them again.
    for place in range(before.shape[0]):
        left[before[place]], right[before[place]] = hidden[0, place], hidden[1, place]


@kernel(
    "float64(float32[:,::1], int64[:,:,::1], int64, int64[::1], int64[::1], int64[::1], float32[::1], "
    "float32[::1], float32[:,::1], float32[:,::1], float32[:,::1], int64[:,::1])"
)
def cells_of_nearest(
    low: np.ndarray,
    target: np.ndarray,
    ignore_index: int,
    block: np.ndarray,
    row_starts: np.ndarray,
    column_starts: np.ndarray,
    down: np.ndarray,
    across: np.ndarray,
    weights: np.ndarray,
    work: np.ndarray,
    kept: np.ndarray,
    ids: np.ndarray,
) -> float:
    """Add the weights of the targets and their nearest others to those at low resolution.

    Args:
        low: (q, C) logits to base 2 of the block's corners.
        target: (N, H, W).
        ignore_index: target of pixels that take no part.
        block: image, first row and column of cells, rows and columns.
        row_starts: (h + 1,) the first row of pixels in each row of cells.
        column_starts: likewise, (w + 1,).
        down: (H,) weight of the lower corners.
        across: (W,) weight of the right corners.
        weights: (q, C), added to; (0, 0) where none are wanted.
        work: (3, C), of which the last is used up to a block of classes.
        kept: (3, K), for work.
        ids: (2, K), of which the first are different classes; for work.

    Returns:
        The sum of the losses; NaN where fewer than K other classes have a logit.
    """
    image, first_row, first_column, rows, columns = block[0], block[1], block[2], block[3], block[4]
    ends, left, right = work[:2], work[0], work[1]
    hidden, logits, nearest = kept[:2], kept[2], ids[0]
    loss = 0.0
    for cell in range(rows * columns):
        row, column = cell // columns, cell % columns
        corner = row * (columns + 1) + column
        below = corner + columns + 1
        for y in range(row_starts[first_row + row], row_starts[first_row + row + 1]):
            ready = False
            for x in range(column_starts[first_column + column], column_starts[first_column + column + 1]):
                own, weight = target[image, y, x], across[x]
                if own == ignore_index:
                    continue
                if not ready:
                    interpolate_down(low, corner, below, down[y], ends)
                    ready = True
                # 1. The target, kept out of the search.
                own_left, own_right = left[own], right[own]
                logit = own_left + (own_right - own_left) * weight
                left[own] = right[own] = -FAR
                _find_nearest(ends, weight, work[2], ids[1], hidden, logits, nearest)
                left[own], right[own] = own_left, own_right
                # 2. The exponentials and the loss.
                if not logits[nearest.shape[0] - 1] > -FAR:
                    logit = f32(np.nan)
                shift = logit if logit > logits[0] else logits[0]
                others = 0.0
                for place in range(nearest.shape[0]):
                    logits[place] = exp2(logits[place] - shift)
                    others += logits[place]
                of_target = float(exp2(logit - shift))
                loss += log_sum(others, of_target, (shift - logit) / LOG2E)
                # 3. The weights.
                if weights.shape[0] == 0:
                    continue
                multiplier = f32(1 / (others + of_target))
                for place in range(nearest.shape[0]):
                    value = logits[place] * multiplier
                    scatter(value, corner, below, down[y], weight, weights[:, nearest[place]])
                scatter(-f32(others) * multiplier, corner, below, down[y], weight, weights[:, own])
    return loss
