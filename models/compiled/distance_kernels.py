"""Compute losses of distances and the weights of their gradients. Importing this needs numba.

A weight is p / |e - w|, the softmax over all classes over the distance, and zero for the target, whose part
comes from its difference e - w: a product would lose the direction of the nearest class. The target is kept
out of the sum of the exponentials and added apart, as in `product_kernels`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .launch import kernel
from .parts import (
    ABOVE,
    CHUNK,
    FAR,
    GROUP,
    LOG2E,
    MOST_ABOVE,
    ONE,
    ZERO,
    compiled,
    exp2,
    f32,
    interpolate_down,
    interpolate_pixel,
    largest,
    log_sum,
    scatter_group,
    scatter_pixel,
)

_TINY = f32(1e-36)
_NEAR = f32(2.0**-12)  # fraction of the squared norms below which a squared distance is from differences
_EPSILON = f32(2.0**-23)
_ZERO_BITS, _MOST_BITS = np.int32(0), np.int32(2**31 - 1)


@compiled
def _exp_interpolated(
    left: np.ndarray, right: np.ndarray, across: Any, norm: Any, shift: Any, out: np.ndarray
) -> tuple[float, float, Any]:
    """Interpolate squared distances across and write exp / distance.

    Returns:
        The sums of exp and of these, and the bits of the smallest squared distance: as integers, the minimum
        of positive numbers is the same, and one below zero is less than any.
    """
    total = weights = 0.0
    smallest = _MOST_BITS
    for start in range(0, out.shape[0], CHUNK):
        part = slice(start, start + CHUNK)
        of_left, of_right, of_out = left[part], right[part], out[part]
        of_part = weights_of_part = ZERO
        least = _MOST_BITS
        for c in range(of_out.shape[0]):
            square = of_left[c] + (of_right[c] - of_left[c]) * across + norm
            least = min(least, np.float32(square).view(np.int32))
            inverse = ONE / np.sqrt(square)
            value = exp2(-square * inverse - shift)
            of_part += value
            value *= inverse
            weights_of_part += value
            of_out[c] = value
        total += of_part
        weights += weights_of_part
        smallest = min(smallest, least)
    return total, weights, smallest


@compiled
def _exp_and_divide(logits: np.ndarray, inverses: np.ndarray, shift: Any) -> tuple[float, float]:
    """Overwrite logits by exp / distance; return the sums of exp and of these."""
    total = weights = 0.0
    for start in range(0, logits.shape[0], CHUNK):
        part, inverse = logits[start : start + CHUNK], inverses[start : start + CHUNK]
        of_part = weights_of_part = ZERO
        for c in range(part.shape[0]):
            value = exp2(part[c] - shift)
            of_part += value
            value *= inverse[c]
            weights_of_part += value
            part[c] = value
        total += of_part
        weights += weights_of_part
    return total, weights


@compiled
def _exp_of_squares(
    values: np.ndarray,
    inverses: np.ndarray,
    bias: np.ndarray,
    pixel: np.ndarray,
    classes: np.ndarray,
    norm: Any,
    largest_norm: Any,
    target: int,
    logit: Any,
) -> tuple[float, float, Any]:
    """Overwrite squared distances, but for the pixel's squared norm, by exp(logit - shift) / distance.

    Small ones lost their digits to the rounding of the squared norms: they are formed from differences.
    Within rounding of a class the direction is noise, so 1 / distance is bounded there and the gradient
    fades to zero. At distance zero it is zero.

    Returns:
        The sums of exp and of these, without the target, and the shift.
    """
    for c in range(values.shape[0]):
        square = values[c] + norm
        square = _TINY if square < _TINY else square
        inverse = ONE / np.sqrt(square)
        inverses[c] = inverse
        values[c] = bias[c] - square * inverse
    inverses[target] = ZERO
    near = ONE / np.sqrt(_NEAR * (norm + largest_norm))
    if largest(inverses) > near:
        most = ONE / np.sqrt(_EPSILON * (norm + largest_norm))
        for c in range(values.shape[0]):
            if inverses[c] > near:
                square = ZERO
                for d in range(pixel.shape[0]):
                    square += (pixel[d] - classes[c, d]) ** 2
                distance = np.sqrt(square)
                values[c] = bias[c] - distance
                inverses[c] = min(most, ONE / distance) if distance > ZERO else ZERO
    values[target] = -FAR
    shift = max(largest(values), logit)
    total, weights = _exp_and_divide(values, inverses, shift)
    return total, weights, shift


@compiled
def _from_target(pixel: np.ndarray, of_class: np.ndarray, direction: np.ndarray) -> tuple[Any, Any]:
    """Write the direction from a pixel's target to it; return their distance and the squared norm."""
    square = norm = ZERO
    for d in range(pixel.shape[0]):
        difference = pixel[d] - of_class[d]
        direction[d] = difference
        square += difference * difference
        norm += pixel[d] * pixel[d]
    distance = np.sqrt(square)
    inverse = ONE / distance if distance > ZERO else ZERO
    for d in range(pixel.shape[0]):
        direction[d] *= inverse
    return distance, norm


@compiled
def _finish(
    total: float, weights: float, logit: Any, shift: Any, factor: Any, pixel: np.ndarray,
    direction: np.ndarray, of_class: np.ndarray,
) -> tuple[float, Any]:  # fmt: skip
    """Overwrite the target's direction by what the pixel's gradient has besides its weights times classes.

    Args:
        total: of the other classes' exponentials.
        weights: the sum of the values.
        logit: of the target, to base 2.
        shift: that the exponentials are less.
        factor: of the pixel's loss.
        pixel: (D,).
        direction: (D,).
        of_class: (D,) the target's row of the gradient of the classes, added to; (0,) where none is wanted.

    Returns:
        The loss, and what the values are multiplied by.
    """
    of_target = float(exp2(logit - shift))
    loss = factor * log_sum(total, of_target, (shift - logit) / LOG2E)
    multiplier = np.float32(factor / (total + of_target))
    pull = np.float32(total) * multiplier
    push = np.float32(weights) * multiplier
    for d in range(of_class.shape[0]):
        of_class[d] -= pull * direction[d]
    for d in range(pixel.shape[0]):
        direction[d] = pull * direction[d] - push * pixel[d]
    return loss, multiplier


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
        distance, norm = _from_target(pixel, classes[own], direction)
        logit = bias[own] - distance
        total, weights, shift = _exp_of_squares(
            squares[row], inverses, bias, pixel, classes, norm, largest_norm, own, logit
        )
        of_class = sums[own] if sums.shape[0] > 0 else nothing
        of_pixel, multipliers[row] = _finish(
            total, weights, logit, shift, factors[own], pixel, direction, of_class
        )
        loss += of_pixel
    return loss


@kernel(
    "float64(float32[:,::1], float32[:,::1], float32[:,::1], float32[::1], boolean, "
    "int64[:,:,::1], int64, int64[::1], int64[::1], int64[::1], float32[::1], float32[::1], float32[::1], "
    "float32, float32[:,::1], float32[:,::1], float32[:,::1], float32[:,::1], float32[:,::1])"
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

    Returns:
        The sum of the losses.
    """
    image, first_row, first_column, rows, columns = block[0], block[1], block[2], block[3], block[4]
    ends, values, inverses = work[:2], work[2:6], work[6]
    left, right = ends[0], ends[1]
    pixel, direction = vectors[0], vectors[1]
    nothing = pixel[:0]
    of_group = np.zeros((2, GROUP), np.float32)
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
                for x in range(first, min(first + GROUP, stop)):
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
                    distance, norm = _from_target(pixel, classes[own], direction)
                    logit = bias[own] - distance
                    own_left, own_right = left[own], right[own]
                    left[own] = right[own] = FAR
                    # 2. Exponentials, unless the target is very far, or another class very near.
                    shift, near = logit + ABOVE, _NEAR * (norm + largest_norm)
                    total = weights_sum = 0.0
                    smallest = _ZERO_BITS
                    if logit > -MOST_ABOVE and not has_bias:
                        total, weights_sum, smallest = _exp_interpolated(
                            left, right, weight, norm, shift, out
                        )
                    if smallest <= np.float32(near).view(np.int32):
                        for c in range(out.shape[0]):
                            out[c] = left[c] + (right[c] - left[c]) * weight
                        total, weights_sum, shift = _exp_of_squares(
                            out, inverses, bias, pixel, classes, norm, largest_norm, own, logit
                        )
                    left[own], right[own] = own_left, own_right
                    # 3. The loss, the pixel's own part of the gradients, and its values' factors.
                    of_class = sums[own] if sums.shape[0] > 0 else nothing
                    of_pixel, multiplier = _finish(
                        total, weights_sum, logit, shift, factors[own], pixel, direction, of_class
                    )
                    loss += of_pixel
                    scatter_pixel(direction, corner, below, down[y], weight, gradient)
                    of_group[0, place] = (ONE - weight) * multiplier
                    of_group[1, place] = weight * multiplier
                if labeled and weights.shape[0] > 0:
                    scatter_group(values, of_group, corner, below, down[y], weights)
    return loss
