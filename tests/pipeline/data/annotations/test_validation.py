"""The rules for the rows of annotation files: each breach is one error that names its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.runtime.errors import DataError
from tests.pipeline.data.annotations.reading import read_lvis, read_stuff
from tests.pipeline.data.small_dataset import SmallDataset, typical

LVIS_TRAIN, STUFF_TRAIN = "lvis_v1_train", "stuff_train2017"


@pytest.fixture
def data(tmp_path: Path) -> SmallDataset:
    return typical(tmp_path)


def change(key: str, place: int, **values: Any) -> Callable[[dict[str, Any]], None]:
    def spoil(tree: dict[str, Any]) -> None:
        tree[key][place].update(values)

    return spoil


def drop(key: str, place: int, name: str) -> Callable[[dict[str, Any]], None]:
    def spoil(tree: dict[str, Any]) -> None:
        del tree[key][place][name]

    return spoil


def repeat(key: str) -> Callable[[dict[str, Any]], None]:
    def spoil(tree: dict[str, Any]) -> None:
        tree[key].append(dict(tree[key][0]))

    return spoil


def replace(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def spoil(tree: dict[str, Any]) -> None:
        tree[key] = value

    return spoil


DAMAGES = [
    (replace("images", [3]), "images[0]"),
    (replace("annotations", ["x"]), "annotations[0]"),
    (replace("categories", [None]), "categories[0]"),
    (drop("images", 0, "id"), "'id' is missing"),
    (drop("images", 0, "height"), "'height' is missing"),
    (drop("images", 0, "coco_url"), "'coco_url' is missing"),
    (change("images", 0, id="1"), "'id' has a wrong value"),
    (change("images", 0, id=True), "'id' has a wrong value"),
    (change("images", 0, width=8.5), "'width' has a wrong value"),
    (change("images", 0, width=0), "impossible image size"),
    (change("images", 0, height=-8), "impossible image size"),
    (change("images", 0, height=10**9), "impossible image size"),
    (change("images", 0, coco_url=None), "'coco_url' has a wrong value"),
    (change("images", 0, coco_url="a.jpg"), "names no folder and file"),
    (change("images", 0, coco_url="http://x/../../etc/passwd/.."), "names no folder and file"),
    (change("images", 0, coco_url="http://x/../a.jpg"), "names no folder and file"),
    (change("images", 0, coco_url="http://[/train2017/a.jpg"), "names no folder and file"),
    (repeat("images"), "image id is listed twice"),
    (drop("annotations", 1, "id"), "annotations[1]"),
    (drop("annotations", 1, "image_id"), "annotation 2"),
    (drop("annotations", 1, "category_id"), "'category_id' is missing"),
    (drop("annotations", 1, "segmentation"), "'segmentation' is missing"),
    (repeat("annotations"), "annotation id is listed twice"),
    (change("annotations", 1, image_id=99), "unknown image"),
    (change("annotations", 1, image_id=None), "'image_id' has a wrong value"),
    (change("annotations", 1, category_id=4), "unknown category"),
    (change("annotations", 1, category_id=[1]), "found:   a list"),
    (drop("categories", 0, "id"), "categories[0]"),
    (drop("categories", 0, "name"), "'name' is missing"),
    (drop("categories", 0, "frequency"), "'frequency' is missing"),
    (change("categories", 0, frequency="x"), "unknown frequency"),
    (change("categories", 0, name=5), "'name' has a wrong value"),
    (repeat("categories"), "category id is listed twice"),
]


@pytest.mark.parametrize(("spoil", "words"), DAMAGES)
def test_damage_is_named_with_its_place(data: SmallDataset, spoil: Callable[[Any], None], words: str) -> None:
    spoil(data.files[LVIS_TRAIN])
    data.write()
    with pytest.raises(DataError) as caught:
        read_lvis(data.path(LVIS_TRAIN))
    assert words in str(caught.value)
    assert "lvis_v1_train.json" in str(caught.value.where)


def test_an_unknown_category_names_file_annotation_and_image(data: SmallDataset) -> None:
    data.files[STUFF_TRAIN]["annotations"][2]["category_id"] = 254
    data.write()
    with pytest.raises(DataError) as caught:
        read_stuff(data.path(STUFF_TRAIN))
    problem = caught.value
    assert str(problem.where).endswith("stuff_train2017.json: annotation 3, image 3")
    assert (problem.found, problem.exit_code) == ("category 254", 3)
    assert problem.allowed
    assert problem.hint
