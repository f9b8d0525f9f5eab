"""Compute segmentation metrics from per-class counts: three numbers a class, no C x C confusion matrix.

The counts are summed over the whole dataset before any ratio is taken, as in ADE20K and COCO-Stuff practice:
a class's IoU is that of all its pixels in all images, not a mean over images.

Why not torchmetrics: its stat scores build a C x C matrix, and its MeanIoU one-hot encodes pixels x classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class ClassCounts:
    """Count true positives, false positives and false negatives of every class, in labeled pixels.

    Args:
        num_classes: C.
        device: where the counts are kept; give the device of the predictions.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        zeros = torch.zeros(3, num_classes, dtype=torch.int64, device=device)
        self.true_positives, self.predicted, self.actual = zeros

    def update(self, prediction: Tensor, target: Tensor, ignore_index: int = -1) -> None:
        """Count one batch.

        Args:
            prediction: train ids in 0..C-1, any shape, int64; -1 for a class that is not evaluated, which is
                wrong on a labeled pixel and nobody's false positive, as in the Cityscapes tool.
            target: train ids or `ignore_index`, same shape. Ignored pixels count nowhere, whatever was
                predicted on them.
        """
        labeled = target != ignore_index
        prediction, target = prediction[labeled], target[labeled]
        self.add(target[prediction == target], prediction, target)

    def add(self, hits: Tensor, predicted: Tensor, actual: Tensor) -> None:
        """Count ids.

        Args:
            hits: train ids of the pixels predicted right, any number.
            predicted: train ids predicted; -1 counts nowhere.
            actual: train ids of the truth.
        """
        for counts, ids in ((self.true_positives, hits), (self.actual, actual)):
            counts += torch.bincount(ids, minlength=self.num_classes)
        self.predicted += torch.bincount(predicted + 1, minlength=self.num_classes + 1)[1:]

    @property
    def false_positives(self) -> Tensor:
        """Return (C,) labeled pixels wrongly predicted as the class."""
        return self.predicted - self.true_positives

    @property
    def false_negatives(self) -> Tensor:
        """Return (C,) pixels of the class predicted as another."""
        return self.actual - self.true_positives

    def iou(self) -> Tensor:
        """Return (C,) float64 TP / (TP + FP + FN); NaN for a class neither in the truth nor predicted."""
        union = self.predicted + self.actual - self.true_positives
        return self.true_positives.double() / union

    def accuracy(self) -> Tensor:
        """Return (C,) float64 recall, TP / (TP + FN); NaN for a class that is not in the truth."""
        return self.true_positives.double() / self.actual


@dataclass(frozen=True)
class Metrics:
    """Summarize `ClassCounts`.

    A mean is None when none of its classes was met, and all of them are where nothing can be measured: no
    pixel is labeled, or there is nothing to tell apart.
    """

    miou: float | None
    """mean IoU of the classes present in truth or prediction"""
    miou_present: float | None
    """mean IoU of the classes present in the truth"""
    miou_rare: float | None
    miou_common: float | None
    miou_frequent: float | None
    miou_stuff: float | None
    frequency_weighted_iou: float | None
    """mean IoU of the classes, weighted by their true pixels"""
    pixel_accuracy: float | None
    mean_accuracy: float | None
    classes_present: int
    classes_predicted: int

    def flat(self) -> dict[str, float | None]:
        """Return the metrics by name, those of groups only where they are defined."""
        groups = ("miou_rare", "miou_common", "miou_frequent", "miou_stuff")
        return {key: value for key, value in vars(self).items() if value is not None or key not in groups}

    @property
    def undefined(self) -> bool:
        """Tell whether nothing could be measured."""
        return self.miou is None


def summarize(
    counts: ClassCounts, frequencies: Sequence[str] | None = None, *, measurable: bool = True
) -> Metrics:
    """Reduce the counts to the metrics that are reported.

    Args:
        counts: of the whole dataset.
        frequencies: for each of the C classes r, c or f (LVIS's rare, common, frequent) or "stuff".
        measurable: False where only one class was to be learned: any network answers it everywhere, and its
            IoU of 1 says nothing.
    """
    iou, accuracy = counts.iou(), counts.accuracy()
    labeled = int(counts.actual.sum())
    if not (measurable and labeled and counts.num_classes > 1):
        iou, accuracy = torch.full_like(iou, math.nan), torch.full_like(accuracy, math.nan)
    present = counts.actual > 0
    groups: dict[str, float | None] = dict.fromkeys(("r", "c", "f", "stuff"))
    if frequencies is not None:
        for group in groups:
            members = torch.tensor([frequency == group for frequency in frequencies], device=iou.device)
            groups[group] = _mean(iou[members])
    miou = _mean(iou)
    return Metrics(
        miou=miou,
        miou_present=_mean(iou[present]),
        miou_rare=groups["r"],
        miou_common=groups["c"],
        miou_frequent=groups["f"],
        miou_stuff=groups["stuff"],
        frequency_weighted_iou=None if miou is None else _weighted(iou[present], counts.actual[present]),
        pixel_accuracy=None if miou is None else int(counts.true_positives.sum()) / labeled,
        mean_accuracy=_mean(accuracy[present]),
        classes_present=int(present.sum()),
        classes_predicted=int((counts.predicted > 0).sum()),
    )


def _mean(values: Tensor) -> float | None:
    known = values[~values.isnan()]
    return float(known.mean()) if known.numel() else None


def _weighted(values: Tensor, weights: Tensor) -> float:
    return float((values * weights).sum() / weights.sum())
