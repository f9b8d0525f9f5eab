"""Miniature sets in the official form of each dataset, made of random values, with the truth beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

SIZE = (24, 32)
"""height, width; the first image of each set is one row taller"""

Truth = dict[str, np.ndarray]
"""image path relative to the root -> (H, W) final class index, -1 for ignored"""


def values_from(allowed: list[int], seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W) uint8: patches of 4 x 4 pixels with allowed values, different ones as long as there are."""
    rng = np.random.default_rng(seed)
    rows, columns = -(-size[0] // 4), size[1] // 4
    patches = np.resize(rng.permutation(np.array(allowed, np.uint8)), (rows, columns))
    return patches.repeat(4, 0).repeat(4, 1)[: size[0]]


def picture(path: Path, values: np.ndarray) -> None:
    """An image whose colors follow from the values, so that something can be learned from it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colors = np.stack([values * np.uint8(factor) for factor in (37, 91, 151)], -1)  # wraps
    Image.fromarray(colors).save(path)


def png(path: Path, values: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette:
        image.putpalette(np.arange(768) % 256)
    image.save(path)


CITY_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


def cityscapes(root: Path, kind: str = "labelIds") -> Truth:
    """Two cities of train and one of val, as the two archives unpack."""
    truth, table = {}, np.full(256, -1)
    table[CITY_IDS if kind == "labelIds" else range(19)] = range(19)
    allowed = list(range(34)) if kind == "labelIds" else [*range(19), 255]
    places = [("train", "aachen", 3), ("train", "zurich", 2), ("val", "lindau", 2)]
    for number, (split, city, images) in enumerate(places):
        for index in range(images):
            values = values_from(allowed, 10 * number + index, (SIZE[0] + (index == 0), SIZE[1]))
            name = f"{city}_{index:06d}_000019"
            image = f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png"
            picture(root / image, values)
            folder = root / "gtFine" / split / city
            png(folder / f"{name}_gtFine_{kind}.png", values)
            png(folder / f"{name}_gtFine_instanceIds.png", values.astype(np.uint16) * 1000)
            (folder / f"{name}_gtFine_polygons.json").write_text("{}")
            truth[image] = table[values]
    return truth


def voc(root: Path, augmented: bool = False) -> Truth:
    """Four images of train, two of val; of SBD's four images one is in VOC's val and one in its train."""
    base, truth = root / "VOCdevkit" / "VOC2012", {}
    table = np.append(np.arange(255), -1)
    names = {"train": [f"2007_{i:06d}" for i in range(4)], "val": [f"2007_{i:06d}" for i in range(10, 12)]}
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, of_split in {**names, "trainval": names["train"] + names["val"]}.items():
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in of_split))
    for seed, name in enumerate(names["train"] + names["val"]):
        values = values_from([*range(21), 255], seed)
        picture(base / "JPEGImages" / f"{name}.jpg", values)
        png(base / "SegmentationClass" / f"{name}.png", values, palette=True)
        truth[f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg"] = table[values]
    if augmented:
        dataset = root / "benchmark_RELEASE" / "dataset"
        of_sbd = {"train": ["2007_000000", "2007_000010", "2008_000002"], "val": ["2008_000003"]}
        for split, of_split in of_sbd.items():
            dataset.mkdir(parents=True, exist_ok=True)
            (dataset / f"{split}.txt").write_text("".join(f"{name}\n" for name in of_split))
            for name in of_split:
                values = values_from(list(range(21)), int(name[5:]))
                picture(dataset / "img" / f"{name}.jpg", values)
                sbd_file(dataset / "cls" / f"{name}.mat", values)
                if name.startswith("2008"):
                    truth[f"benchmark_RELEASE/dataset/img/{name}.jpg"] = table[values]
    return truth


def sbd_file(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    boundaries, present = np.zeros((20, 1), object), np.unique(values[values > 0])
    savemat(path, {"GTcls": {"Boundaries": boundaries, "Segmentation": values, "CategoriesPresent": present}})


def ade20k(root: Path) -> Truth:
    """Four images of training and two of validation, whose numbers overlap."""
    base, truth = root / "ADEChallengeData2016", {}
    for folder, split, number in (("training", "train", 4), ("validation", "val", 2)):
        for index in range(1, number + 1):
            values = values_from(list(range(151)), index, (SIZE[0] + (index == 1), SIZE[1]))
            name = f"ADE_{split}_{index:08d}"
            picture(base / "images" / folder / f"{name}.jpg", values)
            png(base / "annotations" / folder / f"{name}.png", values)
            truth[f"ADEChallengeData2016/images/{folder}/{name}.jpg"] = values.astype(int) - 1
    return truth


WITHOUT_PIXELS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)


def cocostuff10k(root: Path, classes: int = 171) -> Truth:
    """Four images of train and two of test, with Matlab's maps."""
    populated = [value for value in range(1, 183) if value not in WITHOUT_PIXELS]
    table = np.full(256, -1)
    order = populated if classes == 171 else list(range(1, 183))
    table[order] = range(len(order))
    truth = {}
    for split, numbers in (("train", range(1, 5)), ("test", range(95, 97))):
        names = [f"COCO_train2014_{number:012d}" for number in numbers]
        (root / "imageLists").mkdir(parents=True, exist_ok=True)
        (root / "imageLists" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for number, name in zip(numbers, names, strict=True):
            values = values_from([0, *populated], number)
            picture(root / "images" / f"{name}.jpg", values)
            cocostuff_file(root / "annotations" / f"{name}.mat", values)
            truth[f"images/{name}.jpg"] = table[values]
    return truth


def cocostuff_file(path: Path, values: np.ndarray, names: int = 182) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = np.empty((names, 1), object)
    cells[:, 0] = [f"name {number}" for number in range(names)]
    savemat(path, {"S": values, "names": cells, "captions": np.zeros((1, 1), object)})


MAKERS: dict[str, Callable[[Path], Truth]] = {
    "cityscapes": cityscapes,
    "voc": voc,
    "ade20k": ade20k,
    "cocostuff10k": cocostuff10k,
}
