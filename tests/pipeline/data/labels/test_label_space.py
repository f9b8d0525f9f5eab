"""The label space: which category of which source becomes which class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.data.labels.label_space import (
    LVIS,
    STUFF,
    ClassEntry,
    LabelSpace,
)
from pipeline.data.labels.merge import merge_categories
from pipeline.data.labels.official import official_categories
from pipeline.runtime.errors import DataError, UsageError
from tests.paths import SHARED as SHARED_DATA

SHARED = SHARED_DATA / "label_space"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/label_space beside the project")


@pytest.fixture(scope="module")
def merged() -> LabelSpace:
    official = official_categories()
    return merge_categories(official.lvis, official.stuff, official.merged_pairs)


def numbered(count: int) -> LabelSpace:
    return LabelSpace(tuple(ClassEntry(i, f"class {i}", "x", "f", {"x": (i,)}) for i in range(1, count + 1)))


def test_lvis_and_coco_stuff_merge_into_1284_classes(merged: LabelSpace) -> None:
    assert merged.num_classes == 1203 + 91 - 10 == 1284
    assert [entry.class_id for entry in merged.classes] == list(range(1, 1285))
    counts = {group: merged.frequencies.count(group) for group in ("r", "c", "f", "stuff")}
    assert counts == {"r": 337, "c": 461, "f": 405, "stuff": 81}


def test_the_ten_merged_categories_are_those_of_the_same_name() -> None:
    official = official_categories()
    things = {category["name"]: category["id"] for category in official.lvis}
    same = {c["id"]: things[c["name"]] for c in official.stuff if c["name"] in things and c["id"] != 183}
    assert official.merged_pairs == same
    assert len(same) == 10


def test_lvis_ids_stay_and_the_other_stuff_follows_in_coco_order(merged: LabelSpace) -> None:
    assert merged.lookup(LVIS) == {category_id: category_id for category_id in range(1, 1204)}
    stuff = merged.lookup(STUFF)
    alone = [category_id for category_id in range(92, 183) if stuff[category_id] > 1203]
    assert [stuff[category_id] for category_id in alone] == list(range(1204, 1285))
    assert stuff[183] == stuff[255] == 0


def test_no_category_is_renumbered_twice(merged: LabelSpace) -> None:
    """The reference remaps in place: blanket 93 -> 110 -> 1217 and cabinet 98 -> 181 -> 1283."""
    stuff = merged.lookup(STUFF)
    assert merged.names[stuff[93] - 1] == "blanket"
    assert merged.names[stuff[98] - 1] == "cabinet"
    assert (stuff[93], stuff[98]) == (110, 181)
    names = {category["id"]: category["name"] for category in official_categories().stuff}
    assert all(merged.names[class_id - 1] == names[c] for c, class_id in stuff.items() if class_id)


@needs_shared
def test_equals_the_published_list_of_the_reference(merged: LabelSpace) -> None:
    rows = json.loads((SHARED / "merged_1284_categories.json").read_text())[1:]
    for row, entry in zip(rows, merged.classes, strict=True):
        assert (entry.class_id, entry.name) == (row["id"], row["name"])
        things = row["source"] == "lvis_v1"
        assert entry.source == (LVIS if things else STUFF)
        assert entry.frequency == (row["frequency"] if things else "stuff")
        stuff_id = row["merged_stuff_id"] if things else row["stuff_id"]
        assert entry.category_ids.get(STUFF, ()) == (() if stuff_id is None else (stuff_id,))
        assert entry.category_ids.get(LVIS, ()) == ((row["id"],) if things else ())


@needs_shared
def test_equals_the_stuff_table_of_the_reference(merged: LabelSpace) -> None:
    table = json.loads((SHARED / "essnet_coco2lvis.json").read_text())
    assert merged.lookup(STUFF) == {int(category): class_id for category, class_id in table.items()}


@needs_shared
def test_the_packaged_lists_are_those_of_the_annotation_files() -> None:
    official = official_categories()
    for name, rows in (("lvis_v1", official.lvis), ("coco_stuff", official.stuff)):
        source = json.loads((SHARED / f"{name}_categories.json").read_text())
        assert [{key: category[key] for key in rows[0]} for category in source] == rows


def test_a_saved_label_space_comes_back_equal(merged: LabelSpace, tmp_path: Path) -> None:
    merged.save(tmp_path / "classes.json")
    assert LabelSpace.load(tmp_path / "classes.json") == merged
    assert LabelSpace.from_dict(json.loads(json.dumps(merged.to_dict()))) == merged


def test_a_subset_renumbers_in_order_and_unlabels_the_rest(merged: LabelSpace) -> None:
    subset = merged.subset(["wood", 110, "person", "blanket"])
    assert subset.names == ["blanket", "person", "wood"]
    assert merged.subset(None) == merged
    assert [entry.class_id for entry in subset.classes] == [1, 2, 3]
    for source in (LVIS, STUFF):
        whole, part = merged.lookup(source), subset.lookup(source)
        assert whole.keys() == part.keys()
        for category_id, class_id in part.items():
            old = merged.names[whole[category_id] - 1] if whole[category_id] else None
            assert (subset.names[class_id - 1] if class_id else None) == (
                old if old in subset.names else None
            )


@pytest.mark.parametrize("key", ["bannana", 0, 1285, True])
def test_keeping_an_unknown_class_is_refused(merged: LabelSpace, key: str | int) -> None:
    with pytest.raises(UsageError, match="no such class to keep"):
        merged.subset([key])


def test_a_misspelt_class_is_answered_with_the_right_one(merged: LabelSpace) -> None:
    with pytest.raises(UsageError, match="did you mean banana"):
        merged.subset(["bannana"])


def test_keeping_by_a_name_that_two_classes_bear_is_refused() -> None:
    twins = LabelSpace(tuple(ClassEntry(i, "twin", "x", "f", {"x": (i,)}) for i in (1, 2)))
    with pytest.raises(UsageError, match=r"by its id: \[1, 2\]"):
        twins.subset(["twin"])
    assert twins.subset([2]).num_classes == 1


def test_16_bit_masks_hold_65534_classes_and_no_more(merged: LabelSpace) -> None:
    assert numbered(65_534).num_classes == 65_534
    with pytest.raises(UsageError, match="1 to 65534"):
        numbered(65_535)
    with pytest.raises(UsageError, match="0 classes"):
        merged.subset([])


def test_category_lists_of_another_make_are_numbered_without_gaps() -> None:
    lvis = [{"id": i, "name": n, "frequency": "r"} for i, n in ((70_000, "b"), (7, "a"))]
    stuff = [{"id": 92, "name": "banner"}, {"id": 500, "name": "z"}]
    space = merge_categories(lvis, stuff, official_categories().merged_pairs)
    assert space.names == ["a", "b", "banner", "z"]
    assert space.lookup(LVIS) == {7: 1, 70_000: 2}
    assert space.lookup(STUFF) == {92: 3, 500: 4, 183: 0, 255: 0}


def test_categories_of_two_names_stay_two_classes_whatever_their_ids() -> None:
    lvis = [{"id": 50, "name": "flag", "frequency": "r"}]
    assert merge_categories(lvis, [{"id": 92, "name": "banner"}], {92: 50}).names == ["flag", "banner"]


def test_a_category_of_two_classes_is_refused() -> None:
    with pytest.raises(DataError, match="two classes"):
        LabelSpace(tuple(ClassEntry(i, "a", "x", "f", {"x": (1,)}) for i in (1, 2)))


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"format": "other"}'])
def test_a_damaged_file_is_one_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "label_space.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        LabelSpace.load(path)
    assert caught.value.where == str(path)


def test_a_number_that_names_one_class_and_is_the_id_of_another_is_refused() -> None:
    names = ["10", "3", "x", "4"]
    space = LabelSpace(
        tuple(ClassEntry(i, name, "x", "f", {"x": (i,)}) for i, name in enumerate(names, start=1))
    )
    assert space.subset([1, 4]).names == ["10", "4"]  # 1 is nobody's name, 4 is its own
    assert space.subset(["3", "10"]).names == ["10", "3"]
    assert space.subset([10]).names == ["10"]  # nobody's id
    with pytest.raises(UsageError, match="class 2 is named so; class 3 is named 'x'") as caught:
        space.subset([3])
    assert '"3" in params.yaml' in str(caught.value)
    assert space.of_ids([3]).names == ["x"]
