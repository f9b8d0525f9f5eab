"""Annotation files in pieces: what is read this way is what reading in one piece gives."""

from __future__ import annotations

import json
import os
import signal
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.annotations import index as rows
from pipeline.data.annotations.fallback import read_coco, read_lvis, read_stuff
from pipeline.data.annotations.index import IndexedRows, RowReader, Span
from pipeline.data.annotations.reader import Source, read_files
from pipeline.data.annotations.validation import AnnotationFile
from pipeline.data.layouts.coco_lvis import OfficialLayout
from pipeline.runtime.errors import DataError, KilosegError
from pipeline.runtime.workers import WorkerPool, ordered_map, worker_pool
from tests.paths import SHARED
from tests.pipeline.data.small_dataset import box, typical

MINI = SHARED / "data" / "coco_lvis_mini"


def resolved(file: AnnotationFile) -> dict[int, list[tuple[int, int, Any]]]:
    """Everything by image, as plain values."""
    with RowReader() as reader:
        return {
            image_id: [
                (row["id"], row["category_id"], plain(reader.read(row["segmentation"], "")))
                for row in annotations
            ]
            for image_id, annotations in sorted(file.by_image.items())
        }


def plain(segmentation: Any) -> Any:
    """Coordinates as the numbers that drawing makes of them."""
    try:
        return [array("d", polygon) for polygon in segmentation]
    except (TypeError, OverflowError):
        return segmentation


def assert_same(file: AnnotationFile, other: AnnotationFile, *, indexed: bool = True) -> None:
    assert isinstance(file.by_image, IndexedRows) is indexed
    assert not isinstance(other.by_image, IndexedRows)
    assert repr(resolved(file)) == repr(resolved(other))  # NaN equals itself here
    assert (file.name, file.categories, file.images) == (other.name, other.categories, other.images)
    for wanted in ({1}, {1, 2, 94}, set(), {row["id"] for row in file.categories}):
        assert file.showing(wanted) == other.showing(wanted)


@pytest.mark.parametrize("piece", [1, 300, 2**20])
@pytest.mark.parametrize("form", [{}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False}])
def test_pieces_of_any_size_and_any_white_space_give_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, form: dict[str, Any]
) -> None:
    data = typical(tmp_path, num_train=9)
    data.files["lvis_v1_train"]["categories"][0]["name"] = "äpfel }], {"
    data.files["lvis_v1_train"]["annotations"].reverse()
    data.write()
    monkeypatch.setattr(rows, "PIECE", piece)
    for name, tree in data.files.items():
        path = data.path(name)
        path.write_text(json.dumps(tree, **form), encoding="utf-8")
        read = read_stuff if "stuff" in name else read_lvis
        (found,) = read_files([Source(path, "stuff" if "stuff" in name else "lvis")])
        assert_same(found, read(path))


@pytest.mark.skipif(not MINI.is_dir(), reason="no ../shared/data/coco_lvis_mini beside the project")
def test_the_real_files_in_pieces_are_what_the_libraries_index() -> None:
    layout = OfficialLayout(MINI)
    for (split, found), stuff in zip(layout.lvis.items(), layout.stuff, strict=True):
        assert_same(found, read_lvis(MINI / "annotations" / f"lvis_v1_{split}.json"))
        assert_same(stuff, read_stuff(MINI / "annotations" / f"stuff_{split}2017.json"))


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
@pytest.mark.parametrize("piece", [1, 2**20])
def test_a_file_that_looks_otherwise_is_read_in_one_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, piece: int
) -> None:
    monkeypatch.setattr(rows, "PIECE", piece)
    path = tmp_path / "train.json"
    path.write_text(json.dumps(ODD[name]))
    (found,) = read_files([Source(path, "coco", "train")])
    assert repr(resolved(found)) == repr(resolved(read_coco(path, "train")))


@pytest.mark.parametrize("annotations", [[], [row(segmentation=[[float("nan")] * 6])], [row(area=2**70)]])
def test_no_rows_and_numbers_beyond_json_are_read_all_the_same(
    tmp_path: Path, annotations: list[Any]
) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(coco(annotations)))
    (found,) = read_files([Source(path, "coco", "train")])
    assert_same(found, read_coco(path, "train"))


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
@given(annotations=some_rows, piece=st.sampled_from([1, 40, 2**20]), indent=st.sampled_from([None, 1]))
def test_whatever_rows_hold_they_are_read_as_in_one_piece(
    tmp_path_factory: pytest.TempPathFactory, annotations: list[Any], piece: int, indent: int | None
) -> None:
    path = tmp_path_factory.mktemp("rows") / "train.json"
    tree = coco([one | {"id": place} for place, one in enumerate(annotations)])
    path.write_text(json.dumps(tree, indent=indent))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rows, "PIECE", piece)
        (found,) = read_files([Source(path, "coco", "train")])
    assert repr(resolved(found)) == repr(resolved(read_coco(path, "train")))


def test_rows_passed_over_are_those_of_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = typical(tmp_path)
    data.write()
    monkeypatch.setattr(rows, "PIECE", 300)
    path, without = data.path("lvis_v1_train"), {"annotations": {0, 5}, "images": {1}}
    data.files["lvis_v1_train"]["annotations"][2:4] = []  # image 2 has none
    data.write()
    (found,) = read_files([Source(path, "lvis", without=without)])
    assert_same(found, read_lvis(path, without))


def test_a_file_that_changes_before_its_rows_are_drawn_is_one_error(tmp_path: Path) -> None:
    data = typical(tmp_path / "root")
    layout = OfficialLayout(data.write())
    entry = layout.lvis["train"].images[1]
    (region, *_) = layout.content(entry)
    assert isinstance(region.segmentation, Span)
    data.path("lvis_v1_train").write_text("{}")
    with RowReader() as reader, pytest.raises(DataError, match="changed while it was read") as caught:
        reader.read(region.segmentation, region.where)
    assert "annotation 1" in str(caught.value.where)


@pytest.fixture(scope="module")
def pool() -> Any:
    with worker_pool(2, "pipeline.runtime.workers") as two:
        yield two


def where_it_is_done(item: int) -> tuple[int, int]:
    return item, os.getpid()


def fail_at(item: int) -> int:
    if item in (5, 11):
        raise ValueError(f"item {item}")
    return item


def test_results_come_in_order_from_this_process_and_others(pool: WorkerPool) -> None:
    found = list(ordered_map(where_it_is_done, range(500), pool, chunk=2))
    assert [item for item, _ in found] == list(range(500))
    assert len({process for _, process in found}) == 2
    assert os.getpid() in {process for _, process in found}


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_the_first_error_comes_at_its_place(pool: WorkerPool, chunk: int) -> None:
    found: list[int] = []
    with pytest.raises(ValueError, match="item 5"):
        found.extend(ordered_map(fail_at, range(20), pool, chunk=chunk))
    assert found == list(range(5 - 5 % chunk))


def die_elsewhere(parent: int) -> int:
    if os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    return 0


def test_a_worker_that_dies_is_one_error() -> None:
    with (
        worker_pool(2, "pipeline.runtime.workers") as two,
        pytest.raises(KilosegError, match="worker process died"),
    ):
        list(ordered_map(die_elsewhere, [os.getpid()] * 100, two, chunk=1))


def test_workers_import_neither_torch_nor_what_only_the_command_needs() -> None:
    with worker_pool(2, "pipeline.data.bootstrap.build") as two:
        assert two is not None
        loaded = set(two.executor.submit(loaded_modules).result())
    assert "pipeline.data.bootstrap.build" in loaded
    assert not loaded & {
        "torch",
        "torchvision",
        "timm",
        "lvis",
        "cv2",
        "matplotlib",
        "pandas",
        "mlflow",
        "ray",
    }


def loaded_modules() -> list[str]:
    import sys

    return sorted(sys.modules)
