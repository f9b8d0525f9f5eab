"""Annotation files are read as the libraries of LVIS and COCO, or Python's json, read them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.annotations import reader
from pipeline.data.annotations.index import RowReader, Span
from pipeline.data.annotations.json_text import parse
from pipeline.data.annotations.reader import Source, read_files
from pipeline.data.annotations.validation import AnnotationFile
from pipeline.data.layouts.coco_lvis import OfficialLayout
from pipeline.runtime.errors import DataError
from pipeline.runtime.workers import worker_pool
from tests.paths import SHARED
from tests.pipeline.data.annotations.libraries import rows_by_image
from tests.pipeline.data.annotations.reading import read, read_lvis
from tests.pipeline.data.small_dataset import box, typical

MINI = SHARED / "data" / "coco_lvis_mini"
ByImage = dict[int, list[tuple[int, int, Any]]]


def resolved(file: AnnotationFile) -> ByImage:
    """Everything by image, as plain values."""
    with RowReader() as rows:
        return {
            image_id: [(row.id, row.category_id, rows.read(row.segmentation, "")) for row in annotations]
            for image_id, annotations in sorted(file.by_image.items())
        }


def expected(by_image: dict[int, list[dict[str, Any]]]) -> ByImage:
    """The same of rows as a library has them."""
    return {
        image_id: [(row["id"], row["category_id"], row["segmentation"]) for row in rows]
        for image_id, rows in sorted(by_image.items())
        if rows
    }


def by_json(path: Path) -> ByImage:
    """The same as Python's json reads it."""
    by_image: dict[int, list[dict[str, Any]]] = {}
    for row in json.loads(path.read_text())["annotations"]:
        by_image.setdefault(row["image_id"], []).append(row)
    return expected(by_image)


def assert_read_as(file: AnnotationFile, by_image: ByImage, path: Path) -> None:
    assert repr(resolved(file)) == repr(by_image)  # NaN equals itself here
    tree = json.loads(path.read_text())
    assert file.categories == sorted(tree["categories"], key=lambda row: row["id"])
    assert [(entry.image_id, entry.height, entry.width) for entry in file.images.values()] == [
        (row["id"], row["height"], row["width"]) for row in tree["images"]
    ]
    for wanted in ({1}, {1, 2, 94}, set(), {row["id"] for row in file.categories}):
        assert file.showing(wanted) == {
            image_id for image_id, rows in by_image.items() if any(row[1] in wanted for row in rows)
        }


@pytest.mark.parametrize("rows", [1, 3, 1_000])
@pytest.mark.parametrize("form", [{}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False}])
def test_pieces_of_any_size_and_any_white_space_give_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, form: dict[str, Any]
) -> None:
    data = typical(tmp_path, num_train=9)
    data.files["lvis_v1_train"]["categories"][0]["name"] = "äpfel }], {"
    data.files["lvis_v1_train"]["annotations"].reverse()
    data.write()
    monkeypatch.setattr(reader, "ROWS_PER_PIECE", rows)
    for name, tree in data.files.items():
        path = data.path(name)
        path.write_text(json.dumps(tree, **form), encoding="utf-8")
        kind = "stuff" if "stuff" in name else "lvis"
        assert_read_as(read(path, kind), expected(rows_by_image(path, kind)), path)


@pytest.mark.skipif(not MINI.is_dir(), reason="no ../shared/data/coco_lvis_mini beside the project")
def test_the_real_files_are_what_the_libraries_index() -> None:
    layout = OfficialLayout(MINI)
    for (split, found), stuff in zip(layout.lvis.items(), layout.stuff, strict=True):
        for file, form, name in ((found, "lvis", f"lvis_v1_{split}"), (stuff, "stuff", f"stuff_{split}2017")):
            path = MINI / "annotations" / f"{name}.json"
            assert_read_as(file, expected(rows_by_image(path, form)), path)


def row(**changes: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": 1, "category_id": 1, "segmentation": box(0, 0, 2, 2)} | changes


def coco(annotations: Sequence[Any], **more: Any) -> dict[str, Any]:
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 8, "width": 8} for i in (1, 2)],
        "annotations": list(annotations),
        "categories": [{"id": 1, "name": "apple"}, {"id": 2, "name": "cup"}],
    } | more


ODD = {
    "the pattern between rows in a text": coco([row(note="a }, { b"), row(id=2)]),
    "the pattern at the end of the rows in a text": coco([row(note='}], "x"'), row(id=2)]),
    "objects in a row": coco([row(parts=[{"a": 1}, {"b": 2}]), row(id=2, parts=[{"a": 1}, {"b": 2}])]),
    "a list of objects that ends a row": coco([row(parts=[{"a": 1}]), row(id=2)]),
    "annotations of something else": {"info": {"annotations": [row(id=7)]}} | coco([row()]),
    "annotations of something else, and none": {"info": {"annotations": [row(id=7)]}} | coco([]),
    "annotations after annotations": coco([row()], more={"annotations": [row(id=7)]}),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("rows", [1, 1_000])
def test_a_file_that_looks_odd_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, rows: int
) -> None:
    monkeypatch.setattr(reader, "ROWS_PER_PIECE", rows)
    path = tmp_path / "train.json"
    path.write_text(json.dumps(ODD[name]))
    assert_read_as(read(path, "coco", "train"), by_json(path), path)


@pytest.mark.parametrize(
    "annotations",
    [
        [],
        [row(segmentation=[[float("nan")] * 6])],
        [row(area=2**70)],
        [row(area=float("-inf")), row(id=2, note='Infinity, \\" NaN')],
        [row(note="\ud800 alone", segmentation=["\udc00"])],
    ],
)
def test_no_rows_and_values_beyond_json_are_read_all_the_same(tmp_path: Path, annotations: list[Any]) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(coco(annotations)))
    assert_read_as(read(path, "coco", "train"), by_json(path), path)


def test_of_a_key_that_occurs_twice_the_last_value_counts(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    text = json.dumps(coco([row()]))
    path.write_text('{"annotations": 5, ' + text[1:].replace('"image_id": 1', '"image_id": 7, "image_id": 2'))
    file = read(path, "coco", "train")
    assert resolved(file) == by_json(path)
    assert list(file.by_image) == [2]


@pytest.mark.parametrize("key", ["id", "image_id", "category_id"])
@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**400])
def test_an_id_beyond_64_bits_is_one_error(tmp_path: Path, key: str, value: int) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(coco([row(), row(**{"id": 2, key: value})])))
    with pytest.raises(DataError, match=f"the key '{key}' has a wrong value") as caught:
        read(path, "coco", "train")
    assert "at most 64 bits" in str(caught.value)
    assert str(caught.value.where) == f"{path}: " + ("annotations[1]" if key == "id" else "annotation 2")


@pytest.mark.parametrize("spoil", [lambda text: text[: len(text) // 2], lambda text: text + b"\xff"])
def test_a_file_that_is_cut_or_no_text_is_one_error(tmp_path: Path, spoil: Any) -> None:
    path = tmp_path / "train.json"
    path.write_bytes(spoil(json.dumps(coco([row(), row(id=2)])).encode()))
    with pytest.raises(DataError) as caught:
        read(path, "coco", "train")
    assert caught.value.what in ("malformed JSON", "unreadable annotation file")
    assert str(path) in str(caught.value.where)


def test_bytes_that_are_no_text_are_found_in_what_is_skipped_too(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_bytes(json.dumps(coco([row(note="@")])).encode().replace(b"@", b"\xff"))
    with pytest.raises(DataError, match="unreadable annotation file"):
        read(path, "coco", "train")


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text('"\\{}[],: ab\n', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab{}", max_size=2), inner, max_size=3)
    ),
    max_leaves=6,
)
some_rows = st.lists(
    st.builds(
        lambda image_id, category_id, segmentation, note, first: (
            ({"note": note} if first else {})
            | {"image_id": image_id, "category_id": category_id, "segmentation": segmentation}
            | ({} if first else {"note": note})
        ),
        st.sampled_from([1, 2]),
        st.sampled_from([1, 2]),
        st.just(box(0, 0, 2, 2)) | values,
        values,
        st.booleans(),
    ),
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@given(annotations=some_rows, rows=st.sampled_from([1, 2, 1_000]), indent=st.sampled_from([None, 1]))
def test_whatever_rows_hold_they_are_read_as_json_reads_them(
    tmp_path_factory: pytest.TempPathFactory, annotations: list[Any], rows: int, indent: int | None
) -> None:
    path = tmp_path_factory.mktemp("rows") / "train.json"
    tree = coco([one | {"id": place} for place, one in enumerate(annotations)])
    path.write_text(json.dumps(tree, indent=indent))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reader, "ROWS_PER_PIECE", rows)
        found = read(path, "coco", "train")
    assert repr(resolved(found)) == repr(by_json(path))


@given(st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=300, deadline=None)
def test_coordinates_are_the_numbers_that_python_reads(number: float) -> None:
    for text in (repr(number), f"{number:.3f}", f"{number:.25e}"):
        assert repr(parse(text.encode())) == repr(json.loads(text))


def test_rows_passed_over_are_those_of_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = typical(tmp_path)
    data.write()
    monkeypatch.setattr(reader, "ROWS_PER_PIECE", 1)
    path, without = data.path("lvis_v1_train"), {"annotations": {0, 5}, "images": {1}}
    tree = data.files["lvis_v1_train"]
    tree["annotations"][2:4] = []  # image 2 has none
    data.write()
    found = read_lvis(path, without)
    for key, places in without.items():
        tree[key] = [one for place, one in enumerate(tree[key]) if place not in places]
    data.write()
    assert {
        image_id: [(one[0], one[1]) for one in rows] for image_id, rows in resolved_ids(found).items()
    } == {image_id: [(one[0], one[1]) for one in rows] for image_id, rows in by_json(path).items()}
    assert list(found.images) == [one["id"] for one in tree["images"]]


def resolved_ids(file: AnnotationFile) -> dict[int, list[tuple[int, int]]]:
    return {key: [(row.id, row.category_id) for row in rows] for key, rows in sorted(file.by_image.items())}


@pytest.mark.process
def test_the_workers_read_what_one_process_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = typical(tmp_path, num_train=9)
    data.write()
    monkeypatch.setattr(reader, "ROWS_PER_PIECE", 2)
    sources = [Source(data.path(name), "stuff" if "stuff" in name else "lvis") for name in data.files]
    with worker_pool(2, "pipeline.data.annotations.reader") as pool:
        together = read_files(sources, pool)
    for one, other in zip(together, read_files(sources), strict=True):
        assert resolved(one) == resolved(other)
        assert (one.name, one.categories, one.images) == (other.name, other.categories, other.images)


def test_a_file_that_changes_before_its_rows_are_drawn_is_one_error(tmp_path: Path) -> None:
    data = typical(tmp_path / "root")
    layout = OfficialLayout(data.write())
    entry = layout.lvis["train"].images[1]
    (region, *_) = layout.content(entry)
    assert isinstance(region.segmentation, Span)
    for text in ("{}", data.path("lvis_v1_train").read_text().replace("[", "(")):
        data.path("lvis_v1_train").write_text(text)
        with RowReader() as rows, pytest.raises(DataError, match="changed while it was read") as caught:
            rows.read(region.segmentation, region.where)
        assert "annotation 1" in str(caught.value.where)


@pytest.mark.parametrize("text", [None, "{}", "x" * 10_000])
def test_a_file_that_changes_while_its_rows_are_indexed_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(coco([row(), row(id=2)])))
    real = reader.ordered_map

    def change_first(*arguments: Any, **options: Any) -> Any:
        path.unlink() if text is None else path.write_text(text)
        return real(*arguments, **options)

    monkeypatch.setattr(reader, "ordered_map", change_first)
    with pytest.raises(DataError, match="changed while it was read") as caught:
        read(path, "coco", "train")
    assert caught.value.where == str(path)
