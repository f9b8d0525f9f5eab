"""Per-class counts against counting by hand and against a confusion matrix."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.segmenter import SegmenterConfig, build_segmenter
from pipeline.data.loading.batch import Batch
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.metrics import ClassCounts, summarize
from pipeline.memory.predict import allocated_cpu_bytes


def test_counts_by_hand() -> None:
    counts = ClassCounts(4)
    #                              hit wrong wrong ignored hit
    counts.update(torch.tensor([0, 1, 2, 3, 2]), torch.tensor([0, 0, 1, -1, 2]))
    assert counts.true_positives.tolist() == [1, 0, 1, 0]
    assert counts.false_positives.tolist() == [0, 1, 1, 0]
    assert counts.false_negatives.tolist() == [1, 1, 0, 0]
    iou = counts.iou().tolist()
    assert iou[:3] == [0.5, 0.0, 0.5]
    assert math.isnan(iou[3])  # predicted on an ignored pixel only: it was not met
    metrics = summarize(counts, ["r", "c", "f", "stuff"])
    assert metrics.miou == pytest.approx(1 / 3)
    assert metrics.miou_present == pytest.approx(1 / 3)
    assert (metrics.miou_rare, metrics.miou_common, metrics.miou_frequent) == (0.5, 0.0, 0.5)
    assert metrics.miou_stuff is None
    assert "miou_stuff" not in metrics.flat()
    assert metrics.pixel_accuracy == 0.5
    assert metrics.mean_accuracy == pytest.approx((0.5 + 0 + 1) / 3)


def test_equal_to_a_confusion_matrix_over_several_batches() -> None:
    generator = np.random.default_rng(0)
    counts, matrix = ClassCounts(300), np.zeros((300, 300), dtype=np.int64)
    for _ in range(3):
        target = generator.integers(-1, 300, (2, 17, 13))
        prediction = np.where(
            generator.random(target.shape) < 0.5, target, generator.integers(0, 300, target.shape)
        )
        prediction = np.maximum(prediction, 0)
        counts.update(torch.from_numpy(prediction), torch.from_numpy(target))
        labeled = target >= 0
        np.add.at(matrix, (target[labeled], prediction[labeled]), 1)
    hits = np.diag(matrix)
    with np.errstate(invalid="ignore"):
        iou = hits / (matrix.sum(0) + matrix.sum(1) - hits)
    np.testing.assert_allclose(counts.iou().numpy(), iou)
    metrics = summarize(counts)
    assert metrics.miou == pytest.approx(np.nanmean(iou))
    assert metrics.pixel_accuracy == pytest.approx(hits.sum() / matrix.sum())


def test_a_class_only_predicted_lowers_miou_but_not_that_of_the_present_classes() -> None:
    counts = ClassCounts(3)
    counts.update(torch.tensor([0, 0, 0, 2]), torch.tensor([0, 0, 0, 0]))
    metrics = summarize(counts)
    assert metrics.miou == pytest.approx(0.75 / 2)
    assert metrics.miou_present == 0.75
    assert (metrics.classes_present, metrics.classes_predicted) == (1, 2)


MEANS = {"miou", "miou_present", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou"}


def test_where_no_pixel_is_labeled_there_is_no_metric() -> None:
    counts = ClassCounts(5)
    counts.update(torch.zeros(4, dtype=torch.int64), torch.full((4,), -1))
    metrics = summarize(counts, ["r"] * 5)
    assert metrics.undefined
    expected = dict.fromkeys(MEANS) | {"classes_present": 0, "classes_predicted": 0}
    assert metrics.flat() == expected


@pytest.mark.parametrize(("num_classes", "measurable"), [(1, True), (3, False)])
def test_where_there_is_one_class_only_there_is_no_metric(num_classes: int, measurable: bool) -> None:
    """One class in the label space, or one of several that was to be learned: IoU and accuracy would be 1."""
    counts = ClassCounts(num_classes)
    counts.update(torch.zeros(4, dtype=torch.int64), torch.tensor([0, 0, -1, 0]))
    flat = summarize(counts, ["f"] * num_classes, measurable=measurable).flat()
    assert flat == dict.fromkeys(MEANS) | {"classes_present": 1, "classes_predicted": 1}


def test_one_of_several_classes_in_the_truth_is_measured() -> None:
    counts = ClassCounts(2)
    counts.update(torch.tensor([0, 0, 1, 0]), torch.zeros(4, dtype=torch.int64))
    metrics = summarize(counts)
    assert (metrics.miou, metrics.miou_present, metrics.pixel_accuracy) == (0.375, 0.75, 0.75)


def test_memory_is_three_numbers_a_class() -> None:
    counts = ClassCounts(1_000_000)
    counts.update(torch.tensor([999_999]), torch.tensor([999_999]))
    kept = [value for value in vars(counts).values() if isinstance(value, torch.Tensor)]
    assert sum(tensor.numel() for tensor in kept) == 3_000_000


@pytest.mark.slow
@pytest.mark.parametrize("head", ["embedding", "softmax"])
def test_validation_holds_neither_pixels_by_classes_nor_classes_by_classes(head: str) -> None:
    """Scores of one image would take 128 x 128 x 5,000 x 4 bytes = 312 MiB, a confusion matrix 190 MiB."""
    num_classes = 5_000
    segmenter = build_segmenter(
        SegmenterConfig(backbone="test_resnet", decoder_channels=8, num_classes=num_classes, head=head)
    )

    def validate(side: int) -> None:
        images = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8)
        target = torch.randint(-1, num_classes, (1, side, side))
        evaluate(
            segmenter,
            [Batch(images, target, (1,))],
            frequencies=["f"] * num_classes,
            device=torch.device("cpu"),
            title="val",
            total=1,
        )

    validate(16)  # what is allocated once
    assert allocated_cpu_bytes(lambda: validate(128)) < 80 * 2**20
