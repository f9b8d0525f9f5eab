"""A user's own data: any COCO-format annotations, and folders of masks, through the same chain."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli.data import app
from pipeline.config.schema import DataSettings
from pipeline.data.bootstrap.build import bootstrap
from pipeline.data.bootstrap.options import BootstrapOptions
from pipeline.data.labels.label_space import MAX_CLASSES, LabelSpace
from pipeline.data.layouts.layout import LAYOUTS
from pipeline.data.layouts.opening import open_layout
from pipeline.data.loading.batch import IGNORE_INDEX
from pipeline.data.loading.dataset import SegmentationDataset
from pipeline.data.loading.visualize import export_masks
from pipeline.runtime.errors import DataError, UsageError
from pipeline.runtime.workers import worker_pool
from tests.pipeline.data.small_dataset import box, typical, whole


def masks(out: Path, root: Path) -> dict[str, np.ndarray]:
    found = {}
    for split in ("train", "holdout", "val"):
        dataset = SegmentationDataset(out, root, split)
        found |= {dataset.row(i).file: dataset.class_mask(i) for i in range(len(dataset))}
    return found


def picture(path: Path, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (200, 30, 90)).save(path)


class Coco:
    """A small set of instances with categories 7, 90 and 20, written as users have it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, dict[str, list[Any]]] = {}
        categories = [{"id": 90, "name": "kite"}, {"id": 7, "name": "dog"}, {"id": 20, "name": "kite"}]
        for split, ids in (("train", range(1, 5)), ("val", range(11, 13))):
            tree: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": categories}
            for image_id in ids:
                name = f"park/{image_id}.png"
                tree["images"].append({"id": image_id, "height": 8, "width": 8, "file_name": name})
                tree["annotations"] += [
                    {
                        "id": 10 * image_id,
                        "image_id": image_id,
                        "category_id": 90,
                        "segmentation": box(0, 0, 4, 4),
                        "iscrowd": 0,
                    },
                    {
                        "id": 10 * image_id + 1,
                        "image_id": image_id,
                        "category_id": 7,
                        "segmentation": {"size": [8, 8], "counts": [16, 48]},
                        "iscrowd": 1,
                    },
                ]
                picture(root / f"{split}2017" / name)
            self.files[f"instances_{split}2017"] = tree

    def write(self) -> Path:
        (self.root / "annotations").mkdir(parents=True, exist_ok=True)
        for name, tree in self.files.items():
            (self.root / "annotations" / f"{name}.json").write_text(json.dumps(tree))
        return self.root


@pytest.fixture
def coco(tmp_path: Path) -> Coco:
    return Coco(tmp_path / "coco")


def test_coco_annotations_of_any_categories_are_drawn(coco: Coco, tmp_path: Path) -> None:
    """Class ids follow the categories' ids; the crowd, an RLE list, fills what the kite leaves."""
    root, out = coco.write(), tmp_path / "out"
    result = bootstrap(root, out, BootstrapOptions(layout="coco"))
    assert [(c.name, c.category_ids, c.frequency) for c in result.label_space.classes] == [
        ("dog", {"coco": (7,)}, "r"),
        ("kite", {"coco": (20,)}, "r"),
        ("kite", {"coco": (90,)}, "r"),
    ]
    expected = np.zeros((8, 8), int)
    expected[:, 2:] = 1
    expected[:4, :4] = 3
    found = masks(out, root)
    assert set(found) == {f"{s}/park/{i}.png" for s, i in [*(("train2017", i) for i in range(1, 5))]} | {
        "val2017/park/11.png",
        "val2017/park/12.png",
    }
    for mask in found.values():
        np.testing.assert_array_equal(mask, expected)
    sample = SegmentationDataset(out, root, "val")[0]
    assert sample.target[7, 0] == IGNORE_INDEX
    assert json.loads((out / "manifest.json").read_text())["layout"] == "coco"


def test_frequencies_in_the_file_are_kept_and_others_are_counted(coco: Coco, tmp_path: Path) -> None:
    for tree in coco.files.values():
        tree["categories"] = [dict(row, frequency="c") for row in tree["categories"]]
    assert set(
        bootstrap(coco.write(), tmp_path / "a", BootstrapOptions(layout="coco")).label_space.frequencies
    ) == {"c"}
    space = LabelSpace(
        bootstrap(coco.root, tmp_path / "b", BootstrapOptions(layout="coco")).label_space.classes
    )
    assert space.with_frequencies([10, 11, 101]).frequencies == ["r", "c", "f"]


def test_coco_stuffs_other_means_unlabeled(coco: Coco, tmp_path: Path) -> None:
    for tree in coco.files.values():
        tree["categories"] = [
            {"id": 90, "name": "sky"},
            {"id": 7, "name": "fog"},
            {"id": 183, "name": "other"},
        ]
        for row in tree["annotations"]:
            row["category_id"] = {90: 183, 7: 7}[row["category_id"]]
    root = coco.write()
    assert bootstrap(root, tmp_path / "out", BootstrapOptions(layout="coco")).label_space.names == [
        "fog",
        "sky",
    ]
    assert (masks(tmp_path / "out", root)["train2017/park/1.png"][:4, :4] == 0).all()


def test_lvis_in_the_coco_layout_gives_the_masks_of_lvis_alone(tmp_path: Path) -> None:
    data = typical(tmp_path / "root")
    for split in ("train", "val"):
        for row in data.files[f"lvis_v1_{split}"]["images"]:
            row["file_name"] = row["coco_url"].rpartition("/")[2]
        data.files[f"stuff_{split}2017"]["annotations"] = []
    for row in data.files["lvis_v1_val"]["images"]:  # here, each split's images lie in one folder
        (data.root / "train2017" / row["file_name"]).exists() and (
            data.root / "train2017" / row["file_name"]
        ).rename(data.root / "val2017" / row["file_name"])
        row["coco_url"] = f"http://x/val2017/{row['file_name']}"
    root = data.write()
    bootstrap(root, tmp_path / "official")
    for name in ("stuff_train2017", "stuff_val2017"):
        data.path(name).unlink()
    bootstrap(root, tmp_path / "coco", BootstrapOptions(layout="coco"))
    official, found = masks(tmp_path / "official", root), masks(tmp_path / "coco", root)
    assert official.keys() == found.keys()
    for name, mask in official.items():
        np.testing.assert_array_equal(found[name], mask)


def without(name: str) -> Callable[[Coco], None]:
    return lambda coco: (coco.root / "annotations" / f"{name}.json").unlink()


def second_file(coco: Coco) -> None:
    (coco.root / "annotations" / "captions_train2017.json").write_text("{}")


def climbing(coco: Coco) -> None:
    coco.files["instances_val2017"]["images"][0]["file_name"] = "../../secret.png"
    coco.write()


def no_name(coco: Coco) -> None:
    del coco.files["instances_val2017"]["images"][0]["file_name"]
    coco.write()


def other_categories(coco: Coco) -> None:
    coco.files["instances_val2017"]["categories"] = [{"id": 90, "name": "bird"}, {"id": 7, "name": "dog"}]
    coco.write()


def in_both(coco: Coco) -> None:
    coco.files["instances_val2017"]["images"].append(coco.files["instances_train2017"]["images"][0])
    coco.write()


def no_folder(coco: Coco) -> None:
    (coco.root / "val2017").rename(coco.root / "test2017")


def two_folders(coco: Coco) -> None:
    (coco.root / "validation").mkdir()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without("instances_val2017"), "no annotation file for val"),
        (second_file, "captions_train2017.json, instances_train2017.json"),
        (climbing, "a file_name that names no file in its folder"),
        (no_name, "the key 'file_name' is missing"),
        (other_categories, "category 20: 'kite' and absent"),
        (in_both, "listed in both halves"),
        (no_folder, "no folder with the val images"),
        (two_folders, "val2017, validation"),
    ],
)
def test_a_broken_coco_layout_is_one_error(
    coco: Coco, tmp_path: Path, spoil: Callable[[Coco], None], words: str
) -> None:
    coco.write()
    spoil(coco)
    with pytest.raises(DataError) as caught:
        bootstrap(coco.root, tmp_path / "out", BootstrapOptions(layout="coco"))
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [MAX_CLASSES, MAX_CLASSES + 1])
def test_as_many_categories_as_masks_can_hold(coco: Coco, tmp_path: Path, number: int) -> None:
    for tree in coco.files.values():
        tree["categories"] = [{"id": i, "name": str(i)} for i in range(1, number + 1)]
        for row in tree["annotations"]:
            row |= {"category_id": number, "segmentation": whole()}
    root = coco.write()
    if number > MAX_CLASSES:
        with pytest.raises(UsageError, match="65534"):
            open_layout("coco", root)
        return
    bootstrap(root, tmp_path / "out", BootstrapOptions(layout="coco"))
    assert (masks(tmp_path / "out", root)["val2017/park/11.png"] == MAX_CLASSES).all()


class Masks:
    """Masks of values 0, 3, 300 and 65,535, of which 0 is unlabeled."""

    VALUES = ((0, ""), (3, "grass"), (300, "path"), (65_535, "fence"))

    def __init__(self, root: Path) -> None:
        self.root = root
        for split, number in (("train", 4), ("val", 2)):
            for index in range(number):
                picture(root / split / "day" / f"{index:02d}.jpg", (4, 6))
                self.save(self.path(split, index), self.values())
        self.write_classes(self.VALUES)

    @staticmethod
    def values() -> np.ndarray:
        values = np.zeros((4, 6), np.uint16)
        values[:, 1:3], values[:, 3], values[3, 5] = 3, 300, 65_535
        return values

    def path(self, split: str, index: int) -> Path:
        return self.root / "annotations" / split / "day" / f"{index:02d}.png"

    def save(self, path: Path, values: np.ndarray, mode: str | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(values)
        (image.convert(mode) if mode else image).save(path)

    def write_classes(self, rows: Any) -> None:
        with (self.root / "annotations" / "classes.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("value", "name"), *rows])


@pytest.fixture
def stored(tmp_path: Path) -> Masks:
    return Masks(tmp_path / "masks")


def test_16_bit_masks_are_looked_up_in_the_list_of_classes(stored: Masks, tmp_path: Path) -> None:
    with worker_pool(2, "pipeline.data.bootstrap.build") as pool:
        result = bootstrap(stored.root, tmp_path / "out", BootstrapOptions(layout="masks"), pool=pool)
    assert result.label_space.names == ["grass", "path", "fence"]
    expected = np.zeros((4, 6), int)
    expected[:, 1:3], expected[:, 3], expected[3, 5] = 1, 2, 3
    found = masks(tmp_path / "out", stored.root)
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
    mask = masks(tmp_path / "out", stored.root)["val/day/01.jpg"]
    assert mask[3].tolist() == [0, 2, 2, 3, 0, 1]


def test_keeping_classes_and_empty_masks(stored: Masks, tmp_path: Path) -> None:
    stored.save(stored.path("train", 1), np.zeros((4, 6), np.uint16))
    result = bootstrap(stored.root, tmp_path / "out", BootstrapOptions(layout="masks", keep_classes=["path"]))
    assert [(one.file, one.reason) for one in result.left_out] == [("train/day/01.jpg", "no labeled pixel")]
    mask = masks(tmp_path / "out", stored.root)["train/day/00.jpg"]
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
    first = {Path(name).name: mask for name, mask in masks(tmp_path / "first", root).items()}
    second = {Path(name).name: mask for name, mask in masks(tmp_path / "second", own).items()}
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
        (lambda stored: stored.write_classes([(3, "grass"), (3, "lawn")]), "belongs to two classes"),
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


def test_the_settings_and_the_command_know_the_layouts(stored: Masks, tmp_path: Path) -> None:
    annotation = DataSettings.model_fields["layout"].annotation
    assert annotation is not None
    assert annotation.__args__ == LAYOUTS
    made = CliRunner().invoke(
        app, ["bootstrap", str(stored.root), str(tmp_path / "out"), "--layout", "masks"]
    )
    assert made.exit_code == 0, made.output
    assert "3 classes" in made.output
    refused = CliRunner().invoke(app, ["bootstrap", str(stored.root), str(tmp_path / "o"), "--layout", "voc"])
    assert isinstance(refused.exception, UsageError)


def test_the_stage_reads_the_layout_from_the_settings(
    stored: Masks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages.bootstrap import main

    settings = {"data": {"root": str(stored.root), "layout": "masks"}, "runtime": {"num_workers": 0}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    main()
    assert LabelSpace.load(tmp_path / "data" / "bootstrapped" / "label_space.json").num_classes == 3
