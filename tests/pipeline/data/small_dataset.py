"""A dataset of a few 8 x 8 images in the official layout, written by hand for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LVIS_CATEGORIES = [
    {"id": 1, "name": "apple", "synset": "apple.n.01", "frequency": "f"},
    {"id": 2, "name": "cup", "synset": "cup.n.01", "frequency": "c"},
    {"id": 110, "name": "blanket", "synset": "blanket.n.01", "frequency": "r"},
]
STUFF_CATEGORIES = [
    {"id": 93, "name": "blanket", "supercategory": "textile"},
    {"id": 94, "name": "branch", "supercategory": "plant"},
    {"id": 110, "name": "desk-stuff", "supercategory": "furniture-stuff"},
    {"id": 183, "name": "other", "supercategory": "other"},
]
APPLE, CUP, BLANKET, BRANCH, DESK = 1, 2, 3, 4, 5
"""Class ids that these categories get."""

FILES = ("lvis_v1_train", "lvis_v1_val", "stuff_train2017", "stuff_val2017")


def box(left: int, top: int, right: int, bottom: int) -> list[list[float]]:
    """A rectangle as polygons: columns left..right - 1, rows top..bottom - 1."""
    return [[left, top, right, top, right, bottom, left, bottom]]


def whole(height: int = 8, width: int = 8) -> dict[str, Any]:
    """All pixels of an image, as uncompressed RLE."""
    return {"size": [height, width], "counts": [0, height * width]}


class SmallDataset:
    """The four annotation files, to be filled, spoilt and written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, dict[str, list[Any]]] = {
            name: {
                "images": [],
                "annotations": [],
                "categories": [dict(c) for c in (LVIS_CATEGORIES if "lvis" in name else STUFF_CATEGORIES)],
            }
            for name in FILES
        }

    def add(
        self,
        image_id: int,
        split: str = "train",
        *,
        lvis: list[tuple[int, Any]] = (),  # type: ignore[assignment]
        stuff: list[tuple[int, Any]] = (),  # type: ignore[assignment]
        folder: str = "train2017",
        size: tuple[int, int] = (8, 8),
    ) -> None:
        """Adds an image of (height, width) with (category id, segmentation) annotations, and its JPEG."""
        name = f"{image_id:012d}.jpg"
        row = {"id": image_id, "height": size[0], "width": size[1]}
        url = f"http://images.cocodataset.org/{folder}/{name}"
        self.files[f"lvis_v1_{split}"]["images"].append(row | {"coco_url": url})
        self._annotate(f"lvis_v1_{split}", image_id, lvis)
        if stuff:
            self.files[f"stuff_{folder}"]["images"].append(row | {"coco_url": url, "file_name": name})
            self._annotate(f"stuff_{folder}", image_id, stuff)
        path = self.root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(image_id).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, quality=95)

    def _annotate(self, name: str, image_id: int, annotations: list[tuple[int, Any]]) -> None:
        for category_id, segmentation in annotations:
            rows = self.files[name]["annotations"]
            row = {"id": len(rows) + 1, "image_id": image_id, "category_id": category_id}
            rows.append(row | {"segmentation": segmentation, "area": 1.0, "bbox": [0, 0, 1, 1]})

    def path(self, name: str) -> Path:
        """The file of an annotation list."""
        return self.root / "annotations" / f"{name}.json"

    def write(self) -> Path:
        """Writes the annotation files and returns the root."""
        for folder in ("annotations", "train2017", "val2017"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        for name, tree in self.files.items():
            self.path(name).write_text(json.dumps(tree))
        return self.root


def typical(root: Path, num_train: int = 4) -> SmallDataset:
    """Things over stuff in train and val; image 90 of val lies in train2017, image 91 has no annotation."""
    data = SmallDataset(root)
    for image_id in range(1, num_train + 1):
        data.add(image_id, lvis=[(1, box(1, 1, 5, 5)), (2, box(3, 3, 7, 7))], stuff=[(94, whole())])
    data.add(90, "val", lvis=[(110, box(0, 0, 4, 4))], stuff=[(110, whole())])
    data.add(91, "val", folder="val2017")
    data.add(92, "val", lvis=[(2, box(2, 2, 6, 6))], folder="val2017")
    return data
