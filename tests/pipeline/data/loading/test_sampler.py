"""Repeat-factor sampling: the factors of LVIS's appendix B.2, and epochs that follow them."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import numpy as np
import pytest

from pipeline.data.loading.sampler import Draw, ShuffledBatches, repeat_factors, sample_seed


def draws(batches: ShuffledBatches) -> list[Draw]:
    return list(chain.from_iterable(batches))


@pytest.mark.slow
def test_the_factors_are_those_worked_out_by_hand() -> None:
    """Four images: class 0 in all, 1 in one, 2 in two; a threshold of 0.5 repeats what is below half."""
    presence = [np.array([0]), np.array([0, 1]), np.array([0, 2]), np.array([0, 2])]
    assert repeat_factors(presence, 5, 0.5) == pytest.approx([1, np.sqrt(2), 1, 1])
    assert repeat_factors(presence, 5, 1.0) == pytest.approx([1, 2, np.sqrt(2), np.sqrt(2)])
    assert repeat_factors([np.array([], dtype=np.int64), np.array([3])], 5, 0.001) == pytest.approx([1, 1])


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5])
def test_a_threshold_that_is_no_share_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold is"):
        repeat_factors([np.array([0])], 1, threshold)


def test_epochs_show_each_image_its_factor_of_times_on_average() -> None:
    factors = np.array([1.0, 1.25, 3.0, 2.5])
    seen = draws(ShuffledBatches(4, batch_size=5, num_steps=1_000, seed=1, factors=factors))
    epochs = seen[-1].epoch  # whole ones, the last may be cut
    times = Counter((draw.epoch, draw.image) for draw in seen if draw.epoch < epochs)
    for image, factor in enumerate(factors):
        shown = [times[epoch, image] for epoch in range(epochs)]
        assert set(shown) <= {int(np.floor(factor)), int(np.ceil(factor))}
        assert np.mean(shown) == pytest.approx(factor, abs=0.06)


def test_repeats_within_an_epoch_are_augmented_differently() -> None:
    seen = draws(ShuffledBatches(3, batch_size=6, num_steps=2, seed=0, factors=np.array([2.0, 2.0, 2.0])))
    assert len({draw[:2] for draw in seen}) == 6
    assert len({sample_seed(0, draw) for draw in seen}) == 12


@pytest.mark.parametrize("start_step", [1, 7, 23])
def test_a_resumed_run_sees_what_an_undisturbed_one_sees(start_step: int) -> None:
    factors = np.array([1.0, 1.5, 2.7, 1.2, 4.0])
    whole = list(ShuffledBatches(5, batch_size=3, num_steps=30, seed=4, factors=factors))
    resumed = ShuffledBatches(5, batch_size=3, num_steps=30, seed=4, start_step=start_step, factors=factors)
    assert list(resumed) == whole[start_step:]


def test_factors_of_one_are_plain_epochs_of_every_image() -> None:
    seen = draws(ShuffledBatches(6, batch_size=6, num_steps=3, seed=0, factors=np.ones(6)))
    for epoch in range(3):
        assert sorted(draw.image for draw in seen if draw.epoch == epoch) == list(range(6))


def test_factors_below_one_or_of_another_number_are_refused() -> None:
    for factors in (np.array([0.5, 1.0]), np.ones(3)):
        with pytest.raises(ValueError, match="factor of at least 1"):
            ShuffledBatches(2, batch_size=1, num_steps=1, seed=0, factors=factors)
