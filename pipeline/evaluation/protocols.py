"""Score predictions as the official tools of a dataset do, where that differs from `metrics`.

Cityscapes and Pascal VOC average the IoU as `metrics` does: ignored pixels count nowhere. Cityscapes lets a
method predict ids that are not evaluated; on a labeled pixel these are misses (`ClassCounts.update`). ADE20K
ranks by the mean of pixel accuracy and mean IoU. The paper evaluates COCO-Stuff 10k on images warped to
512 x 512: `evaluate.warp`.
"""

from __future__ import annotations

from pipeline.evaluation.metrics import ClassCounts

ADE20K_CLASSES = 150


def official_metrics(layout: str, counts: ClassCounts) -> dict[str, float | None]:
    """Return the scores by which the dataset of a layout is ranked, beyond mIoU and pixel accuracy.

    Args:
        layout: of the dataset; its whole label space must have been evaluated, else there is no such score.
        counts: of the whole val split.

    Returns:
        For ade20k "ade20k_score", in which a class that is nowhere counts as IoU 0, as in the challenge's
        toolkit; None where no pixel is labeled. For the other layouts nothing.
    """
    if layout != "ade20k" or counts.num_classes != ADE20K_CLASSES:
        return {}
    labeled = int(counts.actual.sum())
    if not labeled:
        return {"ade20k_score": None}
    miou = float(counts.iou().nan_to_num(0.0).mean())
    accuracy = int(counts.true_positives.sum()) / labeled
    return {"ade20k_score": (miou + accuracy) / 2}
