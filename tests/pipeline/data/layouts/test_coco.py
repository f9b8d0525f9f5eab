"""Annotations in COCO's format of any categories, through the whole chain."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.bootstrap.build import bootstrap
from pipeline.data.bootstrap.options import BootstrapOptions
from pipeline.data.check.layouts import check_layout
from pipeline.data.labels.label_space import MAX_CLASSES, LabelSpace
from pipeline.data.layouts.opening import open_layout
from pipeline.data.loading.batch import IGNORE_INDEX
from pipeline.data.loading.dataset import SegmentationDataset
from pipeline.runtime.errors import DataError, UsageError
from tests.pipeline.data.layouts.small_layouts import Coco, masks_of
from tests.pipeline.data.small_dataset import typical, whole


@pytest.fixture
def coco(tmp_path: Path) -> Coco:
    return Coco(tmp_path / "coco")


def test_coco_annotations_of_any_categories_are_drawn(coco: Coco, tmp_path: Path) -> None:
    """Class ids follow the categories' ids; the crowd, an RLE list, fills what the kite leaves."""
    root, out = coco.write(), tmp_path / "out"
    result = bootstrap(root, out, BootstrapOptions(layout="coco"))
    assert [(c.name, c.category_ids, c.frequency) for c in result.label_space.classes] == [
        ("dog", {"coco": (7,)}, "r"),
        ("kite", {"coco": (20,)}, "r"),
        ("kite", {"coco": (90,)}, "r"),
    ]
    expected = np.zeros((8, 8), int)
    expected[:, 2:] = 1
    expected[:4, :4] = 3
    found = masks_of(out, root)
    assert set(found) == {f"{s}/park/{i}.png" for s, i in [*(("train2017", i) for i in range(1, 5))]} | {
        "val2017/park/11.png",
        "val2017/park/12.png",
    }
    for mask in found.values():
        np.testing.assert_array_equal(mask, expected)
    sample = SegmentationDataset(out, root, "val")[0]
    assert sample.target[7, 0] == IGNORE_INDEX
    assert json.loads((out / "manifest.json").read_text())["layout"] == "coco"


def test_frequencies_in_the_file_are_kept_and_others_are_counted(coco: Coco, tmp_path: Path) -> None:
    for tree in coco.files.values():
        tree["categories"] = [dict(row, frequency="c") for row in tree["categories"]]
    assert set(
        bootstrap(coco.write(), tmp_path / "a", BootstrapOptions(layout="coco")).label_space.frequencies
    ) == {"c"}
    space = LabelSpace(
        bootstrap(coco.root, tmp_path / "b", BootstrapOptions(layout="coco")).label_space.classes
    )
    assert space.with_frequencies([10, 11, 101]).frequencies == ["r", "c", "f"]


def test_coco_stuffs_other_means_unlabeled(coco: Coco, tmp_path: Path) -> None:
    for tree in coco.files.values():
        tree["categories"] = [
            {"id": 90, "name": "sky"},
            {"id": 7, "name": "fog"},
            {"id": 183, "name": "other"},
        ]
        for row in tree["annotations"]:
            row["category_id"] = {90: 183, 7: 7}[row["category_id"]]
    root = coco.write()
    assert bootstrap(root, tmp_path / "out", BootstrapOptions(layout="coco")).label_space.names == [
        "fog",
        "sky",
    ]
    assert (masks_of(tmp_path / "out", root)["train2017/park/1.png"][:4, :4] == 0).all()


def test_lvis_in_the_coco_layout_gives_the_masks_of_lvis_alone(tmp_path: Path) -> None:
    data = typical(tmp_path / "root")
    for split in ("train", "val"):
        for row in data.files[f"lvis_v1_{split}"]["images"]:
            row["file_name"] = row["coco_url"].rpartition("/")[2]
        data.files[f"stuff_{split}2017"]["annotations"] = []
    for row in data.files["lvis_v1_val"]["images"]:  # here, each split's images lie in one folder
        (data.root / "train2017" / row["file_name"]).exists() and (
            data.root / "train2017" / row["file_name"]
        ).rename(data.root / "val2017" / row["file_name"])
        row["coco_url"] = f"http://x/val2017/{row['file_name']}"
    root = data.write()
    bootstrap(root, tmp_path / "official")
    for name in ("stuff_train2017", "stuff_val2017"):
        data.path(name).unlink()
    bootstrap(root, tmp_path / "coco", BootstrapOptions(layout="coco"))
    official, found = masks_of(tmp_path / "official", root), masks_of(tmp_path / "coco", root)
    assert official.keys() == found.keys()
    for name, mask in official.items():
        np.testing.assert_array_equal(found[name], mask)


def without(name: str) -> Callable[[Coco], None]:
    return lambda coco: (coco.root / "annotations" / f"{name}.json").unlink()


def second_file(coco: Coco) -> None:
    (coco.root / "annotations" / "captions_train2017.json").write_text("{}")


def climbing(coco: Coco) -> None:
    coco.files["instances_val2017"]["images"][0]["file_name"] = "../../secret.png"
    coco.write()


def endless(coco: Coco) -> None:
    coco.files["instances_val2017"]["images"][0]["file_name"] = "a" * 5_000
    coco.write()


def nothing_annotated(coco: Coco) -> None:
    coco.files["instances_train2017"]["annotations"].clear()
    coco.write()


def no_name(coco: Coco) -> None:
    del coco.files["instances_val2017"]["images"][0]["file_name"]
    coco.write()


def other_categories(coco: Coco) -> None:
    coco.files["instances_val2017"]["categories"] = [{"id": 90, "name": "bird"}, {"id": 7, "name": "dog"}]
    coco.write()


def in_both(coco: Coco) -> None:
    train, val = (coco.files[f"instances_{split}2017"] for split in ("train", "val"))
    val["images"].append(train["images"][0])
    val["annotations"] += train["annotations"][:1]
    coco.write()


def no_folder(coco: Coco) -> None:
    (coco.root / "val2017").rename(coco.root / "test2017")


def two_folders(coco: Coco) -> None:
    (coco.root / "validation").mkdir()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without("instances_val2017"), "no annotation file for val"),
        (second_file, "captions_train2017.json, instances_train2017.json"),
        (climbing, "a file_name that names no file in its folder"),
        (endless, "a file_name that names no file in its folder"),
        (nothing_annotated, "no image to train on"),
        (no_name, "the key 'file_name' is missing"),
        (other_categories, "category 20: 'kite' and absent"),
        (in_both, "a file of this name lies in train2017/"),
        (no_folder, "no folder with the val images"),
        (two_folders, "val2017, validation"),
    ],
)
def test_a_broken_coco_layout_is_one_error(
    coco: Coco, tmp_path: Path, spoil: Callable[[Coco], None], words: str
) -> None:
    coco.write()
    spoil(coco)
    with pytest.raises(DataError) as caught:
        bootstrap(coco.root, tmp_path / "out", BootstrapOptions(layout="coco"))
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()
    told = [
        " ".join([fault.kind, fault.detail, fault.remedy]) for fault in check_layout(coco.root, "coco").faults
    ]
    assert any(words in text for text in told), told


@pytest.mark.slow
@pytest.mark.parametrize("number", [MAX_CLASSES, MAX_CLASSES + 1])
def test_as_many_categories_as_masks_can_hold(coco: Coco, tmp_path: Path, number: int) -> None:
    for tree in coco.files.values():
        tree["categories"] = [{"id": i, "name": str(i)} for i in range(1, number + 1)]
        for row in tree["annotations"]:
            row |= {"category_id": number, "segmentation": whole()}
    root = coco.write()
    if number > MAX_CLASSES:
        with pytest.raises(UsageError, match="65534"):
            open_layout("coco", root)
        return
    bootstrap(root, tmp_path / "out", BootstrapOptions(layout="coco"))
    assert (masks_of(tmp_path / "out", root)["val2017/park/11.png"] == MAX_CLASSES).all()
