"""The embedded dataset is COCO's and LVIS's on-disk form, deterministic, long-tailed and never half there."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pipeline.data.labels.official import official_categories
from pipeline.data.tiny import drawing as tiny_drawing
from pipeline.data.tiny import generate as tiny
from pipeline.data.tiny.generate import generate_tiny
from pipeline.runtime.errors import DataError

TABLES = ("lvis_v1_train", "lvis_v1_val", "stuff_train2017", "stuff_val2017")
SMALL = {"num_train": 24, "num_val": 12, "image_size": (96, 72), "seed": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    generate_tiny(folder, **SMALL)
    return folder


@pytest.fixture(scope="module")
def tables(root) -> dict[str, dict]:
    return {name: json.loads((root / "annotations" / f"{name}.json").read_text()) for name in TABLES}


def _hashes(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_the_same_parameters_give_the_same_bytes(root, tmp_path):
    generate_tiny(tmp_path / "again", **SMALL)
    assert _hashes(tmp_path / "again") == _hashes(root)


def test_another_seed_draws_other_scenes(root, tmp_path):
    generate_tiny(tmp_path / "other", **{**SMALL, "seed": 4})
    name = "train2017/000000600001.jpg"
    assert (tmp_path / "other" / name).read_bytes() != (root / name).read_bytes()


def test_an_image_does_not_depend_on_how_many_there_are(root, tmp_path):
    generate_tiny(tmp_path / "fewer", **{**SMALL, "num_train": 13, "num_val": 5})
    for name in ("train2017/000000600013.jpg", "val2017/000000700001.jpg"):
        assert (tmp_path / "fewer" / name).read_bytes() == (root / name).read_bytes()


def test_the_official_keys_and_all_categories_are_there(tables):
    official = official_categories()
    for split in ("train", "val"):
        table = tables[f"lvis_v1_{split}"]
        assert set(table) == {"info", "licenses", "categories", "images", "annotations"}
        assert [(c["id"], c["name"]) for c in table["categories"]] == [
            (c["id"], c["name"]) for c in official.lvis
        ]
        assert len(table["categories"]) == 1203
        for category in table["categories"]:
            assert category.keys() >= {
                "frequency",
                "synset",
                "synonyms",
                "def",
                "image_count",
                "instance_count",
            }
        for image in table["images"]:
            assert image.keys() >= {"coco_url", "neg_category_ids", "not_exhaustive_category_ids", "width"}
            assert "file_name" not in image  # LVIS v1 has none: the file is found by its URL
        for annotation in table["annotations"]:
            assert set(annotation) == {"id", "image_id", "category_id", "segmentation", "area", "bbox"}
    for split in ("train", "val"):
        table = tables[f"stuff_{split}2017"]
        assert len(table["categories"]) == 92
        assert table["categories"][-1]["name"] == "other"
        assert {"file_name", "coco_url"} <= set(table["images"][0])
        assert all(annotation["iscrowd"] == 0 for annotation in table["annotations"])


def test_every_image_lies_where_its_url_says_and_some_val_images_in_train2017(root, tables):
    folders = Counter()
    for split in ("train", "val"):
        for image in tables[f"lvis_v1_{split}"]["images"]:
            folder, name = image["coco_url"].split("/")[-2:]
            folders[split, folder] += 1
            with Image.open(root / folder / name) as picture:
                assert picture.size == (image["width"], image["height"])
    assert folders == {("train", "train2017"): 24, ("val", "train2017"): 6, ("val", "val2017"): 6}
    for folder in ("train2017", "val2017"):
        listed = {image["file_name"] for image in tables[f"stuff_{folder}"]["images"]}
        assert listed <= {path.name for path in (root / folder).iterdir()}


def test_pycocotools_reads_every_annotation_as_its_area_and_box_say(root):
    kinds = Counter()
    for name in TABLES:
        coco = COCO(str(root / "annotations" / f"{name}.json"))
        for annotation in coco.anns.values():
            runs = coco.annToRLE(annotation)
            kinds[name[:4], type(annotation["segmentation"])] += 1
            assert coco_mask.area(runs) == annotation["area"] > 0
            assert coco_mask.toBbox(runs).tolist() == annotation["bbox"]
    assert kinds["lvis", list] > 20
    assert kinds["lvis", dict] > 5  # both forms of the real dataset
    assert kinds["stuf", dict] > 50


def test_ids_are_unique_and_refer_to_listed_images(tables):
    for table in tables.values():
        ids = [annotation["id"] for annotation in table["annotations"]]
        images = {image["id"] for image in table["images"]}
        assert len(set(ids)) == len(ids)
        assert {annotation["image_id"] for annotation in table["annotations"]} <= images


def test_a_drawn_outline_covers_the_pixels_it_was_painted_on():
    """The polygon that is annotated and the mask that is painted come from two rasterizers; they agree."""
    rng = np.random.default_rng(0)
    for (is_thing, name), figure in tiny_drawing.figures().items():
        canvas = tiny_drawing.Canvas(120, 100, rng)
        canvas.fill("snow", tiny_drawing.grounds()["snow"], np.zeros(120))
        canvas.place(figure, 60, 50, 20, is_thing=is_thing)
        painted = canvas.owner == 1
        points = [polygon.ravel().tolist() for polygon in canvas.regions[1].polygons]
        drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(points, 100, 120))).astype(bool)
        assert (painted & drawn).sum() >= 0.8 * (painted | drawn).sum(), name


def test_stuff_never_overlaps_itself_and_some_pixels_stay_unlabeled(root):
    unlabeled = []
    for folder in ("train2017", "val2017"):
        coco = COCO(str(root / "annotations" / f"stuff_{folder}.json"))
        for image_id in coco.imgs:
            masks = [coco.annToMask(annotation) for annotation in coco.imgToAnns[image_id]]
            layers = np.sum(masks, axis=0)
            assert layers.max() <= 1
            unlabeled.append(float((layers == 0).mean()))
    assert 0 < np.mean(unlabeled) < 0.3


def test_one_image_is_gray_and_one_is_without_any_annotation(root, tables):
    modes = Counter(Image.open(path).mode for path in root.glob("*2017/*.jpg"))
    assert modes == {"RGB": 35, "L": 1}
    images = {image["id"] for image in tables["lvis_v1_train"]["images"]}
    annotated = {a["image_id"] for name in TABLES for a in tables[name]["annotations"]}
    assert len(images - annotated) >= 1


def test_the_negative_categories_are_not_in_the_picture_and_the_missed_ones_are(tables):
    for split in ("train", "val"):
        table = tables[f"lvis_v1_{split}"]
        drawn = {(a["image_id"], a["category_id"]) for a in table["annotations"]}
        for image in table["images"]:
            negative, missed = set(image["neg_category_ids"]), set(image["not_exhaustive_category_ids"])
            assert len(negative) == 3
            assert not negative & missed
            assert not any((image["id"], category) in drawn for category in negative)


def test_what_the_scenes_name_can_be_drawn_and_has_an_official_name():
    official = official_categories()
    lvis = {row["name"]: row for row in official.lvis}
    stuff = {row["name"]: row["id"] for row in official.stuff}
    things, regions = set(), set()
    for scene in tiny_drawing.scenes():
        for band in scene["bands"]:
            things |= band["things"].keys()
            for place in ("stuff", "backdrop", "hangs", "lies"):
                regions |= band.get(place, {}).keys()
    drawable = tiny_drawing.figures()
    assert {(True, name) for name in things} == {key for key in drawable if key[0]}
    assert regions == {name for is_thing, name in drawable if not is_thing} | tiny_drawing.grounds().keys()
    assert {lvis[name]["frequency"] for name in things} == {"r", "c", "f"}
    assert {lvis[name]["id"] for name in things} >= {255}  # no ignore value here, but a Christmas tree
    assert len({stuff[name] for name in regions} & official.merged_pairs.keys()) >= 5


def test_a_complete_dataset_is_left_untouched_and_an_incomplete_one_drawn_again(tmp_path):
    root = tmp_path / "tiny"
    small = {"num_train": 12, "num_val": 2, "image_size": (48, 40)}
    generate_tiny(root, **small)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    generate_tiny(root, **small)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    hashes = _hashes(root)
    (root / "train2017" / "000000600003.jpg").unlink()
    generate_tiny(root, **small)
    assert _hashes(root) == hashes
    generate_tiny(root, **{**small, "num_val": 3})
    assert json.loads((root / "tiny.json").read_text())["num_val"] == 3
    assert list(tmp_path.iterdir()) == [root]


def test_an_interrupted_generation_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny, "_annotate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate_tiny(tmp_path / "tiny", num_train=12, num_val=2)
    assert list(tmp_path.iterdir()) == []


def test_somebody_elses_folder_is_never_overwritten(tmp_path):
    (tmp_path / "photographs.txt").write_text("precious")
    with pytest.raises(DataError, match=r"no tiny\.json"):
        generate_tiny(tmp_path, num_train=12, num_val=2)
    assert (tmp_path / "photographs.txt").read_text() == "precious"


@pytest.mark.parametrize("wrong", [{"num_train": 3}, {"num_val": 0}, {"image_size": (16, 16)}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="tiny needs"):
        generate_tiny(tmp_path / "tiny", **wrong)
