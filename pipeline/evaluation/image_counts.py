"""Hold the counts of every image: what regions, confidence intervals and comparisons of images need.

Only classes that are in an image's truth or prediction are kept, some twenty an image, so that nothing
grows with images x classes. Needs NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.runtime.files import atomic_path

SMALL, MEDIUM = 32**2, 96**2  # pixels, as in COCO's evaluation
SIZES = ("small", "medium", "large")
_ENDS = (0.025, 0.975)
_FIELDS = ("images", "classes", "hits", "predicted", "actual")


@dataclass(frozen=True, eq=False)
class ImageCounts:
    """Hold one row for each class of each image, in the order of the images; all are (rows,) int64.

    Attributes:
        image_ids: (images,) in the order of evaluation.
        images: position of the row's image in `image_ids`.
        classes: train id.
        hits: pixels predicted right.
        predicted: labeled pixels predicted as the class.
        actual: pixels of the truth.
    """

    image_ids: np.ndarray
    images: np.ndarray
    classes: np.ndarray
    hits: np.ndarray
    predicted: np.ndarray
    actual: np.ndarray

    def iou(self) -> np.ndarray:
        """Return (rows,) the IoU of the class in the image."""
        return np.asarray(self.hits / (self.predicted + self.actual - self.hits))

    def of_images(self, wanted: np.ndarray) -> ImageCounts:
        """Return the rows of the images marked in (images,) bool; `image_ids` stay as they are."""
        rows = wanted[self.images]
        return ImageCounts(self.image_ids, *(getattr(self, name)[rows] for name in _FIELDS))

    def image_accuracy(self) -> np.ndarray:
        """Return (images,) the share of right pixels; NaN for an image without a labeled one."""
        number = len(self.image_ids)
        with np.errstate(invalid="ignore"):
            return np.asarray(
                np.bincount(self.images, self.hits, number) / np.bincount(self.images, self.actual, number)
            )

    def accuracies(self) -> dict[int, float]:
        """Return the share of right pixels by image id, of the images that have a labeled pixel."""
        found = zip(self.image_ids.tolist(), self.image_accuracy().tolist(), strict=True)
        return {image_id: accuracy for image_id, accuracy in found if accuracy == accuracy}

    def labeled_pixels(self) -> dict[int, int]:
        """Return the number of labeled pixels by image id."""
        pixels = np.bincount(self.images, self.actual, len(self.image_ids)).astype(np.int64)
        return dict(zip(self.image_ids.tolist(), pixels.tolist(), strict=True))

    def region_metrics(self) -> dict[str, float]:
        """Return the mean IoU of small, medium and large regions, those that there are.

        A region is a class in an image whose truth has it. A small object hardly counts in the IoU of all
        pixels; here every region counts the same (as in Wang et al., "Revisiting Evaluation Metrics for
        Semantic Segmentation", NeurIPS 2023). Masks of classes do not part objects that touch.
        """
        size = (self.actual >= SMALL).astype(int) + (self.actual >= MEDIUM)
        groups = [self.iou()[(self.actual > 0) & (size == one)] for one in range(len(SIZES))]
        return {
            f"region_iou_{name}": float(group.mean())
            for name, group in zip(SIZES, groups, strict=True)
            if len(group)
        }

    def resampled_mious(self, *, resamples: int = 400, seed: int = 0) -> np.ndarray:
        """Return (resamples,) mIoU of as many draws of the images, with replacement.

        Equal seeds draw the same images from sets of as many, so that differences can be taken pair by pair.
        """
        number = len(self.image_ids)
        random = np.random.default_rng(seed)
        present, columns = np.unique(self.classes, return_inverse=True)
        mious = np.zeros(resamples)
        for position in range(resamples):
            times = np.bincount(random.integers(0, number, number), minlength=number)[self.images]
            hits, predicted, actual = (
                np.bincount(columns, times * counts, len(present))
                for counts in (self.hits, self.predicted, self.actual)
            )
            union = predicted + actual - hits
            if union.any():
                mious[position] = (hits[union > 0] / union[union > 0]).mean()
        return mious

    def miou_interval(self) -> tuple[float, float] | None:
        """Return the 95 % interval of mIoU by bootstrapping the images (the percentile method).

        It says what other val images of the same kind would have given this very model, and nothing of
        another training.

        Returns:
            The two ends; None with fewer than two images.
        """
        if len(self.image_ids) < 2 or not len(self.classes):
            return None
        low, high = np.quantile(self.resampled_mious(), _ENDS)
        return float(low), float(high)

    def miou_gain_interval(self, before: ImageCounts) -> tuple[float, float] | None:
        """Return the 95 % interval of this mIoU less `before`'s, image by image; None for other images."""
        if len(self.image_ids) < 2 or not np.array_equal(self.image_ids, before.image_ids):
            return None
        low, high = np.quantile(self.resampled_mious() - before.resampled_mious(), _ENDS)
        return float(low), float(high)

    def save(self, path: Path) -> None:
        """Write the counts as a compressed NumPy file, atomically."""
        arrays = {name: getattr(self, name) for name in ("image_ids", *_FIELDS)}
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> ImageCounts:
        """Read what `save` wrote.

        Raises:
            OSError, ValueError, KeyError: no such file, or another one.
        """
        with np.load(path, allow_pickle=False) as file:
            return cls(*(file[name] for name in ("image_ids", *_FIELDS)))
