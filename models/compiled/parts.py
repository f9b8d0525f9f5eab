"""Share what the kernels of losses and of the search are made of.

Logits are to base 2, so that the exponential needs no reduction of its argument; the coordinates carry the
factor. A cell is the part of the picture between four low-resolution pixels, its corners. All pixels of a
cell are interpolated from them, first down, to a row between the corners, then across.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .machine_code import compiled, compiled_in_order

f32 = np.float32
ZERO: Any = f32(0)
HALF, ONE = f32(0.5), f32(1)
FAR = f32(1e30)  # a squared distance, or minus a logit, whose exponential is zero
ABOVE = f32(40)  # exponentials are less the target's logit and this: the target's is 2**-40, and none less
MOST_ABOVE = f32(120)  # than 2**-60 of it counts; those of logits up to this above the target's are in range
CHUNK = 4096  # classes whose exponentials are summed in float32; these sums are added in float64
LOG2E = math.log2(math.e)
GROUP = 4  # pixels of a row of a cell that are brought back to its corners together

_LOWEST = f32(-100)  # the exponential of less is zero: no denormal numbers, which are slow
# 2**r = 1 + r (c1 + r (c2 + ...)) for r in -0.5..0.5, of least relative error: 2e-9 before rounding.
_C1, _C2, _C3 = f32(0.6931471824645996), f32(0.24022647738456726), f32(0.05550331994891167)
_C4, _C5, _C6 = f32(0.00961843878030777), f32(0.0013399001909419894), f32(0.00015353238268289715)
_EXPONENT_BIAS, _MANTISSA_BITS, _SIGN_BIT = np.int32(127), np.int32(23), np.int32(31)
MOST_BITS: Any = np.int32(2**31 - 1)


@compiled_in_order
def exp2(x: Any) -> Any:
    """Compute 2**x for x below 128, to one unit in the last place of float32; zero for x below -100."""
    whole = np.floor(x + HALF)
    r = x - whole
    value = ONE + r * (_C1 + r * (_C2 + r * (_C3 + r * (_C4 + r * (_C5 + r * _C6)))))
    power = np.int32((np.int32(whole) + _EXPONENT_BIAS) << _MANTISSA_BITS).view(np.float32)
    return ZERO if x < _LOWEST else value * power


@compiled
def in_order(x: Any) -> Any:
    """Map a number to an int32 of the same order, NaN above all: minima of integers are vectorized.

    Those of floating-point numbers are not, where NaN is to keep its meaning.
    """
    bits = f32(x).view(np.int32)
    return np.int32(bits ^ ((bits >> _SIGN_BIT) & MOST_BITS))


@compiled
def from_order(ordered: Any) -> Any:
    """Return the number that `in_order` mapped."""
    return np.int32(ordered ^ ((ordered >> _SIGN_BIT) & MOST_BITS)).view(np.float32)


@compiled
def largest(values: np.ndarray) -> Any:
    """Return the largest value; NaN if one of them is."""
    found = np.int32(~MOST_BITS)
    for place in range(values.shape[0]):
        number = in_order(values[place])
        found = number if number > found else found
    return from_order(found)


@compiled
def smallest(values: np.ndarray) -> Any:
    """Return the smallest value that is not NaN."""
    found = MOST_BITS
    for place in range(values.shape[0]):
        number = in_order(values[place])
        found = number if number < found else found
    return from_order(found)


@compiled
def log_sum(others: float, of_target: float, gap: float) -> float:
    """Return the loss of a pixel, the natural log((others + of_target) / of_target).

    Args:
        others: sum of the other classes' exponentials.
        of_target: that of the target, which may have underflowed.
        gap: minus the logarithm of `of_target`.
    """
    if others < of_target:
        return math.log1p(others / of_target)
    return math.log(others + of_target) + gap


@compiled
def interpolate_down(low: np.ndarray, corner: int, below: int, down: Any, out: np.ndarray) -> None:
    """Interpolate the upper and lower corners of a cell to the left and right ends of a row between them."""
    for side in range(2):
        upper, lower, row = low[corner + side], low[below + side], out[side]
        for c in range(row.shape[0]):
            row[c] = upper[c] + (lower[c] - upper[c]) * down


@compiled
def interpolate(values: np.ndarray, corner: int, below: int, down: Any, across: Any) -> Any:
    """Interpolate one number of each corner of a cell to one pixel."""
    left = values[corner] + (values[below] - values[corner]) * down
    right = values[corner + 1] + (values[below + 1] - values[corner + 1]) * down
    return left + (right - left) * across


@compiled
def interpolate_pixel(
    embeddings: np.ndarray, corner: int, below: int, down: Any, across: Any, out: np.ndarray
) -> None:
    """Interpolate the embeddings (q, D) of the corners of a cell to one pixel (D,)."""
    a, b, c, d = embeddings[corner], embeddings[corner + 1], embeddings[below], embeddings[below + 1]
    for i in range(out.shape[0]):
        left = a[i] + (c[i] - a[i]) * down
        right = b[i] + (d[i] - b[i]) * down
        out[i] = left + (right - left) * across


@compiled
def scatter_pixel(
    vector: np.ndarray, corner: int, below: int, down: Any, across: Any, out: np.ndarray
) -> None:
    """Add a pixel's vector (D,) to the corners of its cell (q, D): the transpose of `interpolate_pixel`."""
    a, b, c, d = out[corner], out[corner + 1], out[below], out[below + 1]
    for i in range(vector.shape[0]):
        left, right = vector[i] * (ONE - across), vector[i] * across
        a[i] += left * (ONE - down)
        b[i] += right * (ONE - down)
        c[i] += left * down
        d[i] += right * down


@compiled
def scatter(value: Any, corner: int, below: int, down: Any, across: Any, out: np.ndarray) -> None:
    """Add a number times the pixel's bilinear weights to the corners: the transpose of `interpolate`."""
    out[corner] += value * (ONE - down) * (ONE - across)
    out[corner + 1] += value * (ONE - down) * across
    out[below] += value * down * (ONE - across)
    out[below + 1] += value * down * across


@compiled
def scatter_group(
    values: np.ndarray, factors: np.ndarray, corner: int, below: int, down: Any, out: np.ndarray
) -> None:
    """Add the values of four pixels of a row, over all classes, to the four corners of their cell.

    Args:
        values: (4, C).
        factors: (2, 4) what each pixel's values are multiplied by to the left and to the right.
        corner: the upper left corner's row in `out`.
        below: the lower left corner's.
        down: weight of the lower corners.
        out: (q, C).
    """
    v0, v1, v2, v3 = values[0], values[1], values[2], values[3]
    upper_left, upper_right, lower_left, lower_right = (
        out[corner],
        out[corner + 1],
        out[below],
        out[below + 1],
    )
    l0, l1, l2, l3 = factors[0, 0], factors[0, 1], factors[0, 2], factors[0, 3]
    r0, r1, r2, r3 = factors[1, 0], factors[1, 1], factors[1, 2], factors[1, 3]
    up = ONE - down
    for c in range(v0.shape[0]):
        left = v0[c] * l0 + v1[c] * l1 + v2[c] * l2 + v3[c] * l3
        right = v0[c] * r0 + v1[c] * r1 + v2[c] * r2 + v3[c] * r3
        upper_left[c] += up * left
        upper_right[c] += up * right
        lower_left[c] += down * left
        lower_right[c] += down * right
