"""Every listed image is found, explained or noted: links, copies, ids of two files, other spellings."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli.data import app
from pipeline.data.bootstrap.build import bootstrap
from pipeline.data.bootstrap.options import BootstrapOptions
from pipeline.data.check.layouts import check_layout
from pipeline.data.layouts.opening import open_layout
from pipeline.data.loading.dataset import SegmentationDataset
from pipeline.runtime.errors import DataError
from tests.pipeline.data.layouts.miniature import ade20k, cityscapes
from tests.pipeline.data.layouts.small_layouts import Coco, Masks, masks_of, picture
from tests.pipeline.data.small_dataset import box


@pytest.fixture
def coco(tmp_path: Path) -> Coco:
    return Coco(tmp_path / "coco")


@pytest.fixture
def stored(tmp_path: Path) -> Masks:
    return Masks(tmp_path / "masks")


def test_linked_folders_of_masks_and_hidden_ones(stored: Masks, tmp_path: Path) -> None:
    for folder, target in (("others", "train"), ("other masks", "annotations/train")):
        (tmp_path / folder).mkdir()
        ending = "jpg" if folder == "others" else "png"
        for index in range(5):
            source = stored.root / target / "day" / f"00.{ending}"
            (tmp_path / folder / f"x{index}.{ending}").write_bytes(source.read_bytes())
            hidden = stored.root / target / ".ipynb_checkpoints" / f"00-checkpoint.{ending}"
            hidden.parent.mkdir(exist_ok=True)
            hidden.write_bytes(source.read_bytes())
            (stored.root / target / f"._00.{ending}").write_bytes(b"AppleDouble")
        (stored.root / target / "city").symlink_to(tmp_path / folder)
    bootstrap(stored.root, tmp_path / "out", BootstrapOptions(layout="masks"))
    found = sorted(name for name in masks_of(tmp_path / "out", stored.root) if name.startswith("train"))
    assert found == [*(f"train/city/x{i}.jpg" for i in range(5)), *(f"train/day/0{i}.jpg" for i in range(4))]


def test_hidden_files_of_published_sets_are_passed_over(tmp_path: Path) -> None:
    for make, name in ((ade20k, "ade20k"), (cityscapes, "cityscapes")):
        truth = make(tmp_path / name)
        for path in [one for one in (tmp_path / name).rglob("*") if one.suffix in (".jpg", ".png")]:
            path.with_name(f"._{path.name}").write_bytes(b"AppleDouble")
            hidden = path.parent / ".ipynb_checkpoints"
            hidden.mkdir(exist_ok=True)
            (hidden / path.name).write_bytes(path.read_bytes())
        layout = open_layout(name, tmp_path / name)
        images = [entry.file for entries in layout.splits(0, 0).images.values() for entry in entries]
        assert sorted(images) == sorted(truth)


def test_masks_of_other_endings_and_spellings_are_found(stored: Masks, tmp_path: Path) -> None:
    day = stored.root / "annotations" / "train" / "day"
    with Image.open(day / "00.png") as opened:
        opened.save(day / "00.tiff")
    (day / "00.png").unlink()
    (day / "01.png").rename(day / "01.PNG")
    image = stored.root / "train" / "day" / "03.jpg"
    image.rename(image.with_name(unicodedata.normalize("NFC", "né.jpg")))
    (day / "03.png").rename(day / unicodedata.normalize("NFD", "né.png"))
    bootstrap(stored.root, tmp_path / "out", BootstrapOptions(layout="masks"))
    assert sum(name.startswith("train") for name in masks_of(tmp_path / "out", stored.root)) == 4


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: (path / "train" / "day" / "01.jpg").unlink(), "a mask without an image"),
        (
            lambda path: Image.new("L", (6, 4)).save(path / "annotations" / "train" / "day" / "00.bmp"),
            "two masks for an image",
        ),
        (
            lambda path: (path / "annotations" / "train" / "day" / "00.png").rename(
                path / "annotations" / "train" / "day" / "00.jpeg"
            ),
            None,  # a PNG, whatever it is called
        ),
    ],
)
def test_images_and_masks_that_do_not_match(
    stored: Masks, tmp_path: Path, spoil: Callable[[Path], object], words: str | None
) -> None:
    spoil(stored.root)
    if words is None:
        bootstrap(stored.root, tmp_path / "out", BootstrapOptions(layout="masks"))
        return
    with pytest.raises(DataError, match=words):
        bootstrap(stored.root, tmp_path / "out", BootstrapOptions(layout="masks"))
    assert [fault.kind for fault in check_layout(stored.root, "masks").faults] == [words]


def from_one(coco: Coco) -> None:
    """Number val from 1, and give its images annotations of their own."""
    tree = coco.files["instances_val2017"]
    for number, image in enumerate(tree["images"], start=1):
        for row in tree["annotations"]:
            if row["image_id"] == image["id"]:
                row |= {"image_id": number, "segmentation": box(0, 0, number, 8), "iscrowd": 0}
        image["id"] = number


def test_both_files_of_a_coco_set_may_number_from_1(coco: Coco, tmp_path: Path) -> None:
    before = coco.write()
    bootstrap(before, tmp_path / "before", BootstrapOptions(layout="coco"))
    from_one(coco)
    root = coco.write()
    bootstrap(root, tmp_path / "out", BootstrapOptions(layout="coco"))
    val = SegmentationDataset(tmp_path / "out", root, "val")
    assert val.image_ids() == [11, 12]  # 1 and 2, raised by 10
    for number in (1, 2):
        mask = val.class_mask(number - 1)
        assert (mask[:, :number] == 3).all()
        assert (mask[:, number:] == 0).all()
    for name, mask in masks_of(tmp_path / "before", root).items():
        if name.startswith("train"):
            np.testing.assert_array_equal(masks_of(tmp_path / "out", root)[name], mask)
    manifests = [json.loads((tmp_path / one / "manifest.json").read_text()) for one in ("before", "out")]
    assert [manifest.get("val_ids_raised_by") for manifest in manifests] == [None, 10]
    assert not check_layout(root, "coco").faults


def rename(coco: Coco, name: str) -> None:
    coco.files["instances_train2017"]["images"][0]["file_name"] = name


@pytest.mark.parametrize(
    "name",
    [
        "train2017/park/1.png",
        "images/train2017/park/1.png",
        "./park/1.png",
        "/home/me/train2017/park/1.png",
        "http://images/train2017/park/1.png",
        "park\\1.png",
        "C:\\set\\train2017\\park\\1.png",
        "PARK/1.PNG",
        "train2017\\PARK\\1.png",
    ],
)
def test_names_written_otherwise_are_found(coco: Coco, tmp_path: Path, name: str) -> None:
    rename(coco, name)
    bootstrap(coco.write(), tmp_path / "out", BootstrapOptions(layout="coco"))
    assert "train2017/park/1.png" in masks_of(tmp_path / "out", coco.root)


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_another_unicode_form_of_a_name_is_found(coco: Coco, tmp_path: Path, on_disk: str) -> None:
    other = {"NFC": "NFD", "NFD": "NFC"}[on_disk]
    park = coco.root / "train2017" / "park"
    (park / "1.png").rename(park / unicodedata.normalize(on_disk, "ömér.png"))
    rename(coco, unicodedata.normalize(other, "park/ömér.png"))
    bootstrap(coco.write(), tmp_path / "out", BootstrapOptions(layout="coco"))
    assert sum(name.startswith("train") for name in masks_of(tmp_path / "out", coco.root)) == 4


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("1.png", "a file of this name lies at train2017/park/1.png"),
        ("park/1.jpg", "there is train2017/park/1.png, with another ending"),
        ("park/11.png", "a file of this name lies in val2017/"),
        ("val2017/park/11.png", "the file lies outside train2017/"),
        ("park/a%20b.png", "percent-encoded; the file is called park/a b.png"),
        ("PARK/TWO.png", "several files could be meant: park/Two.png, park/two.png"),
        ("nothing.png", "no file of a similar name"),
    ],
)
def test_names_that_are_not_found_are_explained(coco: Coco, tmp_path: Path, name: str, cause: str) -> None:
    for more in ("a b.png", "two.png", "Two.png"):
        picture(coco.root / "train2017" / "park" / more)
    rename(coco, name)
    with pytest.raises(DataError) as caught:
        bootstrap(coco.write(), tmp_path / "out", BootstrapOptions(layout="coco"))
    assert cause in str(caught.value)
    assert "fetch" not in str(caught.value)
    (fault,) = check_layout(coco.root, "coco").faults
    assert (fault.kind, fault.file) == ("missing image", f"train2017/{name}")
    assert cause in fault.detail


@pytest.mark.parametrize("layout", ["coco", "masks"])
def test_copies_of_a_photograph_are_noted(coco: Coco, stored: Masks, tmp_path: Path, layout: str) -> None:
    """All small images are one photograph; each gets pixels of its own but two in train, and one in val."""
    root = coco.write() if layout == "coco" else stored.root
    images = sorted(
        path for split in ("train", "val") for path in root.glob(f"{split}*/*/*") if path.is_file()
    )
    for number, path in enumerate(images):
        with Image.open(path) as opened:
            Image.new("RGB", opened.size, (number * 40, 9, 9)).save(path)
    images[1].write_bytes(images[0].read_bytes())
    images[4].write_bytes(images[0].read_bytes())
    out = tmp_path / "out"
    made = CliRunner().invoke(
        app, ["bootstrap", str(root), str(out), "--layout", layout, "--holdout-fraction", "0"]
    )
    assert made.exit_code == 0, made.output
    assert "warning: one photograph in train and val: 1, named in manifest.json" in made.output
    names = [images[number].relative_to(root).as_posix() for number in (0, 1, 4)]
    (found,) = json.loads((out / "manifest.json").read_text())["copies"]
    assert found["files"] == names
    assert found["splits"] == ["train", "train", "val"]
    (note,) = [one for one in check_layout(root, layout).found if "photograph" in one.kind]
    assert note.note
    assert all(name in note.detail for name in names)


def test_a_copy_between_train_and_its_held_out_part_is_noted(coco: Coco, tmp_path: Path) -> None:
    result = bootstrap(coco.write(), tmp_path / "out", BootstrapOptions(layout="coco"))
    assert [one.kind for one in result.copies] == ["one photograph in holdout, train and val"]
