"""Name the published files, and read the official category lists that come with the package."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

LVIS_FILES = {"train": "lvis_v1_train.json", "val": "lvis_v1_val.json"}
STUFF_FILES = ("stuff_train2017.json", "stuff_val2017.json")
IMAGE_FOLDERS = ("train2017", "val2017")


@dataclass(frozen=True)
class OfficialCategories:
    """Hold the category lists as published.

    Args:
        lvis: LVIS v1's 1,203 categories: id, name, synset, frequency.
        stuff: COCO-Stuff's 92 entries: id, name, supercategory; the last, 183 "other", stands for things.
        merged_pairs: stuff category id -> LVIS category id of the ten that share a name.
    """

    lvis: list[dict[str, Any]]
    stuff: list[dict[str, Any]]
    merged_pairs: dict[int, int]


def official_categories() -> OfficialCategories:
    """Read the lists that come with the package (this folder)."""
    folder = resources.files(__package__)

    def read(name: str, key: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(folder.joinpath(name).read_text(encoding="utf-8"))[key]
        return rows

    pairs = read("merged_pairs.json", "pairs")
    return OfficialCategories(
        lvis=read("lvis_v1.json", "categories"),
        stuff=read("coco_stuff.json", "categories"),
        merged_pairs={pair["stuff_id"]: pair["lvis_id"] for pair in pairs},
    )
