"""Annotation files: what is read, and that each kind of damage is one error that names its place."""

from __future__ import annotations

import builtins
import logging
import sys
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_dataset import SmallDataset, box, typical, whole

from pipeline.data.annotations import read_lvis, read_stuff
from pipeline.errors import DataProblem, Problem

LVIS_TRAIN, STUFF_TRAIN = "lvis_v1_train", "stuff_train2017"


@pytest.fixture
def data(tmp_path: Path) -> SmallDataset:
    return typical(tmp_path)


def test_images_are_found_by_coco_url_and_keep_their_annotations_in_order(data: SmallDataset) -> None:
    data.write()
    val = read_lvis(data.path("lvis_v1_val"))
    assert [entry.file for entry in val.images.values()] == [
        "train2017/000000000090.jpg",
        "val2017/000000000091.jpg",
        "val2017/000000000092.jpg",
    ]
    train = read_lvis(data.path(LVIS_TRAIN))
    assert [annotation["category_id"] for annotation in train.by_image[1]] == [1, 2]
    assert train.by_image[1][0]["segmentation"] == [array("d", box(1, 1, 5, 5)[0])]
    assert 91 not in val.by_image


def test_stuff_keeps_rle_as_it_is(data: SmallDataset) -> None:
    data.write()
    stuff = read_stuff(data.path(STUFF_TRAIN))
    assert stuff.by_image[1][0]["segmentation"] == whole()
    assert [category["id"] for category in stuff.categories] == [93, 94, 110, 183]


def test_stuff_may_use_255_though_it_is_no_category(data: SmallDataset) -> None:
    data.add(7, stuff=[(255, whole())])
    data.write()
    assert read_stuff(data.path(STUFF_TRAIN)).by_image[7][0]["category_id"] == 255


def test_the_libraries_say_nothing(data: SmallDataset, capfd: pytest.CaptureFixture[str]) -> None:
    data.write()
    handlers = list(logging.getLogger().handlers)
    for name in ("lvis", "lvis.lvis"):
        sys.modules.pop(name, None)
    read_lvis(data.path(LVIS_TRAIN))
    read_stuff(data.path(STUFF_TRAIN))
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == handlers


def test_a_missing_libgl_is_explained(data: SmallDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    data.write()
    real = builtins.__import__

    def fail(name: str, *rest: Any, **more: Any) -> Any:
        if name == "lvis":
            raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(Problem, match="libgl1"):
        read_lvis(data.path(LVIS_TRAIN))


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


def without(key: str) -> Callable[[dict[str, Any]], None]:
    def spoil(tree: dict[str, Any]) -> None:
        del tree[key]

    return spoil


DAMAGES = [
    (without("images"), "no 'images'"),
    (without("annotations"), "no 'annotations'"),
    (without("categories"), "no 'categories'"),
    (replace("images", {}), "images: an object"),
    (replace("annotations", None), "annotations: null"),
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
    with pytest.raises(DataProblem) as caught:
        read_lvis(data.path(LVIS_TRAIN))
    assert words in str(caught.value)
    assert "lvis_v1_train.json" in str(caught.value.where)


def test_an_unknown_category_names_file_annotation_and_image(data: SmallDataset) -> None:
    data.files[STUFF_TRAIN]["annotations"][2]["category_id"] = 254
    data.write()
    with pytest.raises(DataProblem) as caught:
        read_stuff(data.path(STUFF_TRAIN))
    problem = caught.value
    assert str(problem.where).endswith("stuff_train2017.json: annotation 3, image 3")
    assert (problem.found, problem.exit_code) == ("category 254", 3)
    assert problem.allowed
    assert problem.mend


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"images": [],\n "annotations": [}', "line 2, column 18"),
        ("", "line 1, column 1"),
        ("\ufeff{}", "line 1, column 1"),
        ("[]", "found:   a list"),
        ("[" * 100_000, "unreadable annotation file"),
    ],
)
def test_malformed_json_is_named_by_line_and_column(data: SmallDataset, text: str, words: str) -> None:
    data.write()
    data.path(LVIS_TRAIN).write_text(text, encoding="utf-8")
    with pytest.raises(DataProblem) as caught:
        read_lvis(data.path(LVIS_TRAIN))
    assert words in str(caught.value)


def test_a_file_that_is_no_text_is_one_error(data: SmallDataset) -> None:
    data.write()
    data.path(LVIS_TRAIN).write_bytes(b'{"images": "\xff\xfe"}')
    with pytest.raises(DataProblem, match="unreadable annotation file"):
        read_lvis(data.path(LVIS_TRAIN))


def test_a_missing_file_and_a_missing_folder_are_told_apart(data: SmallDataset, tmp_path: Path) -> None:
    data.write()
    data.path(LVIS_TRAIN).unlink()
    with pytest.raises(DataProblem, match="no annotation file"):
        read_lvis(data.path(LVIS_TRAIN))
    with pytest.raises(DataProblem, match="no folder with annotations"):
        read_lvis(tmp_path / "nowhere" / "lvis_v1_train.json")
