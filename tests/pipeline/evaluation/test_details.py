"""Boundary IoU, confused pairs and regions against the official arithmetic, scikit-learn and by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pipeline.evaluation.boundary import BoundaryCounts, band_radius, near_outline
from pipeline.evaluation.confused_pairs import ConfusedPair, ConfusedPairs
from pipeline.evaluation.image_counts import ImageCounts
from pipeline.evaluation.metrics import ClassCounts, summarize
from pipeline.evaluation.per_image import PerImage
from pipeline.memory.predict import allocated_cpu_bytes


def maps(seed: int, num_classes: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocky truth with unlabeled pixels, and a prediction that is the truth moved and spoiled."""
    random = np.random.default_rng(seed)
    coarse = random.integers(-1, num_classes, [*shape[:-2], -(-shape[-2] // 5), -(-shape[-1] // 5)])
    target = coarse.repeat(5, -2).repeat(5, -1)[..., : shape[-2], : shape[-1]]
    guess = random.integers(0, num_classes, target.shape)
    prediction = np.where(random.random(target.shape) < 0.1, guess, np.roll(target, 1, -1)).clip(0)
    return torch.from_numpy(prediction), torch.from_numpy(target.copy())


def official_band(mask: np.ndarray, radius: int) -> np.ndarray:
    """As mask_to_boundary of the boundary-IoU code: the mask less itself eroded, with nothing outside."""
    eroded = ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=radius, border_value=0)
    return mask & ~eroded


@given(st.integers(0, 2**32), st.integers(1, 20), st.integers(1, 24), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_the_bands_are_those_of_every_class_eroded_alone(
    seed: int, radius: int, height: int, width: int
) -> None:
    _, target = maps(seed, 4, height, width)
    found = near_outline(target, radius).numpy()
    expected = np.zeros_like(found)
    for train_id in np.unique(target):
        expected |= official_band(target.numpy() == train_id, radius)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("width", [0.001, 0.02, 0.1])
def test_boundary_iou_is_the_official_one_of_each_class(width: float) -> None:
    prediction, target = maps(3, 7, 3, 60, 80)
    counts = BoundaryCounts(7, width)
    for image in range(3):
        counts.update(prediction[image : image + 1], target[image : image + 1])
    radius = max(1, round(width * math.hypot(60, 80)))
    assert band_radius(60, 80, width) == radius
    for train_id in range(7):
        both = either = 0
        for one, truth in zip(prediction.numpy(), target.numpy(), strict=True):
            found = official_band((one == train_id) & (truth >= 0), radius)
            actual = official_band(truth == train_id, radius)
            both += (found & actual).sum()
            either += (found | actual).sum()
        assert float(counts.counts.iou()[train_id]) == pytest.approx(both / either)


def test_the_most_confused_pairs_are_those_of_the_confusion_matrix() -> None:
    from sklearn.metrics import confusion_matrix  # takes seconds, which only this test's process pays

    pairs, matrix = ConfusedPairs(40), np.zeros((40, 40), dtype=int)
    for seed in range(4):
        prediction, target = maps(seed, 40, 2, 30, 40)
        prediction[0, :2] = -1  # a class that is not evaluated
        pairs.update(prediction, target)
        counted = (target >= 0) & (prediction >= 0)
        matrix += confusion_matrix(target[counted], prediction[counted], labels=range(40))
    np.fill_diagonal(matrix, 0)
    order = sorted(zip(*matrix.nonzero(), strict=True), key=lambda at: (-matrix[at], at))
    assert pairs.missing == 0
    assert pairs.most_confused(50) == [ConfusedPair(int(a), int(p), int(matrix[a, p])) for a, p in order[:50]]


def test_more_pairs_than_are_held_are_short_by_no_more_than_is_said() -> None:
    num_classes = 3_000
    exact, held = ConfusedPairs(num_classes), ConfusedPairs(num_classes, capacity=1_000)
    random = np.random.default_rng(0)
    for _ in range(6):
        target = torch.from_numpy(random.integers(0, num_classes, 3_000))
        prediction = torch.from_numpy(random.integers(0, num_classes, 3_000))
        target[:400], prediction[:400] = 7, 11
        target[400:600], prediction[400:600] = 11, 7
        for counts in (exact, held):
            counts.update(prediction, target)
    assert 0 < held.missing < 50
    for found, right in zip(held.most_confused(2), exact.most_confused(2), strict=True):
        assert (found.actual, found.predicted) == (right.actual, right.predicted)
        assert 0 <= right.pixels - found.pixels <= held.missing


@pytest.mark.slow
def test_memory_grows_with_neither_classes_squared_nor_pixels_by_classes() -> None:
    """A matrix of 100,000 x 100,000 counts would take 75 GiB, a score a class of an image 3 GiB."""
    prediction, target = maps(0, 100_000, 1, 96, 96)

    def count() -> None:
        for counts in (BoundaryCounts(100_000, 0.02), ConfusedPairs(100_000)):
            counts.update(prediction, target)
        PerImage(100_000).update(prediction, target, (1,))

    assert allocated_cpu_bytes(count) < 24 * 2**20


def test_regions_by_hand() -> None:
    target = torch.full((1, 100, 200), 2)  # 20,000 pixels less the others': large
    target[0, :31, :33] = 0  # 1,023: small
    target[0, 40:72, :32] = 1  # 1,024: medium
    target[0, 90:, :50] = -1
    prediction = target.clone()
    prediction[0, :31, :11] = 1  # a third of class 0 is called 1
    prediction[0, 90:, :50] = 0  # unlabeled: counts nowhere
    prediction[0, 80, :7] = 4  # not in the truth: a row, and no region
    counts = PerImage(5)
    counts.update(prediction, target, (7,))
    third, large = 31 * 11, 20_000 - 1_023 - 1_024 - 500
    assert counts.counts().region_metrics() == {
        "region_iou_small": pytest.approx(2 / 3),
        "region_iou_medium": pytest.approx(1024 / (1024 + third)),
        "region_iou_large": pytest.approx((large - 7) / large),
    }
    assert counts.counts().classes.tolist() == [0, 1, 2, 4]
    nothing = PerImage(5)
    nothing.update(prediction, torch.full_like(target, -1), (7,))
    assert nothing.counts().region_metrics() == {}
    assert np.isnan(nothing.counts().image_accuracy()).tolist() == [True]
    assert PerImage(5).counts().miou_interval() is None


def test_the_images_counts_add_up_and_come_back_from_a_file(tmp_path: Path) -> None:
    prediction, target = maps(5, 30, 6, 20, 25)
    prediction[2, 3] = -1
    whole, alone = ClassCounts(30), PerImage(30)
    for first in (0, 4):
        part = slice(first, first + 4)
        whole.update(prediction[part], target[part])
        alone.update(prediction[part], target[part], tuple(range(100, 106))[part])
    alone.counts().save(tmp_path / "per_image.npz")
    counts = ImageCounts.load(tmp_path / "per_image.npz")
    assert counts.image_ids.tolist() == list(range(100, 106))
    for name, expected in (
        ("hits", whole.true_positives),
        ("predicted", whole.predicted),
        ("actual", whole.actual),
    ):
        assert np.bincount(counts.classes, getattr(counts, name), 30).tolist() == expected.tolist()
    right = [float((p == t)[t >= 0].float().mean()) for p, t in zip(prediction, target, strict=True)]
    assert counts.image_accuracy().tolist() == pytest.approx(right)


def test_the_interval_is_that_of_resampled_images() -> None:
    """Against drawing images and counting their pixels anew; a dataset of equal images has no spread."""
    pairs = [maps(seed, 4, 1, 12, 15) for seed in range(12)]
    counts = PerImage(4)
    for image_id, (prediction, target) in enumerate(pairs):
        counts.update(prediction, target, (image_id,))
    random, mious = np.random.default_rng(1), []
    for _ in range(400):
        drawn = ClassCounts(4)
        for index in random.integers(0, 12, 12):
            drawn.update(*pairs[index])
        mious.append(summarize(drawn).miou)
    found = counts.counts().miou_interval()
    assert found == pytest.approx(tuple(np.quantile(mious, [0.025, 0.975])), abs=0.02)
    assert found == counts.counts().miou_interval()
    better = PerImage(4)
    for image_id, (prediction, target) in enumerate(pairs):
        mended = prediction.clone()
        mended[:, :6] = target[:, :6].clamp(min=0)
        better.update(mended, target, (image_id,))
    gain = better.counts().miou_gain_interval(counts.counts())
    assert gain is not None
    assert gain[0] > 0
    assert counts.counts().miou_gain_interval(counts.counts()) == (0, 0)
    equal = PerImage(4)
    for image_id in range(5):
        equal.update(*pairs[0], (image_id,))
    assert equal.counts().miou_gain_interval(counts.counts()) is None  # other images
    low, high = equal.counts().miou_interval() or (0, 1)
    assert low == pytest.approx(high)


def test_frequency_weighted_iou_is_scikit_learns_weighted_jaccard_score() -> None:
    from sklearn.metrics import jaccard_score

    prediction, target = maps(1, 9, 2, 40, 50)
    counts = ClassCounts(9)
    counts.update(prediction, target)
    labeled = target >= 0
    expected = jaccard_score(target[labeled], prediction[labeled], average="weighted")
    assert summarize(counts).frequency_weighted_iou == pytest.approx(expected)
