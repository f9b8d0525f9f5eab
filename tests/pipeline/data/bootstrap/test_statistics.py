"""The statistics and tables of a bootstrapped dataset."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path

import pytest

from pipeline.data.bootstrap.build import bootstrap
from pipeline.data.bootstrap.options import BootstrapOptions
from pipeline.data.bootstrap.statistics import label_space_table
from pipeline.data.labels.merge import merge_categories
from pipeline.data.labels.official import official_categories
from pipeline.data.loading.dataset import SegmentationDataset
from tests.pipeline.data.small_dataset import (
    APPLE,
    BRANCH,
    CUP,
    SmallDataset,
    typical,
)


@pytest.fixture
def data(tmp_path: Path) -> SmallDataset:
    return typical(tmp_path / "root")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "made" / "out"


def test_the_statistics_count_images_and_pixels(data: SmallDataset, out: Path) -> None:
    root = data.write()
    bootstrap(root, out, BootstrapOptions(holdout_fraction=0.25))
    with (out / "class_statistics.csv").open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert len(rows) == 5
    assert (rows["apple"]["train_images"], rows["apple"]["train_pixels"]) == ("3", str(3 * 16))
    assert (rows["cup"]["holdout_images"], rows["cup"]["holdout_pixels"]) == ("1", str(16 - 4))
    assert (rows["desk-stuff"]["val_images"], rows["desk-stuff"]["val_pixels"]) == ("1", "48")
    splits = json.loads((out / "manifest.json").read_text())["splits"]
    assert (splits["val"]["pixels"], splits["val"]["labelled_pixels"]) == (128, 64 + 16)
    assert splits["val"]["classes_seen"] == 3
    told = json.loads((out / "statistics.json").read_text())
    assert told["splits"]["val"] == {
        "images": 2,
        "pixels": 128,
        "coverage": 80 / 128,
        "pixels_from": {"things": 16 + 16, "stuff": 48, "nothing": 48},
        "groups": {
            "f": {"classes": 1, "seen": 0, "pixels": 0},
            "c": {"classes": 1, "seen": 1, "pixels": 16},
            "r": {"classes": 1, "seen": 1, "pixels": 16},
            "stuff": {"classes": 2, "seen": 1, "pixels": 48},
        },
    }
    assert told["classes_never_seen"] == {
        "train": ["blanket", "desk-stuff"],
        "holdout": ["blanket", "desk-stuff"],
        "val": ["apple", "branch"],
        "all": [],
    }
    assert told["classes"][CUP - 1]["pixels"] == {"train": 36, "holdout": 12, "val": 16}
    dataset = SegmentationDataset(out, root, "train")
    seen = Counter(int(train_id) for ids in dataset.class_presence() for train_id in ids)
    assert seen == {APPLE - 1: 3, CUP - 1: 3, BRANCH - 1: 3}


def test_the_csv_has_a_line_a_class_with_both_category_ids() -> None:
    official = official_categories()
    merged = merge_categories(official.lvis, official.stuff, official.merged_pairs)
    rows = list(csv.DictReader(io.StringIO(label_space_table(merged))))
    assert len(rows) == 1284
    assert rows[109] == {
        "class_id": "110",
        "name": "blanket",
        "source": "lvis",
        "frequency": "f",
        "lvis_category_ids": "110",
        "stuff_category_ids": "93",
    }
