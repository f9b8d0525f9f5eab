"""Generated sets in the official form: every pixel as drawn, and every departure from the form by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from pipeline.data.bootstrap.build import bootstrap
from pipeline.data.bootstrap.options import BootstrapOptions
from pipeline.data.labels.published import published_classes
from pipeline.data.layouts.layout import LayoutOptions
from pipeline.data.layouts.opening import open_layout
from pipeline.data.loading.dataset import SegmentationDataset
from pipeline.runtime.errors import DataError, UsageError
from pipeline.runtime.workers import worker_pool
from tests.pipeline.data.layouts import miniature


def targets(out: Path, root: Path, *splits: str) -> dict[str, np.ndarray]:
    found = {}
    for split in splits or ("train", "holdout", "val"):
        dataset = SegmentationDataset(out, root, split)
        found |= {dataset.row(i).file: dataset[i].target.numpy() for i in range(len(dataset))}
    return found


CASES = {
    "cityscapes": ("cityscapes", miniature.cityscapes, LayoutOptions()),
    "trainIds": ("cityscapes", lambda root: miniature.cityscapes(root, "labelTrainIds"), LayoutOptions()),
    "voc": ("voc", miniature.voc, LayoutOptions()),
    "voc+sbd": ("voc", lambda root: miniature.voc(root, augmented=True), LayoutOptions(voc_augmented=True)),
    "ade20k": ("ade20k", miniature.ade20k, LayoutOptions()),
    "cocostuff10k": ("cocostuff10k", miniature.cocostuff10k, LayoutOptions()),
    "182": (
        "cocostuff10k",
        lambda root: miniature.cocostuff10k(root, 182),
        LayoutOptions(cocostuff_classes=182),
    ),
}


@pytest.mark.process
@pytest.mark.parametrize("case", CASES)
def test_every_pixel_becomes_its_class(tmp_path: Path, case: str) -> None:
    layout, make, options = CASES[case]
    truth = make(tmp_path / "root")
    with worker_pool(2, "pipeline.data.bootstrap.build") as pool:
        bootstrap(
            tmp_path / "root", tmp_path / "out", BootstrapOptions(layout=layout, of_layout=options), pool=pool
        )
    found = targets(tmp_path / "out", tmp_path / "root")
    assert found.keys() == truth.keys()
    for file, target in truth.items():
        np.testing.assert_array_equal(found[file], target, err_msg=file)


@pytest.mark.parametrize("layout", miniature.MAKERS)
def test_the_official_val_is_val_and_the_holdout_is_cut_from_train(tmp_path: Path, layout: str) -> None:
    miniature.MAKERS[layout](tmp_path / "root")
    splits = open_layout(layout, tmp_path / "root").splits(0.25, 0).images
    marks = {"cityscapes": "/val/", "voc": "2007_00001", "ade20k": "/validation/", "cocostuff10k": "00009"}
    in_val = {split: [marks[layout] in (e.file or "") for e in entries] for split, entries in splits.items()}
    assert all(in_val["val"])
    assert not any(in_val["train"] + in_val["holdout"])
    assert [len(splits[split]) for split in ("holdout", "val")] == [1, 2]
    ids = [entry.image_id for entries in splits.values() for entry in entries]
    assert len(ids) == len(set(ids))


def test_sbd_adds_to_train_what_voc_does_not_have_and_nothing_of_val(tmp_path: Path) -> None:
    miniature.voc(tmp_path, augmented=True)
    plain = open_layout("voc", tmp_path).splits(0, 0).images
    more = open_layout("voc", tmp_path, options=LayoutOptions(voc_augmented=True)).splits(0, 0).images
    assert more["val"] == plain["val"]
    added = {entry.file for entry in more["train"]} - {entry.file for entry in plain["train"]}
    assert added == {f"benchmark_RELEASE/dataset/img/2008_00000{i}.jpg" for i in (2, 3)}
    assert {entry.file for entry in plain["train"]} < {entry.file for entry in more["train"]}


def test_the_manifest_names_the_choice_of_its_layout_alone(tmp_path: Path) -> None:
    for layout, key in (("voc", "voc_augmented"), ("cocostuff10k", "cocostuff_classes")):
        miniature.MAKERS[layout](tmp_path / layout)
        bootstrap(tmp_path / layout, tmp_path / f"{layout}_out", BootstrapOptions(layout=layout))
        manifest = json.loads((tmp_path / f"{layout}_out" / "manifest.json").read_text())
        assert {"voc_augmented", "cocostuff_classes"} & manifest.keys() == {key}


def test_keeping_some_classes_leaves_the_others_unlabeled(tmp_path: Path) -> None:
    truth = miniature.cityscapes(tmp_path / "root")
    options = BootstrapOptions(layout="cityscapes", keep_classes=["car", "road"])
    bootstrap(tmp_path / "root", tmp_path / "out", options)
    for file, target in targets(tmp_path / "out", tmp_path / "root").items():
        expected = np.select([truth[file] == 0, truth[file] == 13], [0, 1], -1)
        np.testing.assert_array_equal(target, expected)


def test_the_vendored_lists_are_the_published_ones() -> None:
    names = {name: published_classes(name).names for name in miniature.MAKERS}
    assert {name: len(of) for name, of in names.items()} == {
        "cityscapes": 19,
        "voc": 21,
        "ade20k": 150,
        "cocostuff10k": 182,
    }
    assert all(len(set(of)) == len(of) for of in names.values())
    assert names["cityscapes"][0::6] == ["road", "traffic light", "rider", "bicycle"]
    assert names["voc"][0::5] == ["background", "bottle", "cow", "person", "tvmonitor"]
    assert names["ade20k"][:3] + names["ade20k"][-1:] == ["wall", "building", "sky", "flag"]
    populated = published_classes("cocostuff10k", populated_only=True)
    assert populated.num_classes == 171
    gone = [name for name in names["cocostuff10k"] if name not in populated.names]
    assert gone[:3] == ["street sign", "hat", "shoe"]
    assert populated.names[80] == "banner"  # the first of stuff, after 80 things


def colored(path: Path) -> None:
    Image.new("RGB", miniature.SIZE[::-1]).save(path)


def with_value(path: Path, value: int) -> None:
    values = np.array(Image.open(path))
    values[0, 0] = value
    Image.fromarray(values).save(path)


AACHEN = "gtFine/train/aachen/aachen_000001_000019_gtFine"
AACHEN_IMAGE = "leftImg8bit/train/aachen/aachen_000001_000019_leftImg8bit.png"
VOC = "VOCdevkit/VOC2012"
ADE = "ADEChallengeData2016"
COCO = "COCO_train2014_000000000002"

FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "city without labels": (
        "cityscapes",
        lambda r: (r / f"{AACHEN}_labelIds.png").unlink(),
        "an image without a mask",
    ),
    "city without image": ("cityscapes", lambda r: (r / AACHEN_IMAGE).unlink(), "a mask without an image"),
    "city half unpacked": (
        "cityscapes",
        lambda r: shutil.rmtree(r / "leftImg8bit" / "val"),
        "a mask without an image",
    ),
    "only the labels": ("cityscapes", lambda r: shutil.rmtree(r / "leftImg8bit"), "no leftImg8bit of City"),
    "only the images": ("cityscapes", lambda r: shutil.rmtree(r / "gtFine"), "no gtFine of Cityscapes"),
    "plate as 255": ("cityscapes", lambda r: with_value(r / f"{AACHEN}_labelIds.png", 255), "a plate's -1"),
    "colors for ids": (
        "cityscapes",
        lambda r: (r / f"{AACHEN}_labelIds.png").rename(r / f"{AACHEN}_color.png"),
        "a mask in colors",
    ),
    "colored ids": ("cityscapes", lambda r: colored(r / f"{AACHEN}_labelIds.png"), "a mask in colors"),
    "another size": (
        "cityscapes",
        lambda r: Image.new("L", (4, 4), 7).save(r / f"{AACHEN}_labelIds.png"),
        "a mask of another size",
    ),
    "no voc list": (
        "voc",
        lambda r: (r / VOC / "ImageSets/Segmentation/val.txt").unlink(),
        "missing split list",
    ),
    "no voc train list": (
        "voc",
        lambda r: (r / VOC / "ImageSets/Segmentation/train.txt").unlink(),
        "missing split list",
    ),
    "voc of 2007": (
        "voc",
        lambda r: (r / VOC).rename(r / "VOCdevkit/VOC2007"),
        "another year of VOC",
    ),
    "train and val": (
        "voc",
        lambda r: (r / VOC / "ImageSets/Segmentation/train.txt").write_text("2007_000001\n2007_000010\n"),
        "an image in two splits",
    ),
    "a list of other names": (
        "voc",
        lambda r: (r / VOC / "ImageSets/Segmentation/train.txt").write_text("000012\n"),
        "a damaged split list",
    ),
    "voc image gone": ("voc", lambda r: (r / VOC / "JPEGImages/2007_000010.jpg").unlink(), "missing image"),
    "voc mask gone": (
        "voc",
        lambda r: (r / VOC / "SegmentationClass/2007_000010.png").unlink(),
        "missing mask",
    ),
    "gray levels": (
        "voc",
        lambda r: Image.new("L", miniature.SIZE[::-1], 75).save(
            r / VOC / "SegmentationClass/2007_000010.png"
        ),
        "gray levels of their palette",
    ),
    "no sbd": ("voc+sbd", lambda r: shutil.rmtree(r / "benchmark_RELEASE"), "no SBD here"),
    "no sbd list": (
        "voc+sbd",
        lambda r: (r / "benchmark_RELEASE/dataset/val.txt").unlink(),
        "missing split list",
    ),
    "sbd damaged": (
        "voc+sbd",
        lambda r: (r / "benchmark_RELEASE/dataset/cls/2008_000002.mat").write_bytes(b"MATLAB 5.0"),
        "unreadable mask",
    ),
    "sbd's instances": (
        "voc+sbd",
        lambda r: savemat(r / "benchmark_RELEASE/dataset/cls/2008_000002.mat", {"GTinst": 1}),
        "a Matlab file of another form",
    ),
    "ade without masks": (
        "ade20k",
        lambda r: shutil.rmtree(r / ADE / "annotations/validation"),
        "an image without a mask",
    ),
    "ade without images": (
        "ade20k",
        lambda r: shutil.rmtree(r / ADE / "images"),
        "a mask without an image",
    ),
    "ade of instances": (
        "ade20k",
        lambda r: (r / ADE / "annotations").rename(r / ADE / "annotations_instance"),
        "the instance challenge of 2017",
    ),
    "full ade": (
        "ade20k",
        lambda r: (r / ADE).rename(r / "ADE20K_2021_17_01"),
        "full ADE20K",
    ),
    "ade shifted": (
        "ade20k",
        lambda r: with_value(r / ADE / "annotations/training/ADE_train_00000002.png", 255),
        "shifts them by one",
    ),
    "ade listed but gone": (
        "ade20k",
        lambda r: (r / ADE / "sceneCategories.txt").write_text("ADE_train_00000009 kitchen\n"),
        "sceneCategories.txt lists it",
    ),
    "coco without lists": ("cocostuff10k", lambda r: shutil.rmtree(r / "imageLists"), "missing split list"),
    "coco mask gone": (
        "cocostuff10k",
        lambda r: (r / f"annotations/{COCO}.mat").unlink(),
        "missing mask",
    ),
    "coco 1.0 as HDF5": (
        "cocostuff10k",
        lambda r: (r / f"annotations/{COCO}.mat").write_bytes(b"MATLAB 7.3 MAT-file, Platform: GLNXA64"),
        "v1.0 numbers its classes otherwise",
    ),
    "coco 1.0 by its names": (
        "cocostuff10k",
        lambda r: miniature.cocostuff_file(r / f"annotations/{COCO}.mat", np.ones((24, 32), np.uint8), 172),
        "172 names of classes",
    ),
    "coco of 164,000": (
        "cocostuff10k",
        lambda r: [p.rename(p.with_suffix(".png")) for p in (r / "annotations").iterdir()],
        "COCO-Stuff of 164,000 images",
    ),
    "an id without pixels": (
        "cocostuff10k",
        lambda r: miniature.cocostuff_file(r / f"annotations/{COCO}.mat", np.full((24, 32), 12, np.uint8)),
        "data.cocostuff.classes: 182",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_departure_from_the_official_form_is_one_error(tmp_path: Path, case: str) -> None:
    name, spoil, words = FAULTS[case]
    layout, make, options = CASES[name]
    root = tmp_path / "root"
    make(root)
    spoil(root)
    with pytest.raises(DataError) as caught:
        bootstrap(root, tmp_path / "out", BootstrapOptions(layout=layout, of_layout=options))
    assert words in str(caught.value)
    assert str(root) in str(caught.value.where)
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    miniature.cocostuff10k(tmp_path)
    with pytest.raises(UsageError, match="171 or 182"):
        open_layout("cocostuff10k", tmp_path, options=LayoutOptions(cocostuff_classes=91))


def test_labels_of_both_kinds_are_read_by_labelids(tmp_path: Path) -> None:
    truth = miniature.cityscapes(tmp_path / "root")
    for path in (tmp_path / "root" / "gtFine").rglob("*_labelIds.png"):
        other = path.with_name(path.name.replace("labelIds", "labelTrainIds"))
        Image.new("L", Image.open(path).size, 255).save(other)
    bootstrap(tmp_path / "root", tmp_path / "out", BootstrapOptions(layout="cityscapes"))
    for file, target in targets(tmp_path / "out", tmp_path / "root").items():
        np.testing.assert_array_equal(target, truth[file])


@pytest.mark.parametrize("inside", [f"{VOC}", "VOCdevkit"])
def test_voc_may_be_named_by_an_inner_folder(tmp_path: Path, inside: str) -> None:
    miniature.voc(tmp_path)
    assert len(open_layout("voc", tmp_path / inside).splits(0, 0).images["train"]) == 4
