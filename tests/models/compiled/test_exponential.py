"""The exponential of the compiled kernels, against float64 over its whole range."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")

from benchmarks.loss_bound import exponentials


def exp2(values: np.ndarray) -> np.ndarray:
    """By the vectorized loop of a kernel."""
    out = np.empty_like(values)
    exponentials(values, out, 1)
    return out


def test_it_is_right_to_one_unit_in_the_last_place() -> None:
    values = np.linspace(-100, 127.4, 2_000_003, dtype=np.float32)
    exact = np.exp2(values.astype(np.float64))
    units = np.abs(exp2(values) - exact) / np.spacing(exact.astype(np.float32))
    assert units.max() < 1.1
    whole = np.arange(-100, 128, dtype=np.float32)
    assert np.array_equal(exp2(whole), np.exp2(whole.astype(np.float64)))


def test_it_is_zero_far_below_and_keeps_what_is_no_number() -> None:
    values = np.array([-100.1, -1e5, -1e30, -np.inf, np.nan], np.float32)
    found = exp2(values)
    assert np.array_equal(found[:4], np.zeros(4))
    assert np.isnan(found[4])
