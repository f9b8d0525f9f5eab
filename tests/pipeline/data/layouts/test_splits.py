"""Which images are held out: a share of the train images that their ids and the seed decide."""

from __future__ import annotations

import pytest

from pipeline.data.layouts.splits import held_out


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 50])
def test_the_held_out_part_is_neither_empty_nor_everything(fraction: float, count: int) -> None:
    ids = list(range(100, 100 + count))
    held = held_out(ids, fraction, 0)
    assert held == held_out(ids[::-1], fraction, 0)
    if fraction and count >= 2:
        assert len(held) == min(max(round(fraction * count), 1), count - 1)
    else:
        assert held == set()


def test_the_seed_chooses_what_is_held_out() -> None:
    ids = range(1000)
    parts = [held_out(ids, 0.1, seed) for seed in range(3)]
    assert all(len(part) == 100 for part in parts)
    assert len(parts[0] & parts[1]) < 40
    assert len(parts[1] & parts[2]) < 40
