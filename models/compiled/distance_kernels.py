"""Compute losses of distances and the weights of their gradients.

A weight is p / |e - w|, the softmax over all classes over the distance, and zero for the target, whose part
comes from its difference e - w: a product would lose the direction of the nearest class. The target is kept
out of the sum of the exponentials and added apart, as in `product_kernels`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .distance_parts import NEAR, exp_interpolated, exp_of_squares, finish, from_target
from .launch import kernel
from .parts import (
    ABOVE,
    FAR,
    GROUP,
    MOST_ABOVE,
    ONE,
    ZERO,
    interpolate_down,
    interpolate_pixel,
    scatter_group,
    scatter_pixel,
)

_ZERO_BITS = np.int32(0)


@kernel(
    "float64(float32[:,::1], float32[:,::1], float32[:,::1], float32[::1], int64[::1], float32[::1], "
    "float32, float32[::1], float32[:,::1], float32[:,::1], float32[::1])"
)
def rows_of_distances(
    squares: np.ndarray,
    pixels: np.ndarray,
    classes: np.ndarray,
    bias: np.ndarray,
    target: np.ndarray,
    factors: np.ndarray,
    largest_norm: Any,
    multipliers: np.ndarray,
    gradient: np.ndarray,
    sums: np.ndarray,
    inverses: np.ndarray,
) -> float:
    """Overwrite squared distances by the gradients' weights, but for a multiplier of each pixel.

    Args:
        squares: (p, C), less the squared norms of the pixels.
        pixels: (p, D).
        classes: (C, D).
        bias: (C,) to base 2.
        target: (p,).
        factors: (C,) of the pixels with that target.
        largest_norm: the largest squared norm of a class.
        multipliers: (p,), written.
        gradient: (p, D), written: that of the pixels without the products of weights and classes.
        sums: (C, D) the gradient of the classes, of which the targets' own part is added; (0, 0) for none.
        inverses: (C,), for work.

    Returns:
        The sum of the losses.
    """
    loss = 0.0
    nothing = gradient[0, :0]
    for row in range(squares.shape[0]):
        own, pixel, direction = target[row], pixels[row], gradient[row]
        distance, norm = from_target(pixel, classes[own], direction)
        logit = bias[own] - distance
        total, weights, shift = exp_of_squares(
            squares[row], inverses, bias, pixel, classes, norm, largest_norm, own, logit
        )
        of_class = sums[own] if sums.shape[0] > 0 else nothing
        of_pixel, multipliers[row] = finish(
            total, weights, logit, shift, factors[own], pixel, direction, of_class
        )
        loss += of_pixel
    return loss


@kernel(
    "float64(float32[:,::1], float32[:,::1], float32[:,::1], float32[::1], int64, "
    "int64[:,:,::1], int64, int64[::1], int64[::1], int64[::1], float32[::1], float32[::1], float32[::1], "
    "float32, float32[:,::1], float32[:,::1], float32[:,::1], float32[:,::1], float32[:,::1], float32[:,::1])"
)
def cells_of_distances(
    low: np.ndarray,
    embeddings: np.ndarray,
    classes: np.ndarray,
    bias: np.ndarray,
    has_bias: bool,
    target: np.ndarray,
    ignore_index: int,
    block: np.ndarray,
    row_starts: np.ndarray,
    column_starts: np.ndarray,
    down: np.ndarray,
    across: np.ndarray,
    factors: np.ndarray,
    largest_norm: Any,
    weights: np.ndarray,
    gradient: np.ndarray,
    sums: np.ndarray,
    work: np.ndarray,
    vectors: np.ndarray,
    of_group: np.ndarray,
) -> float:
    """Add the weights of a block of cells to those at low resolution.

    Args:
        low: (q, C) squared distances of the block's corners, less the squared norms of the corners.
        embeddings: (q, D) of the corners.
        classes: (C, D).
        bias: (C,) to base 2.
        has_bias: whether any is not zero.
        target: (N, H, W).
        ignore_index: target of pixels that take no part.
        block: image, first row and column of cells, rows and columns.
        row_starts: (h + 1,) the first row of pixels in each row of cells.
        column_starts: likewise, (w + 1,).
        down: (H,) weight of the lower corners.
        across: (W,) weight of the right corners.
        factors: (C,) of the pixels with that target.
        largest_norm: the largest squared norm of a class.
        weights: (q, C), added to; (0, 0) where no gradient is wanted.
        gradient: (q, D) of the corners, added to: without the products of weights and classes.
        sums: as for rows.
        work: (7, C).
        vectors: (2, D), for work.
        of_group: (2, GROUP), for work.

    Returns:
        The sum of the losses.
    """
    image, first_row, first_column, rows, columns = block[0], block[1], block[2], block[3], block[4]
    ends, values, inverses = work[:2], work[2:6], work[6]
    left, right = ends[0], ends[1]
    pixel, direction = vectors[0], vectors[1]
    nothing = pixel[:0]
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
                    weight, out = across[x], values[place]
                    # 1. The pixel itself and its target, kept out of what follows.
                    interpolate_pixel(embeddings, corner, below, down[y], weight, pixel)
                    distance, norm = from_target(pixel, classes[own], direction)
                    logit = bias[own] - distance
                    own_left, own_right = left[own], right[own]
                    left[own] = right[own] = FAR
                    # 2. Exponentials, unless the target is very far, or another class very near.
                    shift, near = logit + ABOVE, NEAR * (norm + largest_norm)
                    total = weights_sum = 0.0
                    smallest = _ZERO_BITS
                    if logit > -MOST_ABOVE and not has_bias:
                        total, weights_sum, smallest = exp_interpolated(left, right, weight, norm, shift, out)
                    if smallest <= np.float32(near).view(np.int32):
                        for c in range(out.shape[0]):
                            out[c] = left[c] + (right[c] - left[c]) * weight
                        total, weights_sum, shift = exp_of_squares(
                            out, inverses, bias, pixel, classes, norm, largest_norm, own, logit
                        )
                    left[own], right[own] = own_left, own_right
                    # 3. The loss, the pixel's own part of the gradients, and its values' factors.
                    of_class = sums[own] if sums.shape[0] > 0 else nothing
                    of_pixel, multiplier = finish(
                        total, weights_sum, logit, shift, factors[own], pixel, direction, of_class
                    )
                    loss += of_pixel
                    scatter_pixel(direction, corner, below, down[y], weight, gradient)
                    of_group[0, place] = (ONE - weight) * multiplier
                    of_group[1, place] = weight * multiplier
                if labeled and weights.shape[0] > 0:
                    scatter_group(values, of_group, corner, below, down[y], weights)
    return loss
