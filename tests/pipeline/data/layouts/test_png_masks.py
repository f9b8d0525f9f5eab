"""Folders of masks that are there already, through the whole chain."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.bootstrap.build import bootstrap
from pipeline.data.bootstrap.options import BootstrapOptions
from pipeline.data.loading.dataset import SegmentationDataset
from pipeline.data.loading.visualize import export_masks
from pipeline.runtime.errors import DataError
from pipeline.runtime.workers import worker_pool
from tests.pipeline.data.layouts.small_layouts import Masks, masks_of, picture
from tests.pipeline.data.small_dataset import typical


@pytest.fixture
def stored(tmp_path: Path) -> Masks:
    return Masks(tmp_path / "masks")


@pytest.mark.process
def test_16_bit_masks_are_looked_up_in_the_list_of_classes(stored: Masks, tmp_path: Path) -> None:
    with worker_pool(2, "pipeline.data.bootstrap.build") as pool:
        result = bootstrap(stored.root, tmp_path / "out", BootstrapOptions(layout="masks"), pool=pool)
    assert result.label_space.names == ["grass", "path", "fence"]
    expected = np.zeros((4, 6), int)
    expected[:, 1:3], expected[:, 3], expected[3, 5] = 1, 2, 3
    found = masks_of(tmp_path / "out", stored.root)
    assert sorted(found) == [*(f"train/day/0{i}.jpg" for i in range(4)), "val/day/00.jpg", "val/day/01.jpg"]
    for mask in found.values():
        np.testing.assert_array_equal(mask, expected)
    assert result.counts["val"].pixels.tolist() == [2 * 11, 2 * 8, 2 * 4, 2]


@pytest.mark.parametrize("mode", ["L", "P"])
def test_8_bit_and_palette_masks_are_the_same(stored: Masks, tmp_path: Path, mode: str) -> None:
    """255 is a class like any other, and a palette's colors do not matter."""
    values = stored.values()
    values[values == 300], values[values == 65_535] = 44, 255
    for split, number in (("train", 4), ("val", 2)):
        for index in range(number):
            image = Image.fromarray(values.astype(np.uint8))
            if mode == "P":
                image.putpalette([7, 7, 7] * 256)
            image.save(stored.path(split, index))
    stored.write_classes([(255, "fence"), (0, ""), (3, "grass"), (44, "path")])
    result = bootstrap(stored.root, tmp_path / "out", BootstrapOptions(layout="masks"))
    assert result.label_space.names == ["fence", "grass", "path"]
    mask = masks_of(tmp_path / "out", stored.root)["val/day/01.jpg"]
    assert mask[3].tolist() == [0, 2, 2, 3, 0, 1]


def test_keeping_classes_and_empty_masks(stored: Masks, tmp_path: Path) -> None:
    stored.save(stored.path("train", 1), np.zeros((4, 6), np.uint16))
    result = bootstrap(stored.root, tmp_path / "out", BootstrapOptions(layout="masks", keep_classes=["path"]))
    assert [(one.file, one.reason) for one in result.left_out] == [("train/day/01.jpg", "no labeled pixel")]
    mask = masks_of(tmp_path / "out", stored.root)["train/day/00.jpg"]
    assert mask[0].tolist() == [0, 0, 0, 1, 0, 0]


def test_exported_masks_come_back_the_same(tmp_path: Path) -> None:
    """coco_lvis -> 16-bit PNGs -> masks: another way round the whole chain."""
    root = typical(tmp_path / "root").write()
    result = bootstrap(root, tmp_path / "first")
    own = tmp_path / "own"
    for split, parts in (("train", ("train", "holdout")), ("val", ("val",))):
        for part in parts:
            dataset = SegmentationDataset(tmp_path / "first", root, part)
            export_masks(tmp_path / "first", own / "annotations" / split, split=part)
            for index, image_id in enumerate(dataset.image_ids()):
                (own / split).mkdir(exist_ok=True)
                source = root / dataset.row(index).file
                (own / split / f"{image_id:012d}.jpg").write_bytes(source.read_bytes())
    rows = [(entry.class_id, entry.name) for entry in result.label_space.classes]
    with (own / "annotations" / "classes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("value", "name"), (0, ""), *rows])
    again = bootstrap(own, tmp_path / "second", BootstrapOptions(layout="masks"))
    assert again.label_space.names == result.label_space.names
    first = {Path(name).name: mask for name, mask in masks_of(tmp_path / "first", root).items()}
    second = {Path(name).name: mask for name, mask in masks_of(tmp_path / "second", own).items()}
    assert first.keys() == second.keys()
    for name, mask in first.items():
        np.testing.assert_array_equal(second[name], mask)


def unlisted(stored: Masks) -> None:
    stored.save(stored.path("val", 0), np.full((4, 6), 77, np.uint16))


def colored(stored: Masks) -> None:
    picture(stored.path("val", 0), (4, 6))


def another_size(stored: Masks) -> None:
    stored.save(stored.path("val", 0), np.zeros((6, 4), np.uint16))


def no_image_at_all(stored: Masks) -> None:
    for path in (stored.root / "val" / "day").iterdir():
        path.unlink()


def broken_image(stored: Masks) -> None:
    (stored.root / "val" / "day" / "00.jpg").write_bytes(b"nothing")


def same_name_twice(stored: Masks) -> None:
    picture(stored.root / "val" / "day" / "00.bmp", (4, 6))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (unlisted, "77, on 24 pixels"),
        (colored, "a mask in colors"),
        (another_size, "a mask of another size"),
        (lambda stored: stored.path("val", 0).unlink(), "missing mask"),
        (lambda stored: stored.path("val", 0).write_bytes(b"x"), "unreadable mask"),
        (no_image_at_all, "a folder without images"),
        (broken_image, "unreadable image"),
        (same_name_twice, "two images share a mask"),
        (
            lambda stored: (stored.root / "annotations" / "classes.csv").unlink(),
            "no readable list of classes",
        ),
        (lambda stored: stored.write_classes([("x", "grass")]), "a damaged list of classes"),
        (lambda stored: stored.write_classes([(3, "grass"), (3, "lawn")]), "classes.csv, lines 2 and 3"),
        (lambda stored: stored.write_classes([(0, ""), (3, "")]), "a list without a class"),
        (lambda stored: stored.write_classes([(70_000, "grass")]), "a damaged list of classes"),
    ],
)
def test_broken_masks_are_one_error(
    stored: Masks, tmp_path: Path, spoil: Callable[[Masks], object], words: str
) -> None:
    spoil(stored)
    with pytest.raises(DataError) as caught:
        bootstrap(stored.root, tmp_path / "out", BootstrapOptions(layout="masks"))
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()
