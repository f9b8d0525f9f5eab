"""Compute losses of inner products and the weights of their gradients.

A weight is p, the softmax over all classes, and p - 1 for the target. The target is kept out of the sum of
the exponentials and added apart: then 1 - p of the target is no difference of two numbers close to one.

Every number of a pixel's loss is multiplied by its target's factor, from class weights and label smoothing
(`models.tiled.dot_tiles`); `smooth` is S there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .launch import kernel
from .machine_code import compiled
from .parts import (
    ABOVE,
    CHUNK,
    FAR,
    GROUP,
    LOG2E,
    MOST_ABOVE,
    ONE,
    ZERO,
    exp2,
    interpolate,
    interpolate_down,
    largest,
    log_sum,
    scatter,
    scatter_group,
)


@compiled
def _exp_interpolated(left: np.ndarray, right: np.ndarray, across: Any, shift: Any, out: np.ndarray) -> float:
    """Interpolate logits across, write their exponentials and return the sum of these."""
    total = 0.0
    for start in range(0, out.shape[0], CHUNK):
        of_left, of_right, part = (
            left[start : start + CHUNK],
            right[start : start + CHUNK],
            out[start : start + CHUNK],
        )
        of_part = ZERO
        for c in range(part.shape[0]):
            value = exp2(of_left[c] + (of_right[c] - of_left[c]) * across - shift)
            part[c] = value
            of_part += value
        total += of_part
    return total


@compiled
def _exp_in_place(logits: np.ndarray, shift: Any) -> float:
    """Overwrite logits by their exponentials and return the sum of these."""
    total = 0.0
    for start in range(0, logits.shape[0], CHUNK):
        part = logits[start : start + CHUNK]
        of_part = ZERO
        for c in range(part.shape[0]):
            value = exp2(part[c] - shift)
            part[c] = value
            of_part += value
        total += of_part
    return total


@compiled
def _finish(
    values: np.ndarray, target: int, others: float, logit: Any, shift: Any, factor: Any, smooth: Any
) -> tuple[float, Any]:
    """Write the target's value, and return the pixel's loss and what its values are multiplied by."""
    of_target = float(exp2(logit - shift))
    total = others + of_target
    loss = factor * log_sum(others, of_target, (shift - logit) / LOG2E) + smooth * logit / LOG2E
    multiplier = np.float32(factor / total)
    values[target] = np.float32((smooth - factor * others / total) / multiplier) if factor > ZERO else ZERO
    return loss, multiplier


@kernel("float64(float32[:,::1], int64[::1], float32[::1], float32, float32[::1])")
def rows_of_products(
    logits: np.ndarray, target: np.ndarray, factors: np.ndarray, smooth: Any, multipliers: np.ndarray
) -> float:
    """Overwrite logits by the gradients' weights, but for a multiplier of each pixel.

    Args:
        logits: (p, C) to base 2.
        target: (p,).
        factors: (C,) of the pixels with that target.
        smooth: S.
        multipliers: (p,), written.

    Returns:
        The sum of the losses.
    """
    loss = 0.0
    for row in range(logits.shape[0]):
        values, own = logits[row], target[row]
        logit = values[own]
        values[own] = -FAR
        shift = largest(values)
        shift = logit if logit > shift else shift
        others = _exp_in_place(values, shift)
        of_pixel, multipliers[row] = _finish(values, own, others, logit, shift, factors[own], smooth)
        loss += of_pixel
    return loss


@kernel(
    "float64(float32[:,::1], float32[::1], int64[:,:,::1], int64, int64[::1], int64[::1], int64[::1], "
    "float32[::1], float32[::1], float32[::1], float32, float32[:,::1], float32[::1], float32[:,::1], "
    "float32[:,::1])"
)
def cells_of_products(
    low: np.ndarray,
    bounds: np.ndarray,
    target: np.ndarray,
    ignore_index: int,
    block: np.ndarray,
    row_starts: np.ndarray,
    column_starts: np.ndarray,
    down: np.ndarray,
    across: np.ndarray,
    factors: np.ndarray,
    smooth: Any,
    weights: np.ndarray,
    coverage: np.ndarray,
    work: np.ndarray,
    of_group: np.ndarray,
) -> float:
    """Add the weights of a block of cells to those at low resolution.

    Args:
        low: (q, C) logits to base 2 of the block's corners.
        bounds: (q,) the largest of each row.
        target: (N, H, W).
        ignore_index: target of pixels that take no part.
        block: image, first row and column of cells, rows and columns.
        row_starts: (h + 1,) the first row of pixels in each row of cells.
        column_starts: likewise, (w + 1,).
        down: (H,) weight of the lower corners.
        across: (W,) weight of the right corners.
        factors: (C,) of the pixels with that target.
        smooth: S.
        weights: (q, C), added to; (0, 0) where none are wanted.
        coverage: (q,) the sums of the labeled pixels' bilinear weights, added to where S is not zero.
        work: (6, C).
        of_group: (2, GROUP), for work.

    Returns:
        The sum of the losses.
    """
    image, first_row, first_column, rows, columns = block[0], block[1], block[2], block[3], block[4]
    ends, values = work[:2], work[2:]
    left, right = ends[0], ends[1]
    loss = 0.0
    for cell in range(rows * columns):
        row, column = cell // columns, cell % columns
        corner = row * (columns + 1) + column
        below = corner + columns + 1
        start, stop = column_starts[first_column + column], column_starts[first_column + column + 1]
        for y in range(row_starts[first_row + row], row_starts[first_row + row + 1]):
            ready = False
            for first in range(start, stop, GROUP):
                labeled = False
                of_group[:] = ZERO
                last = first + GROUP if first + GROUP < stop else stop
                for x in range(first, last):
                    own, place = target[image, y, x], x - first
                    if own == ignore_index:
                        continue
                    if not ready:
                        interpolate_down(low, corner, below, down[y], ends)
                        ready = True
                    labeled = True
                    weight = across[x]
                    # 1. The target, kept out of what follows.
                    own_left, own_right = left[own], right[own]
                    logit = own_left + (own_right - own_left) * weight
                    left[own] = right[own] = -FAR
                    # 2. Exponentials, less the largest logit where the target's is far below all bounds.
                    shift = logit + ABOVE
                    if interpolate(bounds, corner, below, down[y], weight) < logit + MOST_ABOVE:
                        others = _exp_interpolated(left, right, weight, shift, values[place])
                    else:
                        for c in range(left.shape[0]):
                            values[place, c] = left[c] + (right[c] - left[c]) * weight
                        shift = largest(values[place])
                        shift = logit if logit > shift else shift
                        others = _exp_in_place(values[place], shift)
                    left[own], right[own] = own_left, own_right
                    # 3. The loss, and what brings the values to the corners.
                    of_pixel, multiplier = _finish(
                        values[place], own, others, logit, shift, factors[own], smooth
                    )
                    loss += of_pixel
                    of_group[0, place] = (ONE - weight) * multiplier
                    of_group[1, place] = weight * multiplier
                    if smooth > ZERO:
                        scatter(ONE, corner, below, down[y], weight, coverage)
                if labeled and weights.shape[0] > 0:
                    scatter_group(values, of_group, corner, below, down[y], weights)
    return loss
