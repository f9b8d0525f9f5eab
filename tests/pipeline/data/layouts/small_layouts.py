"""Small datasets in the layouts that users have, and the masks made from them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.loading.dataset import SegmentationDataset
from tests.pipeline.data.small_dataset import box


def masks_of(out: Path, root: Path) -> dict[str, np.ndarray]:
    found = {}
    for split in ("train", "holdout", "val"):
        dataset = SegmentationDataset(out, root, split)
        found |= {dataset.row(i).file: dataset.class_mask(i) for i in range(len(dataset))}
    return found


def picture(path: Path, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (200, 30, 90)).save(path)


class Coco:
    """A small set of instances with categories 7, 90 and 20, written as users have it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, dict[str, list[Any]]] = {}
        categories = [{"id": 90, "name": "kite"}, {"id": 7, "name": "dog"}, {"id": 20, "name": "kite"}]
        for split, ids in (("train", range(1, 5)), ("val", range(11, 13))):
            tree: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": categories}
            for image_id in ids:
                name = f"park/{image_id}.png"
                tree["images"].append({"id": image_id, "height": 8, "width": 8, "file_name": name})
                tree["annotations"] += [
                    {
                        "id": 10 * image_id,
                        "image_id": image_id,
                        "category_id": 90,
                        "segmentation": box(0, 0, 4, 4),
                        "iscrowd": 0,
                    },
                    {
                        "id": 10 * image_id + 1,
                        "image_id": image_id,
                        "category_id": 7,
                        "segmentation": {"size": [8, 8], "counts": [16, 48]},
                        "iscrowd": 1,
                    },
                ]
                picture(root / f"{split}2017" / name)
            self.files[f"instances_{split}2017"] = tree

    def write(self) -> Path:
        (self.root / "annotations").mkdir(parents=True, exist_ok=True)
        for name, tree in self.files.items():
            (self.root / "annotations" / f"{name}.json").write_text(json.dumps(tree))
        return self.root


class Masks:
    """Masks of values 0, 3, 300 and 65,535, of which 0 is unlabeled."""

    VALUES = ((0, ""), (3, "grass"), (300, "path"), (65_535, "fence"))

    def __init__(self, root: Path) -> None:
        self.root = root
        for split, number in (("train", 4), ("val", 2)):
            for index in range(number):
                picture(root / split / "day" / f"{index:02d}.jpg", (4, 6))
                self.save(self.path(split, index), self.values())
        self.write_classes(self.VALUES)

    @staticmethod
    def values() -> np.ndarray:
        values = np.zeros((4, 6), np.uint16)
        values[:, 1:3], values[:, 3], values[3, 5] = 3, 300, 65_535
        return values

    def path(self, split: str, index: int) -> Path:
        return self.root / "annotations" / split / "day" / f"{index:02d}.png"

    def save(self, path: Path, values: np.ndarray, mode: str | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(values)
        (image.convert(mode) if mode else image).save(path)

    def write_classes(self, rows: Any) -> None:
        with (self.root / "annotations" / "classes.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("value", "name"), *rows])
