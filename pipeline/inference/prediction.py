"""What is predicted for one picture: its class map, the classes in it, and a picture of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.labels.label_space import ClassEntry
from pipeline.data.loading.lettering import Label, write_labels
from pipeline.data.loading.palette import class_color
from pipeline.inference.outputs import coco_rle, output_paths, write_prediction

_ROWS = 256  # of a class map counted at a time
_NAMES = 24  # classes named in an overlay, at most
_NAMED_SHARE = 0.002  # of the picture: smaller classes are not named


@dataclass(frozen=True)
class FoundClass:
    """A class in a picture.

    Attributes:
        class_id: its number in the class map.
        name: as in the label space.
        pixels: how many.
        share: of the picture's pixels, 0 to 1.
        confidence: mean softmax probability of its pixels, 0 to 1.
    """

    class_id: int
    name: str
    pixels: int
    share: float
    confidence: float


@dataclass(frozen=True, eq=False)
class Prediction:
    """One picture's prediction, at the picture's own size, in its upright frame.

    Attributes:
        image: (H, W, 3) uint8 RGB, upright.
        class_map: (H, W) uint16 class ids, 0 = unlabeled.
        confidence: (H, W) float16 softmax probability of the class found, among the classes searched.
        classes: those of the class map, the largest first.
    """

    image: np.ndarray
    class_map: np.ndarray
    confidence: np.ndarray
    classes: tuple[FoundClass, ...]

    @property
    def unlabeled_share(self) -> float:
        """Share of the pixels without a class: those below the least confidence."""
        return max(0.0, 1 - sum(found.pixels for found in self.classes) / self.class_map.size)

    def overlay(self, *, opacity: float = 0.5, names: bool = True) -> Image.Image:
        """Return the picture with its classes laid over it by color, the larger ones named.

        Args:
            opacity: of the colors, 0 to 1.
            names: write the names.
        """
        colors = np.zeros((max((c.class_id for c in self.classes), default=0) + 1, 3), dtype=np.uint8)
        for found in self.classes:
            colors[found.class_id] = class_color(found.class_id)
        blended = self.image.copy()
        for first in range(0, len(blended), _ROWS):
            rows = slice(first, first + _ROWS)
            ids = self.class_map[rows]
            mixed = (1 - opacity) * self.image[rows] + opacity * colors[ids]
            blended[rows] = np.where(ids[:, :, None] > 0, np.rint(mixed), self.image[rows])
        picture = Image.fromarray(blended)
        if names:
            self._write_names(picture)
        return picture

    def _write_names(self, picture: Image.Image) -> None:
        step = max(1, max(self.class_map.shape) // 512)  # a place for a name needs no finer map
        small = self.class_map[step // 2 :: step, step // 2 :: step]
        labels = []
        for found in [one for one in self.classes if one.share >= _NAMED_SHARE][:_NAMES]:
            rows, columns = np.nonzero(small == found.class_id)
            if len(rows) == 0:
                continue
            # the pixel nearest to the middle: it lies on the class even where the middle does not
            nearest = int((np.abs(rows - np.median(rows)) + np.abs(columns - np.median(columns))).argmin())
            place = (int(columns[nearest]) * step + step // 2, int(rows[nearest]) * step + step // 2)
            labels.append(Label(*place, found.name, f"class {found.class_id}"))
        write_labels(picture, labels)

    def to_dict(self) -> dict[str, Any]:
        """Size and classes as plain types, for JSON."""
        height, width = self.class_map.shape
        classes = [
            {
                "class_id": found.class_id,
                "name": found.name,
                "pixels": found.pixels,
                "share": round(found.share, 6),
                "confidence": round(found.confidence, 4),
            }
            for found in self.classes
        ]
        return {
            "width": width,
            "height": height,
            "frame": "upright: EXIF orientation applied",
            "unlabeled_share": round(self.unlabeled_share, 6),
            "classes": classes,
        }

    def save(
        self,
        folder: Path | str,
        name: str = "prediction",
        *,
        rle: bool = False,
        about: Mapping[str, Any] | None = None,
    ) -> dict[str, Path]:
        """Write class map, overlay and JSON, as `pipeline.inference.outputs` describes.

        Args:
            folder: is made if need be.
            name: what the files' names begin with; a number becomes COCO's image id.
            rle: write run-length masks too.
            about: what else the JSON is to say.

        Returns:
            The files by kind.

        Raises:
            KilosegError: the disk is full, or the folder cannot be written.
        """
        paths = output_paths(Path(folder), name, rle=rle)
        record = {**(about or {}), **self.to_dict()}
        runs = None
        if rle:
            stem = name.rpartition("/")[2]
            scores = {found.class_id: found.confidence for found in self.classes}
            runs = coco_rle(self.class_map, scores, int(stem) if stem.isdecimal() else name)
        write_prediction(paths, self.class_map, self.overlay(), record, runs)
        return paths


def found_classes(
    class_map: np.ndarray, confidence: np.ndarray, entries: Sequence[ClassEntry]
) -> tuple[FoundClass, ...]:
    """Count the classes of a class map, the largest first, of equal ones the lower id.

    Args:
        class_map: (H, W) uint16 class ids.
        confidence: (H, W) probabilities.
        entries: of all classes, in the order of their ids.
    """
    pixels = np.zeros(len(entries) + 1, dtype=np.int64)
    sums = np.zeros(len(entries) + 1)
    for first in range(0, len(class_map), _ROWS):
        ids = class_map[first : first + _ROWS].reshape(-1)
        pixels += np.bincount(ids, minlength=len(pixels))
        weights = confidence[first : first + _ROWS].reshape(-1).astype(np.float64)
        sums += np.bincount(ids, weights=weights, minlength=len(pixels))
    seen = [
        class_id for class_id in np.argsort(-pixels, kind="stable").tolist() if class_id and pixels[class_id]
    ]
    return tuple(
        FoundClass(
            class_id,
            entries[class_id - 1].name,
            int(pixels[class_id]),
            float(pixels[class_id] / class_map.size),
            float(sums[class_id] / pixels[class_id]),
        )
        for class_id in seen
    )
