"""Look at one image: what a variant predicts on it, class by class, and the picture of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from pipeline.checkpoint.format import load_checkpoint
from pipeline.config.paths import best_checkpoint_file, bootstrapped_folder
from pipeline.config.schema import Settings
from pipeline.data.labels.label_space import LabelSpace
from pipeline.data.loading.dataset import SegmentationDataset, require_root
from pipeline.data.store.manifest import SPLITS
from pipeline.evaluation.image_counts import ImageCounts
from pipeline.evaluation.per_image import PerImage
from pipeline.evaluation.picture_file import Picture
from pipeline.evaluation.pictures import side_by_side
from pipeline.runtime.device import choose_device, set_threads
from pipeline.runtime.errors import DataError, UsageError

_LEAST_HEIGHT = 360  # pixels of a drawn image


@dataclass(frozen=True, eq=False)
class SingleImage:
    """Hold an image with its truth and what a variant predicts.

    Attributes:
        variant: whose prediction it is.
        split: that has the image.
        picture: at the image's own size.
        counts: of the image's classes.
        label_space: names the classes.
    """

    variant: str
    split: str
    picture: Picture
    counts: ImageCounts
    label_space: LabelSpace

    def lines(self) -> list[str]:
        """Return the share of right pixels, and each class's numbers, those with most pixels first."""
        labeled, right = int(self.counts.actual.sum()), int(self.counts.hits.sum())
        share = (
            f"{right / labeled:.2%} of {labeled:,} labeled pixels right" if labeled else "nothing is labeled"
        )
        head = f"{'class':32} {'IoU':>8} {'true':>9} {'predicted':>9}"
        rows = zip(
            self.counts.classes.tolist(),
            self.counts.iou().tolist(),
            self.counts.actual.tolist(),
            self.counts.predicted.tolist(),
            strict=True,
        )
        ordered = sorted(rows, key=lambda row: (-row[2], -row[3]))
        classes = [
            f"{self.label_space.classes[train_id].name:32} {iou:8.2%} {actual:9,} {predicted:9,}"
            for train_id, iou, actual, predicted in ordered
        ]
        title = f"image {self.picture.image_id} of {self.split}, {self.variant}: {share}"
        return [title, "", head, *classes]

    def drawing(self) -> Image.Image:
        """Draw image, truth, prediction and errors side by side; a small image is enlarged."""
        scale = max(1, -(-_LEAST_HEIGHT // len(self.picture.truth)))
        return side_by_side(self.picture, scale=scale)


def predict_image(settings: Settings, image_id: int) -> SingleImage:
    """Predict one image of any split with a variant's best checkpoint.

    Args:
        settings: of the variant.
        image_id: of the image.

    Raises:
        DataError: no data, no such dataset folder, no checkpoint, or one of other classes.
        UsageError: no split has the image.
    """
    split, index, data = _find(settings, image_id)
    checkpoint = load_checkpoint(best_checkpoint_file(settings))
    if data.label_space != checkpoint.label_space:
        raise DataError(
            "the checkpoint was trained on other classes",
            where=best_checkpoint_file(settings),
            hint="train again on this data: dvc repro",
        )
    set_threads(settings.runtime.threads)
    device = choose_device(settings.runtime.device)
    sample = data[index]
    segmenter = checkpoint.segmenter().to(device).eval()
    with torch.no_grad():
        prediction = segmenter.predict(sample.image[None].to(device).float() / 255).cpu()
    counted = PerImage(data.label_space.num_classes)
    counted.update(prediction, sample.target[None], (image_id,))
    truth = (sample.target + 1).numpy().astype(np.uint16)
    class_ids = np.where(truth == 0, 0, prediction[0].numpy() + 1).astype(np.uint16)
    picture = Picture(image_id, sample.image.permute(1, 2, 0).numpy(), truth, class_ids)
    return SingleImage(settings.variant or "default", split, picture, counted.counts(), data.label_space)


def _find(settings: Settings, image_id: int) -> tuple[str, int, SegmentationDataset]:
    place = bootstrapped_folder(settings)
    require_root(settings.data.root)
    listed: list[int] = []
    for split in reversed(SPLITS):  # val first
        data = SegmentationDataset(place, settings.data.root, split)
        ids = data.image_ids()
        if image_id in ids:
            return split, ids.index(image_id), data
        listed += ids[:2]
    raise UsageError(
        "no such image",
        where=place,
        found=image_id,
        allowed=f"an id of the splits, such as {', '.join(map(str, listed[:3]))}",
        hint="pipeline data show data/bootstrapped lists them",
    )
