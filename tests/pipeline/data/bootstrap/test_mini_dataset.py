"""132 real photographs with LVIS and COCO-Stuff annotations: pixels looked up by eye, masks computed anew."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from pipeline.data.bootstrap.build import BootstrapResult, bootstrap
from pipeline.data.check.check import check
from pipeline.data.loading.batch import IGNORE_INDEX
from pipeline.data.loading.dataset import SegmentationDataset
from tests.paths import SHARED

ROOT = SHARED / "data" / "coco_lvis_mini"
TABLE = ROOT.parents[1] / "label_space" / "essnet_coco2lvis.json"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ROOT.is_dir(), reason="no ../shared/data/coco_lvis_mini beside the project"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # pycocotools' decode
]
GREY = 61418


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> BootstrapResult:
    return bootstrap(ROOT, tmp_path_factory.mktemp("mini") / "out")


@pytest.fixture(scope="module")
def places(result: BootstrapResult) -> dict[int, tuple[SegmentationDataset, int]]:
    found = {}
    for split in ("train", "holdout", "val"):
        dataset = SegmentationDataset(result.out, ROOT, split)
        found |= {image_id: (dataset, index) for index, image_id in enumerate(dataset.image_ids())}
    return found


def annotations(name: str) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((ROOT / "annotations" / f"{name}.json").read_text())
    return tree


# What a person sees at (x, y) of the photograph; None where nobody annotated what is there.
SEEN = [
    (139, 80, 215, "television_set"),
    (139, 50, 75, "cabinet"),  # on the wall; stuff 98, which the reference's masks call window-other
    (139, 480, 260, "cabinet"),  # in the kitchen
    (139, 240, 120, "window-other"),
    (139, 250, 330, "floor-wood"),
    (139, 350, 385, "rug"),
    (139, 566, 370, "vase"),  # LVIS, in front of the table
    (139, 490, 400, "table"),  # stuff 165, merged into LVIS
    (139, 430, 25, "ceiling-other"),
    (139, 452, 230, "person"),
    (9, 470, 330, "broccoli"),  # LVIS val, in train2017, stuff in COCO's train file
    (9, 430, 100, "orange_(fruit)"),
    (9, 200, 310, "bowl"),
    (9, 80, 170, "food-other"),
    (25, 425, 170, "giraffe"),
    (25, 600, 30, "clouds"),
    (25, 150, 180, "tree"),
    (25, 450, 372, "wood"),
    (785, 390, 160, "person"),
    (785, 150, 250, "snow"),
    (1503, 190, 60, "television_set"),
    (1503, 230, 175, "computer_keyboard"),
    (1503, 140, 190, "mouse_(computer_equipment)"),
    (1503, 30, 140, "laptop_computer"),
    (1503, 30, 60, "window-blind"),
    (1503, 100, 220, "desk-stuff"),
    (350505, 380, 370, "truck"),
    (350505, 520, 320, "car_(automobile)"),
    (350505, 90, 80, "traffic_light"),
    (350505, 300, 100, "sky-other"),
    (350505, 600, 390, "road"),
    (GREY, 290, 325, "skirt"),  # a girl's
    (GREY, 262, 175, "skirt"),  # a woman's, at the railing
    (GREY, 560, 85, "boat"),
    (GREY, 300, 50, None),  # sky: this photograph has no stuff annotations
    (GREY, 330, 300, None),  # a pullover
]


def test_the_real_files_give_1284_classes(result: BootstrapResult) -> None:
    assert result.label_space.num_classes == 1284


@pytest.mark.parametrize(("image_id", "x", "y", "name"), SEEN)
def test_a_pixel_is_what_a_person_sees_there(
    result: BootstrapResult,
    places: dict[int, tuple[SegmentationDataset, int]],
    image_id: int,
    x: int,
    y: int,
    name: str | None,
) -> None:
    dataset, index = places[image_id]
    train_id = int(dataset[index].target[y, x])
    assert (None if train_id == IGNORE_INDEX else result.label_space.names[train_id]) == name


def test_every_listed_image_is_in_one_split_or_left_out(
    result: BootstrapResult, places: dict[int, tuple[SegmentationDataset, int]]
) -> None:
    """84 + 48 images, of which the annotation files leave five without any annotation."""
    listed = {name: {i["id"] for i in annotations(f"lvis_v1_{name}")["images"]} for name in ("train", "val")}
    annotated = {
        a["image_id"]
        for name in ("lvis_v1_train", "lvis_v1_val", "stuff_train2017", "stuff_val2017")
        for a in annotations(name)["annotations"]
    }
    assert {image.image_id for image in result.left_out} == (listed["train"] | listed["val"]) - annotated
    by_split: dict[str, set[int]] = {"train": set(), "holdout": set(), "val": set()}
    for image_id, (dataset, _) in places.items():
        by_split[dataset.split].add(image_id)
    assert by_split["train"] | by_split["holdout"] == listed["train"] & annotated
    assert by_split["val"] == listed["val"] & annotated
    assert len(by_split["holdout"]) == 8  # a tenth of 81
    assert (len(places), len(result.left_out)) == (127, 5)


def test_val_images_in_train2017_are_found(places: dict[int, tuple[SegmentationDataset, int]]) -> None:
    for image_id in (9, 25, 29286, 350505):
        dataset, index = places[image_id]
        assert dataset.split == "val"
        assert dataset.row(index).file == f"train2017/{image_id:012d}.jpg"


def test_the_gray_photograph_comes_as_rgb(places: dict[int, tuple[SegmentationDataset, int]]) -> None:
    dataset, index = places[GREY]
    with Image.open(ROOT / dataset.row(index).file) as opened:
        assert opened.mode == "L"
    image = dataset[index].image
    assert image.shape == (3, 458, 640)
    assert (image[0] == image[1]).all()


@pytest.fixture(scope="module")
def recomputed() -> dict[int, np.ndarray]:
    """Masks of some images by whole-mask arithmetic on pycocotools' decoding, with the reference's table."""
    if not TABLE.is_file():
        pytest.skip("no ../shared/label_space beside the project")
    table = {int(category): class_id for category, class_id in json.loads(TABLE.read_text()).items()}
    masks: dict[int, np.ndarray] = {}
    free: dict[int, np.ndarray] = {}
    for name in ("lvis_v1_train", "lvis_v1_val", "stuff_train2017", "stuff_val2017"):
        tree = annotations(name)
        for image in tree["images"]:
            shape = (image["height"], image["width"])
            masks.setdefault(image["id"], np.zeros(shape, dtype=np.int64))
            free.setdefault(image["id"], np.ones(shape, dtype=bool))
        for annotation in tree["annotations"]:
            image_id, outline = annotation["image_id"], annotation["segmentation"]
            height, width = masks[image_id].shape
            if isinstance(outline, list):
                outline = coco_mask.merge(coco_mask.frPyObjects(outline, height, width))
            inside = coco_mask.decode(outline).astype(bool) & free[image_id]
            category = annotation["category_id"]
            masks[image_id][inside] = category if name.startswith("lvis") else table[category]
            free[image_id] &= ~inside
    return masks


def test_every_mask_equals_whole_mask_arithmetic(
    places: dict[int, tuple[SegmentationDataset, int]], recomputed: dict[int, np.ndarray]
) -> None:
    for image_id, (dataset, index) in places.items():
        np.testing.assert_array_equal(dataset.class_mask(index), recomputed[image_id], err_msg=str(image_id))


def test_the_statistics_are_those_of_the_recomputed_masks(
    result: BootstrapResult,
    places: dict[int, tuple[SegmentationDataset, int]],
    recomputed: dict[int, np.ndarray],
) -> None:
    for split, counts in result.counts.items():
        chosen = [recomputed[i] for i, (dataset, _) in places.items() if dataset.split == split]
        pixels = sum(np.bincount(mask.ravel(), minlength=1285) for mask in chosen)
        images = Counter(int(class_id) for mask in chosen for class_id in np.unique(mask) if class_id)
        np.testing.assert_array_equal(counts.pixels, pixels)
        assert {i: int(n) for i, n in enumerate(counts.images) if n} == images


def test_the_known_numbers_of_the_mini_dataset(result: BootstrapResult) -> None:
    """Written down on 2026-11-23, each also counted anew below or above by other means."""
    told = json.loads((result.out / "statistics.json").read_text())
    splits = told["splits"]
    assert {name: split["images"] for name, split in splits.items()} == {"train": 73, "holdout": 8, "val": 46}
    assert {name: split["pixels_from"] for name, split in splits.items()} == {
        "train": {"things": 3_322_145, "stuff": 1_417_070, "nothing": 14_478_507},
        "holdout": {"things": 338_499, "stuff": 0, "nothing": 1_733_261},
        "val": {"things": 2_052_675, "stuff": 952_860, "nothing": 9_573_835},
    }
    assert splits["train"]["pixels"] == 19_217_722
    assert splits["train"]["coverage"] == pytest.approx(0.24661, abs=1e-5)
    groups = {name: (group["classes"], group["seen"]) for name, group in splits["train"]["groups"].items()}
    assert groups == {"f": (405, 149), "c": (461, 11), "r": (337, 2), "stuff": (81, 30)}
    assert len(told["classes_never_seen"]["train"]) == 1284 - 149 - 11 - 2 - 30


def test_the_pixels_by_source_are_those_of_the_united_lvis_annotations(
    result: BootstrapResult, places: dict[int, tuple[SegmentationDataset, int]]
) -> None:
    """Things cover stuff, so what LVIS draws is the union of its annotations, whatever their order."""
    united: Counter[str] = Counter()
    for name in ("lvis_v1_train", "lvis_v1_val"):
        tree = annotations(name)
        sizes = {image["id"]: (image["height"], image["width"]) for image in tree["images"]}
        outlines: dict[int, list[Any]] = {}
        for annotation in tree["annotations"]:
            outline = annotation["segmentation"]
            if isinstance(outline, list):
                encoded = coco_mask.frPyObjects(outline, *sizes[annotation["image_id"]])
            else:
                encoded = [outline]
            outlines.setdefault(annotation["image_id"], []).extend(encoded)
        for image_id, encoded in outlines.items():
            united[places[image_id][0].split] += int(coco_mask.area(coco_mask.merge(encoded)))
    told = json.loads((result.out / "statistics.json").read_text())["splits"]
    assert {name: split["pixels_from"]["things"] for name, split in told.items()} == united


def test_polygons_lie_where_pillow_draws_them(
    places: dict[int, tuple[SegmentationDataset, int]],
) -> None:
    """Without pycocotools: the first LVIS annotation of an image keeps its inside but for the border."""
    tree, seen, checked = annotations("lvis_v1_val"), set(), 0
    for annotation in tree["annotations"]:
        image_id, outline = annotation["image_id"], annotation["segmentation"]
        if image_id in seen or not isinstance(outline, list):
            continue
        seen.add(image_id)
        first = next(a for a in tree["annotations"] if a["image_id"] == image_id)
        if first is not annotation:
            continue
        dataset, index = places[image_id]
        mask = dataset.class_mask(index)
        drawn = Image.new("1", mask.shape[::-1])
        border = Image.new("1", mask.shape[::-1])
        for polygon in outline:
            ImageDraw.Draw(drawn).polygon(polygon, fill=1)
            ImageDraw.Draw(border).line([*polygon, *polygon[:2]], fill=1, width=5)
        inside = np.asarray(drawn) & ~np.asarray(border)
        assert (mask[inside] == annotation["category_id"]).all(), image_id
        checked += int(inside.sum() > 100)
    assert checked >= 10


def test_checking_finds_no_fault_and_the_images_without_annotations() -> None:
    result = check(ROOT)
    assert result.faults == []
    kinds = Counter(fault.kind for fault in result.found)
    assert kinds["an image without annotations"] == 5
    gray = [fault.file for fault in result.found if fault.kind == "an image that is not RGB"]
    assert f"val2017/{GREY:012d}.jpg" in gray
    assert {split: counts["images"] for split, counts in result.splits.items()} == {"train": 84, "val": 48}
