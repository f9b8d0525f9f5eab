"""Score a class only where it was looked for, and the images of COCO's val2017 alone.

LVIS annotates a class in some images only. `miou` counts every labeled pixel that is wrongly called by a
class against it; the federated score does so only in images where that class was looked for. Right and missed
pixels count in both: they are annotated. Classes of stuff are annotated everywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from pipeline.data.labels.label_space import STUFF, LabelSpace
from pipeline.data.store.looked_for import LookedFor
from pipeline.evaluation.image_counts import ImageCounts


def federated_iou(counts: ImageCounts, looked_for: LookedFor, label_space: LabelSpace) -> np.ndarray:
    """Return (C,) IoU without the false positives where a class was not looked for; NaN where not defined."""
    everywhere = np.array([bool(entry.category_ids.get(STUFF)) for entry in label_space.classes])
    counted = everywhere[counts.classes] | looked_for.contain(
        counts.image_ids[counts.images], counts.classes + 1
    )
    predicted = np.where(counted, counts.predicted, counts.hits)
    return _iou(dataclasses.replace(counts, predicted=predicted), label_space.num_classes)


def federated_metrics(
    counts: ImageCounts, looked_for: LookedFor | None, label_space: LabelSpace
) -> dict[str, float]:
    """Return "miou_federated"; nothing for a dataset in which all classes are annotated everywhere."""
    if looked_for is None:
        return {}
    iou = federated_iou(counts, looked_for, label_space)
    return {"miou_federated": float(np.nanmean(iou))} if not np.isnan(iou).all() else {}


def val2017_metrics(counts: ImageCounts, files: Sequence[str], num_classes: int) -> dict[str, float]:
    """Return mIoU of the images of val2017 alone, where the split has others too.

    Args:
        counts: of the images.
        files: the paths of the images of the split, in the same order; there may be more.
        num_classes: C.
    """
    wanted = np.array([file.startswith("val2017/") for file in files[: len(counts.image_ids)]], bool)
    if not wanted.any() or wanted.all():
        return {}
    rows = wanted[counts.images]
    some = {
        name: getattr(counts, name)[rows] for name in ("images", "classes", "hits", "predicted", "actual")
    }
    iou = _iou(dataclasses.replace(counts, **some), num_classes)
    found = {} if np.isnan(iou).all() else {"miou_val2017": float(np.nanmean(iou))}
    return {**found, "images_val2017": int(wanted.sum())}


def _iou(counts: ImageCounts, num_classes: int) -> np.ndarray:
    hits, predicted, actual = (
        np.bincount(counts.classes, values, num_classes)
        for values in (counts.hits, counts.predicted, counts.actual)
    )
    with np.errstate(invalid="ignore"):
        return np.asarray(hits / (predicted + actual - hits))
