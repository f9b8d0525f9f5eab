"""Bootstrapping: splits, bytes that depend on the input alone, and never a half-written folder."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli.data import app
from pipeline.data.bootstrap.build import bootstrap
from pipeline.data.bootstrap.options import BootstrapOptions
from pipeline.data.labels.label_space import LabelSpace
from pipeline.data.loading.dataset import SegmentationDataset
from pipeline.runtime.errors import DataError, KilosegError, UsageError
from pipeline.runtime.workers import worker_pool
from tests.pipeline.data.small_dataset import (
    APPLE,
    BLANKET,
    BRANCH,
    CUP,
    DESK,
    SmallDataset,
    box,
    typical,
    whole,
)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def masks(out: Path, root: Path) -> dict[int, np.ndarray]:
    """Class-id mask of every image, whatever its split."""
    found = {}
    for split in ("train", "holdout", "val"):
        dataset = SegmentationDataset(out, root, split)
        found |= {image_id: dataset.class_mask(i) for i, image_id in enumerate(dataset.image_ids())}
    return found


@pytest.fixture
def data(tmp_path: Path) -> SmallDataset:
    return typical(tmp_path / "root")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "made" / "out"


def test_things_are_drawn_over_stuff_and_files_are_joined_by_image_id(data: SmallDataset, out: Path) -> None:
    """Image 90 is a val image of LVIS that lies in train2017, with its stuff in COCO's train file."""
    root = data.write()
    result = bootstrap(root, out)
    assert result.label_space.names == ["apple", "cup", "blanket", "branch", "desk-stuff"]
    found = masks(out, root)
    expected = np.full((8, 8), BRANCH)
    expected[3:7, 3:7] = CUP
    expected[1:5, 1:5] = APPLE
    assert all((found[image_id] == expected).all() for image_id in (1, 2, 3, 4))
    expected = np.full((8, 8), DESK)
    expected[:4, :4] = BLANKET
    np.testing.assert_array_equal(found[90], expected)


def test_an_image_without_stuff_gets_none_of_the_image_before(data: SmallDataset, out: Path) -> None:
    """The reference draws the previous image's stuff again."""
    root = data.write()
    bootstrap(root, out)
    expected = np.zeros((8, 8), dtype=int)
    expected[2:6, 2:6] = CUP
    np.testing.assert_array_equal(masks(out, root)[92], expected)


def test_the_splits_are_those_of_lvis_with_a_part_of_train_held_out(data: SmallDataset, out: Path) -> None:
    root = data.write()
    result = bootstrap(root, out, BootstrapOptions(holdout_fraction=0.5))
    ids = {split: SegmentationDataset(out, root, split).image_ids() for split in ("train", "holdout", "val")}
    assert sorted(ids["train"] + ids["holdout"]) == [1, 2, 3, 4]
    assert len(ids["holdout"]) == 2
    assert ids["val"] == [90, 92]
    assert {split: counts.num_images for split, counts in result.counts.items()} == {
        split: len(images) for split, images in ids.items()
    }


def test_images_without_a_label_are_left_out_by_name(data: SmallDataset, out: Path) -> None:
    data.add(5, lvis=[(2, box(0, 0, 2, 2))])
    data.add(6, lvis=[(1, {"size": [8, 8], "counts": [64]})])
    root = data.write()
    bootstrap(root, out, BootstrapOptions(keep_classes=["apple", "desk-stuff"]))
    left_out = json.loads((out / "manifest.json").read_text())["left_out"]
    assert {(row["image_id"], row["split"], row["reason"]) for row in left_out} == {
        (5, "train", "no annotation of a kept class"),
        (91, "val", "no annotation"),
        (92, "val", "no annotation of a kept class"),
        (6, "train", "no labeled pixel"),
    }
    assert left_out[0]["file"].endswith(".jpg")
    assert set(masks(out, root)) == {1, 2, 3, 4, 90}


def test_keeping_some_classes_changes_no_pixel_of_theirs(data: SmallDataset, tmp_path: Path) -> None:
    """A subset's mask is the whole mask looked up in a table: nothing is uncovered by leaving out a class."""
    root = data.write()
    bootstrap(root, tmp_path / "whole")
    result = bootstrap(root, tmp_path / "part", BootstrapOptions(keep_classes=["branch", CUP]))
    assert result.label_space.names == ["cup", "branch"]
    table = np.zeros(6, dtype=int)
    table[[CUP, BRANCH]] = 1, 2
    before, after = masks(tmp_path / "whole", root), masks(tmp_path / "part", root)
    for image_id, mask in after.items():
        np.testing.assert_array_equal(mask, table[before[image_id]])


@pytest.mark.process
def test_the_bytes_depend_on_neither_runs_nor_workers_nor_the_order_in_the_files(tmp_path: Path) -> None:
    data = typical(tmp_path / "root", num_train=70)
    root = data.write()
    bootstrap(root, tmp_path / "a", BootstrapOptions(images_per_shard=40))
    with worker_pool(2, "pipeline.data.bootstrap.build") as pool:
        bootstrap(root, tmp_path / "b", BootstrapOptions(images_per_shard=40), pool=pool)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    data.files["lvis_v1_train"]["images"].reverse()
    data.write()
    bootstrap(root, tmp_path / "c", BootstrapOptions(images_per_shard=40))
    different = {n for n, text in contents(tmp_path / "a").items() if text != contents(tmp_path / "c")[n]}
    assert different == {"manifest.json"}  # the digest of the changed file
    assert (tmp_path / "a" / "train-001.arrow").is_file()


def test_the_output_names_no_path_outside_the_dataset(data: SmallDataset, out: Path, tmp_path: Path) -> None:
    bootstrap(data.write(), out)
    for name, text in contents(out).items():
        assert str(tmp_path).encode() not in text, name


def remove_folder(data: SmallDataset) -> None:
    shutil.rmtree(data.root / "train2017")


def remove_image(data: SmallDataset) -> None:
    (data.root / "train2017" / "000000000003.jpg").unlink()


def truncate_header(data: SmallDataset) -> None:
    path = data.root / "train2017" / "000000000003.jpg"
    path.write_bytes(path.read_bytes()[:20])


def resize(data: SmallDataset) -> None:
    Image.new("RGB", (9, 8)).save(data.root / "train2017" / "000000000003.jpg")


def break_outline(data: SmallDataset) -> None:
    data.files["lvis_v1_train"]["annotations"][4]["segmentation"] = [[1, 2, 3]]
    data.write()


def disagree_on_size(data: SmallDataset) -> None:
    data.files["stuff_train2017"]["images"][2]["width"] = 9
    data.write()


def rename_category(data: SmallDataset) -> None:
    data.files["lvis_v1_val"]["categories"][0]["name"] = "pear"
    data.write()


def drop_category(data: SmallDataset) -> None:
    del data.files["stuff_val2017"]["categories"][0]
    data.write()


def share_image(data: SmallDataset) -> None:
    files = data.files
    files["lvis_v1_val"]["images"].append(files["lvis_v1_train"]["images"][2])
    data.write()


def remove_stuff_file(data: SmallDataset) -> None:
    data.path("stuff_val2017").unlink()


DAMAGES = [
    (remove_folder, "missing folder of images", "train2017"),
    (remove_image, "missing image", "000000000003.jpg"),
    (truncate_header, "unreadable image", "000000000003.jpg"),
    (resize, "9 x 8", "000000000003.jpg"),
    (break_outline, "3 coordinates", "lvis_v1_train.json: image 3, annotation 5"),
    (disagree_on_size, "disagree about the size", "stuff_train2017.json: image 3"),
    (rename_category, "category 1: 'apple' and 'pear'", "lvis_v1_val.json"),
    (drop_category, "category 93: 'blanket' and absent", "stuff_val2017.json"),
    (share_image, "listed in both halves", "lvis_v1_val.json"),
    (remove_stuff_file, "no annotation file", "stuff_val2017.json"),
]


@pytest.mark.parametrize(("spoil", "words", "place"), DAMAGES)
def test_damage_is_one_error_and_leaves_the_old_output_alone(
    data: SmallDataset, out: Path, spoil: Callable[[SmallDataset], None], words: str, place: str
) -> None:
    root = data.write()
    bootstrap(root, out)
    before = contents(out)
    spoil(data)
    with pytest.raises(DataError) as caught:
        bootstrap(root, out)
    assert words in str(caught.value)
    assert place in str(caught.value.where)
    assert contents(out) == before
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.process
def test_a_worker_hands_the_first_error_on(data: SmallDataset, out: Path) -> None:
    root = data.write()
    break_outline(data)
    with (
        worker_pool(2, "pipeline.data.bootstrap.build") as pool,
        pytest.raises(DataError, match="3 coordinates"),
    ):
        bootstrap(root, out, pool=pool)
    assert list(out.parent.iterdir()) == []


def test_the_size_of_images_is_not_looked_at_when_told_so(data: SmallDataset, out: Path) -> None:
    root = data.write()
    truncate_header(data)
    bootstrap(root, out, BootstrapOptions(check_images=False))
    assert out.is_dir()


def test_a_train_split_without_images_is_refused(tmp_path: Path, out: Path) -> None:
    data = SmallDataset(tmp_path / "root")
    data.add(1, "val", lvis=[(1, box(0, 0, 2, 2))])
    with pytest.raises(DataError, match="no image to train on"):
        bootstrap(data.write(), out)


def test_a_missing_root_says_how_to_go_on(tmp_path: Path, out: Path) -> None:
    with pytest.raises(DataError, match=r"data\.root"):
        bootstrap(tmp_path / "nowhere", out)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"holdout_fraction": 1.0}, "holdout_fraction"),
        ({"holdout_fraction": -0.1}, "holdout_fraction"),
        ({"holdout_fraction": float("nan")}, "holdout_fraction"),
        ({"overlap": "last"}, "overlap"),
        ({"keep_classes": ["pear"]}, "keep_classes"),
        ({"keep_classes": []}, "0 classes"),
    ],
)
def test_an_option_out_of_range_is_refused(
    data: SmallDataset, out: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        bootstrap(data.write(), out, BootstrapOptions(**options))
    assert not out.exists()


def test_what_kiloseg_did_not_make_is_not_overwritten(data: SmallDataset, out: Path) -> None:
    out.mkdir(parents=True)
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="did not make"):
        bootstrap(data.write(), out)
    with pytest.raises(UsageError, match="did not make"):
        bootstrap(data.root, data.root)
    assert contents(out) == {"thesis.txt": b"years of work"}
    assert data.path("lvis_v1_train").is_file()


def test_an_empty_folder_and_an_earlier_output_are_replaced(data: SmallDataset, out: Path) -> None:
    root = data.write()
    out.mkdir(parents=True)
    bootstrap(root, out)
    bootstrap(root, out, BootstrapOptions(keep_classes=["apple"]))
    assert LabelSpace.load(out / "label_space.json").names == ["apple"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_the_next_run_cleans_up_after_a_killed_one(data: SmallDataset, out: Path, tmp_path: Path) -> None:
    root = data.write()
    bootstrap(root, tmp_path / "undisturbed")
    left = out.with_name(".out.partial")
    left.mkdir(parents=True)
    (left / "train-000.arrow").write_bytes(b"half")
    (left / "junk").mkdir()
    bootstrap(root, out)
    assert contents(out) == contents(tmp_path / "undisturbed")
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_an_output_that_was_just_moved_aside_is_put_back(data: SmallDataset, out: Path) -> None:
    root = data.write()
    bootstrap(root, out)
    before = contents(out)
    out.rename(out.with_name(".out.replaced"))
    remove_image(data)
    with pytest.raises(DataError, match="missing image"):
        bootstrap(root, out)
    assert contents(out) == before


def test_of_two_runs_on_one_output_the_second_is_refused(data: SmallDataset, out: Path) -> None:
    root = data.write()
    partial = out.with_name(".out.partial")
    partial.mkdir(parents=True)
    lock = os.open(partial, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with pytest.raises(UsageError, match="another run"):
            bootstrap(root, out)
        assert partial.is_dir()
    finally:
        os.close(lock)
    bootstrap(root, out)


def test_the_commands_raise_what_the_main_command_prints(out: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bootstrap", str(tmp_path / "nowhere"), str(out)])
    assert isinstance(result.exception, KilosegError)
    assert result.exception.exit_code == 3


def test_single_whole_stuff_annotation_keeps_an_id_above_255(tmp_path: Path, out: Path) -> None:
    """The reference's 8-bit case, through the whole chain: 300 classes, one annotation."""
    data = SmallDataset(tmp_path / "root")
    for name in ("lvis_v1_train", "lvis_v1_val"):
        data.files[name]["categories"] = [
            {"id": i, "name": f"thing {i}", "frequency": "f"} for i in range(1, 301)
        ]
    data.add(1, stuff=[(110, whole())])
    data.add(2, lvis=[(255, whole())])
    root = data.write()
    bootstrap(root, out)
    found = masks(out, root)
    assert (found[1] == 303).all()
    assert (found[2] == 255).all()  # 255 is a class like any other


@pytest.mark.parametrize("out", [".", "..", "sub/.."])
def test_the_current_folder_cannot_be_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    root = typical(tmp_path / "root").write()
    (tmp_path / "here" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UsageError, match=r"current folder(.|\n)*found"):
        bootstrap(root, Path(out))
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["sub"]


def test_a_class_whose_name_is_a_number_is_kept_by_its_name_in_quotes(tmp_path: Path) -> None:
    data = typical(tmp_path / "root")
    for name in ("lvis_v1_train", "lvis_v1_val"):
        data.files[name]["categories"][1]["name"] = "1"
    arguments = ["bootstrap", str(data.write()), str(tmp_path / "out"), "--keep"]
    refused = CliRunner().invoke(app, [*arguments, "1"])
    assert isinstance(refused.exception, UsageError)
    assert "class 2 is named so; class 1 is named 'apple'" in str(refused.exception)
    assert CliRunner().invoke(app, [*arguments, '"1"']).exit_code == 0
    assert LabelSpace.load(tmp_path / "out" / "label_space.json").names == ["1"]
