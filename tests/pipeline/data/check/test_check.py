"""Checking: each kind of injected damage is found and named, alone and together, and none crashes it."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli.data import app
from pipeline.data.annotations.quarantine import Quarantine
from pipeline.data.bootstrap.build import bootstrap
from pipeline.data.check.check import CheckResult, check
from pipeline.runtime.errors import DataError
from tests.pipeline.data.small_dataset import SmallDataset, box, typical, whole

Spoil = Callable[[SmallDataset], None]
OF_A_SMALL_SET = {"official categories are absent", "a category with another name than the official one"} | {
    "a category with another frequency than the official one",
    "a category that is not an official one",
}
"""The hand-written dataset has a handful of categories of its own."""


@pytest.fixture
def data(tmp_path: Path) -> SmallDataset:
    return typical(tmp_path / "root")


def image(data: SmallDataset, number: int = 3) -> Path:
    return data.root / "train2017" / f"{number:012d}.jpg"


def row(name: str, key: str, place: int, /, **changes: Any) -> Spoil:
    """Sets keys of a row; a value of None removes the key."""

    def spoil(data: SmallDataset) -> None:
        entry = data.files[name][key][place]
        for change, value in changes.items():
            if value is None:
                del entry[change]
            else:
                entry[change] = value
        data.write()

    return spoil


def again(name: str, key: str, place: int) -> Spoil:
    def spoil(data: SmallDataset) -> None:
        data.files[name][key].append(dict(data.files[name][key][place]))
        data.write()

    return spoil


def other(name: str, key: str, place: int, value: Any) -> Spoil:
    def spoil(data: SmallDataset) -> None:
        data.files[name][key][place] = value
        data.write()

    return spoil


def text(name: str, content: str | bytes) -> Spoil:
    raw = content.encode() if isinstance(content, str) else content
    return lambda data: (data.path(name).write_bytes(raw), None)[1]


def outline(segmentation: Any) -> Spoil:
    return row(TRAIN, "annotations", 4, segmentation=segmentation)


def resized(data: SmallDataset) -> None:
    Image.new("RGB", (9, 8)).save(image(data))


def saved(mode: str, kind: str = "JPEG") -> Spoil:
    return lambda data: Image.new(mode, (8, 8)).save(image(data), kind)


def cut(share: float) -> Spoil:
    def spoil(data: SmallDataset) -> None:
        content = image(data).read_bytes()
        image(data).write_bytes(content[: int(len(content) * share)])

    return spoil


def shared_file(data: SmallDataset) -> None:
    rows = data.files[TRAIN]["images"]
    rows[2]["coco_url"] = rows[1]["coco_url"]
    data.write()


def link_to_nothing(data: SmallDataset) -> None:
    image(data).unlink()
    image(data).symlink_to("nowhere.jpg")


def folder_instead(data: SmallDataset) -> None:
    image(data).unlink()
    image(data).mkdir()


def in_both_halves(data: SmallDataset) -> None:
    data.files[VAL]["images"].append(data.files[TRAIN]["images"][2])
    data.write()


def without_list(key: str) -> Spoil:
    def spoil(data: SmallDataset) -> None:
        del data.files[VAL][key]
        data.write()

    return spoil


TRAIN, VAL, STUFF, STUFF_VAL = "lvis_v1_train", "lvis_v1_val", "stuff_train2017", "stuff_val2017"
PICTURE = "train2017/000000000003.jpg"
LVIS_JSON, STUFF_JSON = "annotations/lvis_v1_train.json", "annotations/stuff_train2017.json"
VAL_JSON, STUFF_VAL_JSON = "annotations/lvis_v1_val.json", "annotations/stuff_val2017.json"

# name: (damage, kind, file, words of the detail, can be left out)
DAMAGES: dict[str, tuple[Spoil, str, str, str, bool]] = {
    "image missing": (lambda d: image(d).unlink(), "missing image", PICTURE, "does not exist", True),
    "image empty": (lambda d: image(d).write_bytes(b""), "empty image file", PICTURE, "0 bytes", True),
    "image cut in the header": (cut(0.02), "truncated image", PICTURE, "runcated", True),
    "image cut in the pixels": (cut(0.95), "truncated image", PICTURE, "truncated", True),
    "image of text": (lambda d: image(d).write_text("404"), "unreadable image", PICTURE, "identify", True),
    "image a link to nothing": (link_to_nothing, "missing image", PICTURE, "a link to nothing", True),
    "image a folder": (folder_instead, "unreadable image", PICTURE, "not a file", True),
    "image resized": (
        resized,
        "an image of another size than its annotation",
        PICTURE,
        "9 x 8 (width x height); allowed: 8 x 8",
        True,
    ),
    "images share a file": (
        shared_file,
        "two images share a file",
        "train2017/000000000002.jpg",
        "2 and 3",
        True,
    ),
    "folder missing": (
        lambda d: shutil.rmtree(d.root / "train2017"),
        "missing folder of images",
        "train2017",
        "does not exist",
        False,
    ),
    "file missing": (lambda d: d.path(STUFF).unlink(), "no annotation file", STUFF_JSON, "not exist", False),
    "annotations missing": (
        lambda d: shutil.rmtree(d.root / "annotations"),
        "no folder with annotations",
        LVIS_JSON,
        "annotations",
        False,
    ),
    "JSON cut": (text(VAL, '{"images": [{"id": 1'), "malformed JSON", VAL_JSON, "line 1, column 21", False),
    "JSON not text": (text(VAL, b"\xff\xfe\x00"), "unreadable annotation file", VAL_JSON, "decode", False),
    "JSON empty": (text(VAL, ""), "malformed JSON", VAL_JSON, "line 1", False),
    "JSON a list": (text(VAL, "[]"), "not an annotation file", VAL_JSON, "a list", False),
    "JSON nested too deep": (
        text(VAL, "[" * 200_000),
        "unreadable annotation file",
        VAL_JSON,
        "recursion",
        False,
    ),
    **{
        f"no {key}": (
            without_list(key),
            "an annotation file without one of its lists",
            VAL_JSON,
            f"no '{key}'",
            False,
        )
        for key in ("images", "annotations", "categories")
    },
    "image id twice": (again(TRAIN, "images", 2), "an image id is listed twice", LVIS_JSON, "image 3", True),
    "image in both halves": (
        in_both_halves,
        "an image is listed in both halves of a dataset",
        VAL_JSON,
        "image 3",
        True,
    ),
    "image id text": (
        row(TRAIN, "images", 2, id="3"),
        "the key 'id' has a wrong value",
        LVIS_JSON,
        "images[2]",
        True,
    ),
    "image without width": (
        row(TRAIN, "images", 2, width=None),
        "the key 'width' is missing",
        LVIS_JSON,
        "image 3",
        True,
    ),
    "image of no height": (
        row(TRAIN, "images", 2, height=0),
        "an impossible image size",
        LVIS_JSON,
        "8 x 0",
        True,
    ),
    "image row no object": (other(TRAIN, "images", 2, 7), "not an entry", LVIS_JSON, "images[2]", True),
    "image url climbing": (
        row(TRAIN, "images", 2, coco_url="http://x/../../etc"),
        "a coco_url that names no folder and file",
        LVIS_JSON,
        "etc",
        True,
    ),
    "files disagree on size": (
        row(STUFF, "images", 2, width=9),
        "two files disagree about the size of an image",
        STUFF_JSON,
        "image 3",
        True,
    ),
    "annotation id twice": (
        again(TRAIN, "annotations", 4),
        "an annotation id is listed twice",
        LVIS_JSON,
        "annotation 5",
        True,
    ),
    "annotation of unknown image": (
        row(TRAIN, "annotations", 4, image_id=999),
        "an annotation of an unknown image",
        LVIS_JSON,
        "999",
        True,
    ),
    "annotation of unknown category": (
        row(TRAIN, "annotations", 4, category_id=77),
        "an annotation of an unknown category",
        LVIS_JSON,
        "category 77",
        True,
    ),
    "stuff of unknown category": (
        row(STUFF, "annotations", 2, category_id=12),
        "an annotation of an unknown category",
        STUFF_JSON,
        "category 12",
        True,
    ),
    "annotation without id": (
        row(TRAIN, "annotations", 4, id=None),
        "the key 'id' is missing",
        LVIS_JSON,
        "annotations[4]",
        True,
    ),
    "annotation without outline": (
        row(TRAIN, "annotations", 4, segmentation=None),
        "the key 'segmentation' is missing",
        LVIS_JSON,
        "annotation 5, image 3",
        True,
    ),
    "annotation null": (other(TRAIN, "annotations", 4, None), "not an entry", LVIS_JSON, "null", True),
    "no polygon": (outline([]), "an annotation without an outline", LVIS_JSON, "annotation 5", True),
    "empty polygon": (outline([[]]), "a polygon that is none", LVIS_JSON, "0 coordinates", True),
    "polygon of two points": (outline([[1, 1, 5, 5]]), "a polygon that is none", LVIS_JSON, "4 coord", True),
    "polygon of words": (outline([["a"] * 6]), "a polygon that is none", LVIS_JSON, "allowed", True),
    "polygon far away": (
        outline([[1, 1, 5, 1, 5, 1e9]]),
        "a polygon far outside its image",
        LVIS_JSON,
        "1e+09",
        True,
    ),
    "polygon infinite": (
        outline([[1, 1, 5, 1, float("inf"), 5]]),
        "a polygon with a coordinate that is not finite",
        LVIS_JSON,
        "inf",
        True,
    ),
    "RLE too short": (
        outline({"size": [8, 8], "counts": [60]}),
        "broken RLE",
        LVIS_JSON,
        "60 pixels in all",
        True,
    ),
    "RLE of another size": (
        outline({"size": [4, 16], "counts": [64]}),
        "RLE of another size than its image",
        LVIS_JSON,
        "[4, 16]",
        True,
    ),
    "RLE string cut": (outline({"size": [8, 8], "counts": "P"}), "broken RLE", LVIS_JSON, "breaks off", True),
    "RLE negative": (outline({"size": [8, 8], "counts": [70, -6]}), "broken RLE", LVIS_JSON, "-6", True),
    "category id twice": (
        again(TRAIN, "categories", 0),
        "a category id is listed twice",
        LVIS_JSON,
        "categories[3]",
        False,
    ),
    "category without name": (
        row(STUFF_VAL, "categories", 0, name=None),
        "the key 'name' is missing",
        STUFF_VAL_JSON,
        "categories[0]",
        False,
    ),
    "category of unknown frequency": (
        row(VAL, "categories", 0, frequency="z"),
        "unknown frequency",
        VAL_JSON,
        "'z'",
        False,
    ),
    "categories disagree": (
        row(VAL, "categories", 0, name="pear"),
        "two files disagree about a category",
        VAL_JSON,
        "category 1: 'apple' and 'pear'",
        False,
    ),
    "category not official": (
        row(STUFF, "categories", 1, name="twig"),
        "a category with another name than the official one",
        STUFF_JSON,
        "category 94: 'twig'; allowed: branch",
        False,
    ),
    "quarantine unreadable": (
        lambda d: (d.root / "annotations" / "quarantine.json").write_text("{"),  # type: ignore[dict-item,return-value]
        "an unreadable quarantine",
        "annotations/quarantine.json",
        "line 1",
        False,
    ),
}


def damage(result: CheckResult) -> list[Any]:
    return [fault for fault in result.faults if fault.kind not in OF_A_SMALL_SET]


def test_a_sound_dataset_has_no_fault(data: SmallDataset) -> None:
    result = check(data.write())
    assert damage(result) == []
    assert {fault.kind for fault in result.found if fault.note} == {"an image without annotations"}
    assert dict(result.splits["train"]) == {
        "images": 4,
        "pixels": 256,
        "with LVIS": 4,
        "with stuff": 4,
        "pixels of LVIS": 4 * 28,
        "pixels of stuff alone": 4 * 36,
    }
    assert result.splits["val"]["without annotations"] == 1


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_found_named_and_left_out_where_that_mends_it(data: SmallDataset, name: str) -> None:
    spoil, kind, file, words, mendable = DAMAGES[name]
    data.write()
    spoil(data)
    result = check(data.root)
    found = [
        fault for fault in result.faults if fault.kind == kind and words in f"{fault.file} {fault.detail}"
    ]
    assert found, [(fault.file, fault.kind, fault.detail) for fault in result.found]
    assert file in {fault.file for fault in found}
    assert found[0].remedy
    table = list(csv.DictReader(io.StringIO(result.table())))
    assert any(line["kind"] == kind and line["weight"] == "fault" for line in table)
    if not mendable:
        assert all(fault.row is None and fault.image_id is None for fault in found)
        return
    if kind not in ("truncated image", "two images share a file"):  # which bootstrapping does not see
        with pytest.raises(DataError):
            bootstrap(data.root, data.root.parent / "out")
    result.put_into_quarantine()
    assert damage(check(data.root)) == []
    made = bootstrap(data.root, data.root.parent / "out")
    kept = {row.image_id for row in made.left_out if row.reason.startswith("quarantined")}
    manifest = json.loads((made.out / "manifest.json").read_text())
    assert manifest["quarantined"]["images"] == len({fault.image_id for fault in found if fault.image_id})
    assert kept == {fault.image_id for fault in found if fault.image_id}


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (saved("L"), "an image that is not RGB"),
        (saved("CMYK"), "an image that is not RGB"),
        (saved("P", "PNG"), "an image that is not RGB"),
        (saved("RGB", "PNG"), "an image that is not JPEG"),
        (outline({"size": [8, 8], "counts": [64]}), "an annotation that covers no pixel"),
        (outline([[20, 20, 21, 20, 20, 21.0]]), "a polygon far outside its image"),
        (outline([[9, 9, 12, 9, 12, 12]]), "an annotation that covers no pixel"),
    ],
)
def test_what_is_odd_and_harmless_is_a_note(data: SmallDataset, spoil: Spoil, kind: str) -> None:
    data.write()
    spoil(data)
    found = [fault for fault in check(data.root).found if fault.kind == kind]
    assert len(found) == 1
    assert found[0].note is not kind.startswith("a polygon")
    if found[0].note:
        bootstrap(data.root, data.root.parent / "out")


def test_all_damages_at_once_are_all_found(data: SmallDataset) -> None:
    data.add(5, lvis=[(1, [])], stuff=[(94, {"size": [8, 8], "counts": "x"})])
    data.add(6, lvis=[(1, box(0, 0, 3, 3)), (2, [[0, 0]])])
    data.write()
    image(data, 1).unlink()
    image(data, 2).write_bytes(b"GIF89a")
    resized(data)
    data.files[VAL]["images"].append({"id": "x"})
    data.files[STUFF_VAL]["annotations"].append({"id": 1, "image_id": 1, "category_id": 1})
    data.write()
    kinds = [fault.kind for fault in damage(check(data.root))]
    assert sorted(kinds) == sorted(
        [
            "an annotation without an outline",
            "broken RLE",
            "a polygon that is none",
            "missing image",
            "unreadable image",
            "an image of another size than its annotation",
            "the key 'id' has a wrong value",
            "an annotation of an unknown image",
        ]
    )


@pytest.mark.process
def test_the_workers_find_the_same_in_the_same_order(data: SmallDataset) -> None:
    for number in range(5, 80):
        data.add(number, lvis=[(1, whole() if number % 7 else [[1, 2]])])
    data.write()
    image(data, 40).unlink()
    assert check(data.root).table() == check(data.root, num_workers=2).table()


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from([TRAIN, VAL, STUFF, STUFF_VAL]),
    st.sampled_from(["images", "annotations", "categories"]),
    st.sampled_from(
        [
            "",
            "id",
            "image_id",
            "category_id",
            "segmentation",
            "height",
            "width",
            "coco_url",
            "name",
            "frequency",
        ]
    ),
    JUNK,
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.slow
def test_no_junk_anywhere_crashes_it_or_gets_past_it(
    tmp_path_factory: pytest.TempPathFactory, name: str, key: str, entry: str, junk: Any
) -> None:
    """What checking lets pass, bootstrapping can build; what it names can be left out or mended."""
    data = typical(tmp_path_factory.mktemp("junk") / "root", num_train=2)
    rows = data.files[name][key]
    if not entry or not rows or entry not in rows[-1]:
        rows.append(junk)
    else:
        rows[-1][entry] = junk
    data.write()
    result = check(data.root)
    assert result.table()
    result.put_into_quarantine()
    try:
        bootstrap(data.root, data.root.parent / "out")
    except DataError as problem:
        left = {fault.kind for fault in check(data.root).faults} - OF_A_SMALL_SET
        if not left and problem.what != "no image to train on":
            raise


def test_a_quarantine_is_tied_to_the_file_that_was_checked(data: SmallDataset, tmp_path: Path) -> None:
    data.write()
    outline([])(data)
    check(data.root).put_into_quarantine()
    bootstrap(data.root, tmp_path / "out")
    data.files[TRAIN]["annotations"][4]["segmentation"] = box(0, 0, 2, 2)
    data.write()
    with pytest.raises(DataError, match="another version"):
        bootstrap(data.root, tmp_path / "out")
    result = check(data.root)
    assert "a quarantine of another version of the file" in {fault.kind for fault in result.faults}
    result.put_into_quarantine()
    assert not Quarantine.load(data.root)
    bootstrap(data.root, tmp_path / "out")


def test_the_command_writes_the_table_and_exits_with_3(data: SmallDataset, tmp_path: Path) -> None:
    data.write()
    image(data).unlink()
    table = tmp_path / "faults.csv"
    result = CliRunner().invoke(app, ["check", str(data.root), "--table", str(table)])
    assert result.exit_code == 3, result.output
    assert "missing image" in result.output
    with table.open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["kind"] == "missing image"]
    assert [line["file"] for line in lines] == [PICTURE]
    result = CliRunner().invoke(app, ["check", str(tmp_path / "nowhere"), "--table", str(table)])
    assert isinstance(result.exception, DataError)


def test_the_command_quarantines_and_then_passes(tmp_path: Path) -> None:
    from pipeline.data.tiny.generate import generate_tiny

    root, table = tmp_path / "tiny", str(tmp_path / "t.csv")
    generate_tiny(root, num_train=12, num_val=2)
    assert CliRunner().invoke(app, ["check", str(root), "--table", table]).exit_code == 0
    next(iter((root / "train2017").iterdir())).write_bytes(b"gone")
    assert CliRunner().invoke(app, ["check", str(root), "--table", table]).exit_code == 3
    assert CliRunner().invoke(app, ["check", str(root), "--quarantine", "--table", table]).exit_code == 0
    assert CliRunner().invoke(app, ["check", str(root), "--table", table]).exit_code == 0
    assert ",fault,yes" in Path(table).read_text()
