"""Share what the kernels of distances are made of."""

from __future__ import annotations

from typing import Any

import numpy as np

from .machine_code import compiled
from .parts import CHUNK, FAR, LOG2E, MOST_BITS, ONE, ZERO, exp2, f32, largest, log_sum

NEAR = f32(2.0**-12)
"""Fraction of the squared norms below which a squared distance is from differences."""

_TINY = f32(1e-36)
_EPSILON = f32(2.0**-23)


@compiled
def exp_interpolated(
    left: np.ndarray, right: np.ndarray, across: Any, norm: Any, shift: Any, out: np.ndarray
) -> tuple[float, float, Any]:
    """Interpolate squared distances across and write exp / distance.

    Returns:
        The sums of exp and of these, and the bits of the smallest squared distance: as integers, the minimum
        of positive numbers is the same, and one below zero is less than any.
    """
    total = weights = 0.0
    smallest = MOST_BITS
    for start in range(0, out.shape[0], CHUNK):
        part = slice(start, start + CHUNK)
        of_left, of_right, of_out = left[part], right[part], out[part]
        of_part = weights_of_part = ZERO
        least = MOST_BITS
        for c in range(of_out.shape[0]):
            square = of_left[c] + (of_right[c] - of_left[c]) * across + norm
            bits = np.float32(square).view(np.int32)
            least = bits if bits < least else least
            inverse = ONE / np.sqrt(square)
            value = exp2(-square * inverse - shift)
            of_part += value
            value *= inverse
            weights_of_part += value
            of_out[c] = value
        total += of_part
        weights += weights_of_part
        smallest = least if least < smallest else smallest
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
def exp_of_squares(
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
    near = ONE / np.sqrt(NEAR * (norm + largest_norm))
    if largest(inverses) > near:
        most = ONE / np.sqrt(_EPSILON * (norm + largest_norm))
        for c in range(values.shape[0]):
            if inverses[c] > near:
                square = ZERO
                for d in range(pixel.shape[0]):
                    difference = pixel[d] - classes[c, d]
                    square += difference * difference
                distance = np.sqrt(square)
                values[c] = bias[c] - distance
                inverses[c] = (ONE / distance if distance > ONE / most else most) if distance > ZERO else ZERO
    values[target] = -FAR
    shift = largest(values)
    shift = logit if logit > shift else shift
    total, weights = _exp_and_divide(values, inverses, shift)
    return total, weights, shift


@compiled
def from_target(pixel: np.ndarray, of_class: np.ndarray, direction: np.ndarray) -> tuple[Any, Any]:
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
def finish(
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
