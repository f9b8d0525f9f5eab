"""Annotation files as wholes: what is read, and that a file that cannot be read is one error."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.annotations.index import RowReader
from pipeline.data.annotations.validation import AnnotationFile
from pipeline.runtime.errors import DataError
from tests.pipeline.data.annotations.reading import read_lvis, read_stuff
from tests.pipeline.data.small_dataset import SmallDataset, box, typical, whole

LVIS_TRAIN, STUFF_TRAIN = "lvis_v1_train", "stuff_train2017"


@pytest.fixture
def data(tmp_path: Path) -> SmallDataset:
    return typical(tmp_path)


def segmentations(file: AnnotationFile, image_id: int) -> list[Any]:
    with RowReader() as reader:
        return [reader.read(row.segmentation, "") for row in file.by_image[image_id]]


def test_images_are_found_by_coco_url_and_keep_their_annotations_in_order(data: SmallDataset) -> None:
    data.write()
    val = read_lvis(data.path("lvis_v1_val"))
    assert [entry.file for entry in val.images.values()] == [
        "train2017/000000000090.jpg",
        "val2017/000000000091.jpg",
        "val2017/000000000092.jpg",
    ]
    train = read_lvis(data.path(LVIS_TRAIN))
    assert [annotation.category_id for annotation in train.by_image[1]] == [1, 2]
    assert segmentations(train, 1)[0] == box(1, 1, 5, 5)
    assert 91 not in val.by_image


def test_stuff_keeps_rle_as_it_is(data: SmallDataset) -> None:
    data.write()
    stuff = read_stuff(data.path(STUFF_TRAIN))
    assert segmentations(stuff, 1)[0] == whole()
    assert [category["id"] for category in stuff.categories] == [93, 94, 110, 183]


def test_stuff_may_use_255_though_it_is_no_category(data: SmallDataset) -> None:
    data.add(7, stuff=[(255, whole())])
    data.write()
    assert read_stuff(data.path(STUFF_TRAIN)).by_image[7][0].category_id == 255


def test_reading_says_nothing_and_needs_neither_lvis_nor_its_opencv(
    data: SmallDataset, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data.write()
    handlers = list(logging.getLogger().handlers)
    for name in ("lvis", "cv2"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    read_lvis(data.path(LVIS_TRAIN))
    read_stuff(data.path(STUFF_TRAIN))
    out, err = capfd.readouterr()
    assert out == ""
    assert {line.partition(":")[0] for line in err.splitlines()} == {"read annotation files, pieces"}
    assert logging.getLogger().handlers == handlers


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize(("value", "told"), [({}, "an object"), (None, "null"), ("x", "a string")])
def test_a_file_without_one_of_its_lists_is_one_error(
    data: SmallDataset, key: str, value: object, told: str
) -> None:
    tree = data.files[LVIS_TRAIN]
    tree[key] = value
    data.write()
    with pytest.raises(DataError, match=f"{key}: {told}") as caught:
        read_lvis(data.path(LVIS_TRAIN))
    assert str(caught.value.where).endswith("lvis_v1_train.json")
    del tree[key]
    data.write()
    with pytest.raises(DataError, match=f"no '{key}'"):
        read_lvis(data.path(LVIS_TRAIN))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"images": [],\n "annotations": [}', "line 2, column 18"),
        ("", "line 1, column 1"),
        ("\ufeff{}", "no 'images'"),
        ("[]", "found:   a list"),
        ("[" * 100_000, "unreadable annotation file"),
    ],
)
def test_malformed_json_is_named_by_line_and_column(data: SmallDataset, text: str, words: str) -> None:
    data.write()
    data.path(LVIS_TRAIN).write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_lvis(data.path(LVIS_TRAIN))
    assert words in str(caught.value)


@pytest.mark.parametrize("category", ["cup", "\\ud800 with NaN"])
def test_a_byte_order_mark_changes_nothing(data: SmallDataset, category: str) -> None:
    data.files[LVIS_TRAIN]["info"] = {"note": category, "number": float("nan")}  # JSON that msgspec refuses
    data.write()
    plain = read_lvis(data.path(LVIS_TRAIN))
    outlines = {image_id: segmentations(plain, image_id) for image_id in plain.by_image}
    data.path(LVIS_TRAIN).write_bytes(b"\xef\xbb\xbf" + data.path(LVIS_TRAIN).read_bytes())
    marked = read_lvis(data.path(LVIS_TRAIN))
    assert marked.images == plain.images
    assert {image_id: segmentations(marked, image_id) for image_id in marked.by_image} == outlines
    data.path(LVIS_TRAIN).write_text("{}", encoding="utf-16")
    with pytest.raises(DataError, match="begins like UTF-16"):
        read_lvis(data.path(LVIS_TRAIN))


def test_halves_of_surrogate_pairs_are_named(data: SmallDataset) -> None:
    data.files[LVIS_TRAIN]["categories"][1]["name"] = "cup \ud83d"
    data.write()
    with pytest.raises(
        DataError, match=r"key 'name' has a wrong (.|\n)*categories\[1\](.|\n)*ud83d"
    ) as caught:
        read_lvis(data.path(LVIS_TRAIN))
    assert str(caught.value).isascii()


def test_a_file_that_is_no_text_is_one_error(data: SmallDataset) -> None:
    data.write()
    data.path(LVIS_TRAIN).write_bytes(b'{"images": "\xff\xfe"}')
    with pytest.raises(DataError, match="unreadable annotation file"):
        read_lvis(data.path(LVIS_TRAIN))


def test_a_missing_file_and_a_missing_folder_are_told_apart(data: SmallDataset, tmp_path: Path) -> None:
    data.write()
    data.path(LVIS_TRAIN).unlink()
    with pytest.raises(DataError, match="no annotation file"):
        read_lvis(data.path(LVIS_TRAIN))
    with pytest.raises(DataError, match="no folder with annotations"):
        read_lvis(tmp_path / "nowhere" / "lvis_v1_train.json")
