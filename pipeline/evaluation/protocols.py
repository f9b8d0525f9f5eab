"""Score and write predictions as the official tools of a dataset do, where that differs from `metrics`.

Cityscapes and Pascal VOC average the IoU as `metrics` does: ignored pixels count nowhere. Cityscapes lets a
method predict ids that are not evaluated; on a labeled pixel these are misses (`ClassCounts.update`). ADE20K
ranks by the mean of pixel accuracy and mean IoU. The paper evaluates COCO-Stuff 10k on images warped to
512 x 512: `evaluate.warp`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.data.labels.label_space import LabelSpace
from pipeline.evaluation.metrics import ClassCounts
from pipeline.runtime.errors import UsageError

ADE20K_CLASSES = 150


def official_metrics(layout: str, counts: ClassCounts) -> dict[str, float]:
    """Return the scores by which the dataset of a layout is ranked, beyond mIoU and pixel accuracy.

    Args:
        layout: of the dataset; its whole label space must have been evaluated, else there is no such score.
        counts: of the whole val split.

    Returns:
        For ade20k "ade20k_score", in which a class that is nowhere counts as IoU 0, as in the challenge's
        toolkit. For the other layouts nothing.
    """
    if layout != "ade20k" or counts.num_classes != ADE20K_CLASSES:
        return {}
    miou = float(counts.iou().nan_to_num(0.0).mean())
    accuracy = int(counts.true_positives.sum()) / max(int(counts.actual.sum()), 1)
    return {"ade20k_score": (miou + accuracy) / 2}


def write_cityscapes(prediction: np.ndarray, image: Path, folder: Path, label_space: LabelSpace) -> Path:
    """Write a prediction as the Cityscapes server takes it: an 8-bit PNG of label ids at full resolution.

    Args:
        prediction: (H, W) train ids.
        image: what was predicted, CITY_SEQUENCE_FRAME_leftImg8bit.png; the server matches by these three.
        folder: is made if need be; one flat folder is uploaded as a zip.
        label_space: of a checkpoint that was trained on the layout cityscapes.

    Returns:
        The file.

    Raises:
        UsageError: a label space of another dataset.
    """
    from PIL import Image

    ids = [entry.category_ids.get("cityscapes", ()) for entry in label_space.classes]
    if not all(ids):
        raise UsageError(
            "predictions that are not of Cityscapes",
            found=f"a label space with classes of {label_space.classes[0].source}",
            allowed="a checkpoint trained with data.layout: cityscapes",
        )
    table = np.array([one[0] for one in ids], np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{image.stem.removesuffix('_leftImg8bit')}_labelIds.png"
    Image.fromarray(table[prediction]).save(path)
    return path
