"""Store which classes were looked for in an image: in LVIS, not every object of every class is annotated.

A class was looked for where it is annotated or listed as absent (`neg_category_ids`), unless the annotation
is listed as not exhaustive (`not_exhaustive_category_ids`). Predicting another class there is nobody's fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.runtime.errors import DataError

NAME = "looked_for.npz"
_IDS = 2**16  # class ids are 16-bit


@dataclass(frozen=True, eq=False)
class LookedFor:
    """Hold the classes that were looked for in each image.

    Attributes:
        image_ids: (images,) int64.
        class_ids: (n,) uint16, of all images one after the other.
        ends: (images,) int64, where those of an image end.
    """

    image_ids: np.ndarray
    class_ids: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, classes: Mapping[int, Sequence[int]]) -> LookedFor:
        """Make it of class ids by image id."""
        images = sorted(classes)
        parts = [np.array(sorted(classes[image]), np.uint16) for image in images]
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        return cls(np.array(images, np.int64), np.concatenate([np.empty(0, np.uint16), *parts]), ends)

    def contain(self, image_ids: np.ndarray, class_ids: np.ndarray) -> np.ndarray:
        """Tell for pairs of image and class, (n,) each, whether the class was looked for there: (n,) bool."""
        images = np.repeat(np.arange(len(self.image_ids)), np.diff(self.ends, prepend=0))
        place = np.searchsorted(self.image_ids, image_ids).clip(max=max(len(self.image_ids) - 1, 0))
        if not len(self.image_ids):
            return np.zeros(len(image_ids), bool)
        known = self.image_ids[place] == image_ids
        wanted = place.astype(np.int64) * _IDS + class_ids
        return np.asarray(known & np.isin(wanted, images * _IDS + self.class_ids))

    def save(self, folder: Path) -> None:
        """Write it into a bootstrapped folder; the same bytes for the same content."""
        with (folder / NAME).open("wb") as file:
            np.savez(file, image_ids=self.image_ids, class_ids=self.class_ids, ends=self.ends)

    @classmethod
    def load(cls, folder: Path) -> LookedFor | None:
        """Read what `save` wrote; None where the dataset has no such lists.

        Raises:
            DataError: a damaged file.
        """
        path = folder / NAME
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(file["image_ids"], file["class_ids"], file["ends"])
        except (OSError, ValueError, KeyError) as error:
            hint = "make it again: dvc repro bootstrap, or pipeline data bootstrap ROOT OUT"
            raise DataError("a damaged list of classes", where=path, found=error, hint=hint) from error
