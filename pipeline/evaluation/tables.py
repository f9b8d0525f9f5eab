"""Write what was counted of classes, groups, confidences and confused pairs as CSV."""

from __future__ import annotations

import math

import numpy as np
import torch

from pipeline.data.labels.label_space import LabelSpace
from pipeline.evaluation.evaluate import Evaluation
from pipeline.runtime.files import csv_text

CONFUSED_PAIRS = 50
GROUPS = {"r": "rare", "c": "common", "f": "frequent", "stuff": "stuff"}


def per_class_table(result: Evaluation, label_space: LabelSpace, federated: np.ndarray | None = None) -> str:
    """Return CSV with one line a class; ratios are empty where they are not defined.

    Args:
        result: of the evaluation.
        label_space: the classes.
        federated: (C,) IoU where each class was looked for; None leaves it empty.
    """
    counts, nothing = result.counts, torch.full((label_space.num_classes,), math.nan)
    boundary = None if result.details is None else result.details.boundary_iou()
    ratios = [counts.iou(), counts.accuracy(), nothing if boundary is None else boundary]
    ratios.append(nothing if federated is None else torch.from_numpy(federated))
    if result.metrics.undefined:
        ratios = [nothing] * len(ratios)
    unlabeled = torch.zeros_like(counts.actual) if result.details is None else result.details.unlabeled
    columns = (counts.actual, counts.predicted, unlabeled, *ratios)
    rows = []
    for entry, *values in zip(label_space.classes, *(column.tolist() for column in columns), strict=True):
        cells = ["" if isinstance(value, float) and math.isnan(value) else value for value in values]
        rows.append([entry.class_id, entry.name, entry.source, entry.frequency, *cells])
    header = ["class_id", "name", "source", "frequency", "true_pixels", "predicted_pixels"]
    return csv_text([*header, "unlabeled_pixels", "iou", "accuracy", "boundary_iou", "federated_iou"], rows)


def groups_table(result: Evaluation, label_space: LabelSpace) -> str:
    """Return CSV with the groups that the label space has: their classes, those scored, and their mIoU."""
    scored = ~result.counts.iou().isnan()
    rows = []
    for frequency, name in GROUPS.items():
        members = torch.tensor([one == frequency for one in label_space.frequencies], device=scored.device)
        if members.any():
            miou = getattr(result.metrics, f"miou_{name}")
            number = int((scored & members).sum())
            rows.append([name, int(members.sum()), number, "" if miou is None else miou])
    return csv_text(["group", "classes", "scored", "miou"], rows)


def calibration_table(result: Evaluation) -> str:
    """Return CSV with the bins of confidence that have pixels."""
    assert result.details is not None
    calibration = result.details.calibration
    known = [] if calibration is None or result.metrics.undefined else calibration.bins()
    rows = [[one.low, one.high, one.pixels, one.confidence, one.accuracy] for one in known]
    return csv_text(["confidence_from", "confidence_to", "pixels", "confidence", "accuracy"], rows)


def confused_table(result: Evaluation, label_space: LabelSpace) -> str:
    """Return CSV with the most confused pairs of classes, and their share of the true class's pixels."""
    assert result.details is not None
    rows = []
    for pair in result.details.pairs.most_confused(CONFUSED_PAIRS):
        share = pair.pixels / int(result.counts.actual[pair.actual])
        names = [label_space.classes[train_id].name for train_id in (pair.actual, pair.predicted)]
        rows.append([pair.actual + 1, names[0], pair.predicted + 1, names[1], pair.pixels, share])
    return csv_text(["class_id", "name", "predicted_id", "predicted_name", "pixels", "share"], rows)
