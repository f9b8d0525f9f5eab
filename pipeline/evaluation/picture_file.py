"""Keep evaluated images with truth and prediction in one ZIP file, for the report.

`pictures.zip` has for each image ID.jpg, ID_truth.png and ID_prediction.png: class ids in 16-bit gray as in
the masks, 0 for unlabeled pixels, which are unlabeled in the prediction too. All are shrunk to `LONGEST_SIDE`
for the screen: numbers are never taken from them. Needs NumPy and Pillow only.
"""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.runtime.files import atomic_path

LONGEST_SIDE = 480
"""Pixels."""
KINDS = ("random", "best", "worst")
LEAST_LABELED = 1000
"""Labeled pixels without which an image is neither a best nor a worst one."""
_DATE = (2020, 1, 1, 0, 0, 0)  # equal pictures are equal files
DAMAGED = (OSError, KeyError, ValueError, zipfile.BadZipFile, UnidentifiedImageError)
"""What reading a missing or damaged file raises."""


@dataclass(frozen=True, eq=False)
class Picture:
    """Hold an evaluated image, shrunk.

    Attributes:
        image_id: COCO's.
        photograph: (H, W, 3) uint8 RGB.
        truth: (H, W) uint16 class ids, 0 = unlabeled.
        prediction: the same of the prediction, 0 where the truth is unlabeled.
    """

    image_id: int
    photograph: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray


class PictureWriter:
    """Add pictures to a file that is being written."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def add(self, image_id: int, image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Shrink and write one image.

        Args:
            image_id: COCO's.
            image: (H, W, 3) uint8 RGB.
            truth: (H, W) class ids, 0 = unlabeled.
            prediction: (H, W) class ids.
        """
        height, width = shrunk_size(*truth.shape)
        photograph = Image.fromarray(image)
        if (height, width) != truth.shape:
            photograph = photograph.resize((width, height), Image.Resampling.LANCZOS)
        self._write(f"{image_id}.jpg", photograph, "JPEG", quality=85)
        labeled = np.where(truth == 0, 0, prediction)
        for kind, ids in (("truth", truth), ("prediction", labeled)):
            small = _nearest(ids.astype(np.uint16), height, width)
            self._write(f"{image_id}_{kind}.png", Image.fromarray(small), "PNG")

    def _write(self, name: str, picture: Image.Image, kind: str, **options: int) -> None:
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        self._archive.writestr(zipfile.ZipInfo(name, _DATE), buffer.getvalue())


@contextlib.contextmanager
def writing_pictures(path: Path) -> Iterator[PictureWriter]:
    """Write a file of pictures, which is there when the block succeeds."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        yield PictureWriter(archive)


def read_picture(path: Path, image_id: int) -> Picture:
    """Read one picture.

    Raises:
        OSError, KeyError, ValueError, zipfile.BadZipFile, UnidentifiedImageError: as `DAMAGED`.
    """
    with zipfile.ZipFile(path) as archive:
        parts = [
            np.array(Image.open(io.BytesIO(archive.read(f"{image_id}{end}"))))
            for end in (".jpg", "_truth.png", "_prediction.png")
        ]
    return Picture(image_id, parts[0], *(part.astype(np.uint16) for part in parts[1:]))


def chosen_pictures(
    drawn: Sequence[int], accuracy: Mapping[int, float], labeled: Mapping[int, int], wanted: int
) -> dict[str, list[int]]:
    """Choose `wanted` images of each of `KINDS`: the first drawn ones, those most and those least right.

    Args:
        drawn: ids of the kept images, in the order in which they were drawn.
        accuracy: share of right pixels by image id.
        labeled: number of labeled pixels by image id.
        wanted: of each kind, if there are as many.
    """
    able = [one for one in drawn if labeled.get(one, 0) >= LEAST_LABELED and one in accuracy]
    ranked = sorted(able, key=lambda one: (-accuracy[one], one))
    worst = list(reversed(ranked[max(len(ranked) - wanted, 0) :]))
    return {"random": list(drawn[:wanted]), "best": ranked[:wanted], "worst": worst}


def shrunk_size(height: int, width: int) -> tuple[int, int]:
    """Return height and width of a picture whose longer side has at most `LONGEST_SIDE` pixels."""
    factor = min(LONGEST_SIDE / max(height, width), 1.0)
    return max(round(height * factor), 1), max(round(width * factor), 1)


def _nearest(ids: np.ndarray, height: int, width: int) -> np.ndarray:
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for new, old in zip((height, width), ids.shape, strict=True)
    )
    return np.ascontiguousarray(ids[rows[:, None], columns])
