"""Generate the embedded dataset: a few hundred drawn scenes in the layout of COCO, LVIS v1 and COCO-Stuff.

So the very code that reads the real dataset reads this one, without a download. It has the real one's odd
corners too: all 1,203 + 92 categories of which most are never seen, rare classes with a handful of pictures,
LVIS-val images inside `train2017`, overlapping things, unlabeled pixels, an image without any annotation and
a gray one. Image ids start above COCO's, so that nobody takes a drawing for a photograph.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from pipeline.data.labels.official import official_categories
from pipeline.data.tiny.drawing import Drawing, Region, draw_scene
from pipeline.data.tiny.every_class import deal, draw_cells, fewest_pictures
from pipeline.runtime.errors import DataError

COMMONNESS = {"f": 1.0, "c": 0.4, "r": 0.12}
"""Relative chance that a thing is drawn, by its LVIS frequency: the long tail."""

_VERSION = 1  # raise it when the same parameters give other pictures
_FIRST_TRAIN_ID = 600_001
_FIRST_VAL_ID = 700_001
_GREY, _BARE = 4, 9  # positions in the train split: stored without color; nothing annotated
_OTHER = 183
_SMALLEST = 10  # visible pixels below which nobody would have annotated a thing
_INFO = {"description": "kiloseg's embedded dataset: drawn scenes", "version": str(_VERSION), "year": 2026}
_LICENSES = [{"id": 1, "name": "Apache License 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}]


@dataclass
class _Table:
    """The images and annotations of one JSON file in the making."""

    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)


def generate_tiny(
    root: Path,
    *,
    num_train: int = 360,
    num_val: int = 90,
    image_size: tuple[int, int] = (128, 96),
    seed: int = 0,
    every_class: bool = False,
) -> None:
    """Write the embedded dataset; a complete one is left as it is.

    The folder appears under its name only when it is whole. The same parameters give the same annotations,
    and with the same Pillow and NumPy the same bytes; image i does not depend on how many there are (but
    with `every_class`).

    Args:
        root: the folder to make: `train2017/`, `val2017/`, `annotations/` and `tiny.json` (the parameters).
        num_train: images in the LVIS train split, at least 12.
        num_val: images in the LVIS val split, at least 2; every second one lies in `train2017/`.
        image_size: width and height in pixels, at least 32; a quarter of the images stand upright.
        seed: another seed draws other scenes.
        every_class: instead of scenes draw pictures that show all 1,284 classes between them, all of them
            annotated; for benchmarks (`pipeline.data.tiny.every_class`).

    Raises:
        DataError: `root` holds something else than an embedded dataset.
        ValueError: a number out of range.
    """
    if num_train < 12 or num_val < 2 or min(image_size) < 32 or seed < 0:
        raise ValueError(
            f"tiny needs num_train >= 12, num_val >= 2, sides >= 32 and seed >= 0, "
            f"got {num_train}, {num_val}, {image_size}, {seed}"
        )
    least = fewest_pictures() if every_class else 0
    if min(num_train, num_val) < least:
        raise ValueError(f"every class needs {least} images in train and in val, got {num_train}, {num_val}")
    parameters: dict[str, Any] = {
        "version": _VERSION,
        "num_train": num_train,
        "num_val": num_val,
        "image_size": list(image_size),
        "seed": seed,
    }
    if every_class:
        parameters["every_class"] = True
    if _is_complete(root, parameters):
        return
    _refuse_foreign(root)
    partial = root.with_name(f".{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for folder in ("train2017", "val2017", "annotations"):
            (partial / folder).mkdir(parents=True)
        _write(partial, num_train, num_val, image_size, seed, every_class=every_class)
        (partial / "tiny.json").write_text(json.dumps(parameters, indent=1) + "\n", encoding="utf-8")
        if root.exists():
            shutil.rmtree(root)
        partial.rename(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_complete(root: Path, parameters: dict[str, Any]) -> bool:
    try:
        recorded = json.loads((root / "tiny.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    pictures = sum(1 for folder in ("train2017", "val2017") for _ in (root / folder).glob("*.jpg"))
    tables = sum(1 for _ in (root / "annotations").glob("*.json"))
    return (
        recorded == parameters and pictures == parameters["num_train"] + parameters["num_val"] and tables == 4
    )


def _refuse_foreign(root: Path) -> None:
    """Only an earlier embedded dataset or an empty folder may be replaced."""
    if root.is_dir() and ((root / "tiny.json").is_file() or not any(root.iterdir())):
        return
    if root.exists():
        raise DataError(
            "the embedded dataset would overwrite other data",
            where=root,
            found="files that are not the embedded dataset's (no tiny.json)",
            allowed="no such folder, an empty one, or an earlier embedded dataset",
            hint="choose another folder, or move these files away",
        )


def _write(
    root: Path,
    num_train: int,
    num_val: int,
    image_size: tuple[int, int],
    seed: int,
    *,
    every_class: bool,
) -> None:
    official = official_categories()
    lvis_ids = {row["name"]: row["id"] for row in official.lvis}
    stuff_ids = {row["name"]: row["id"] for row in official.stuff}
    commonness = {row["name"]: COMMONNESS[row["frequency"]] for row in official.lvis}
    tables: dict[str, _Table] = defaultdict(_Table)
    for split, first, count in (("train", _FIRST_TRAIN_ID, num_train), ("val", _FIRST_VAL_ID, num_val)):
        dealt = deal(count, np.random.default_rng([seed, first])) if every_class else []
        for index in range(count):
            image_id = first + index
            rng = np.random.default_rng([seed, image_id])
            width, height = image_size if rng.random() < 0.75 else image_size[::-1]
            if every_class:
                drawing = draw_cells(dealt[index], rng, width, height)
            else:
                drawing = draw_scene(rng, width, height, commonness)
            folder = "val2017" if split == "val" and index % 2 == 0 else "train2017"
            special = index if split == "train" and not every_class else None
            picture = Image.fromarray(drawing.image)
            picture = picture.convert("L") if special == _GREY else picture
            picture.save(root / folder / f"{image_id:012d}.jpg", quality=90)
            truth = _annotate(drawing, rng, lvis_ids, stuff_ids, complete=every_class)
            entry = {
                "id": image_id,
                "width": width,
                "height": height,
                "coco_url": f"http://images.cocodataset.org/{folder}/{image_id:012d}.jpg",
                "flickr_url": "",
                "license": 1,
                "date_captured": "2026-11-22 00:00:00",
            }
            absent = rng.choice(sorted(set(lvis_ids.values()) - truth.drawn), 3, replace=False)
            lvis_entry = {
                **entry,
                "neg_category_ids": sorted(int(category) for category in absent),
                "not_exhaustive_category_ids": sorted(truth.missed),
            }
            tables[f"lvis_v1_{split}"].images.append(lvis_entry)
            if special == _BARE:
                continue
            stuff = tables[f"stuff_{folder}"]
            stuff.images.append({**entry, "file_name": f"{image_id:012d}.jpg"})
            _number(tables[f"lvis_v1_{split}"], truth.things, image_id, {})
            _number(stuff, truth.stuff, image_id, {"iscrowd": 0})
    categories = _lvis_categories(official.lvis, tables["lvis_v1_train"].annotations)
    for name, table in tables.items():
        content = {
            "info": _INFO,
            "licenses": _LICENSES,
            "categories": categories if name.startswith("lvis") else official.stuff,
            "images": table.images,
            "annotations": table.annotations,
        }
        (root / "annotations" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


@dataclass
class _Truth:
    """Return the annotations of one image, and the LVIS ids drawn in it and left partly unannotated."""

    things: list[dict[str, Any]] = field(default_factory=list)
    stuff: list[dict[str, Any]] = field(default_factory=list)
    drawn: set[int] = field(default_factory=set)
    missed: set[int] = field(default_factory=set)


def _annotate(
    drawing: Drawing,
    rng: np.random.Generator,
    lvis_ids: dict[str, int],
    stuff_ids: dict[str, int],
    *,
    complete: bool = False,
) -> _Truth:
    """Annotate as people did: some things overlooked, some stuff left out, hidden parts drawn or not.

    In every second image the stuff goes on underneath the things, as COCO-Stuff's does under LVIS's; in the
    others it stops at them and `other` covers them. Things come front to back: the first keeps a pixel.
    """
    truth = _Truth()
    visible = np.bincount(drawing.owner.ravel() + 1, minlength=len(drawing.regions) + 1)[1:]
    beneath = rng.random() < 0.5
    is_thing = np.array([region.is_thing for region in drawing.regions] + [False])[drawing.owner]
    for index in reversed(range(len(drawing.regions))):
        region = drawing.regions[index]
        if not region.is_thing or visible[index] < _SMALLEST:
            continue
        category = lvis_ids[region.name]
        truth.drawn.add(category)
        if rng.random() < 0.05 and not complete:
            truth.missed.add(category)
            continue
        mask = drawing.owner == index
        outline = _outline(region, mask, rng)
        truth.things.append(_annotation(category, mask, outline))
    regions_of = defaultdict(list)
    for index, region in enumerate(drawing.regions):
        if not region.is_thing:
            regions_of[region.name].append(index)
    left_out = rng.random(len(regions_of)) < 0.06
    ground = drawing.ground if beneath else drawing.owner
    for (name, indices), skip in zip(sorted(regions_of.items()), left_out, strict=True):
        mask = np.isin(ground, indices)
        if (complete or not skip) and int(mask.sum()) >= _SMALLEST:
            truth.stuff.append(_annotation(stuff_ids[name], mask, None))
    if not beneath and is_thing.any():
        truth.stuff.append(_annotation(_OTHER, is_thing, None))
    return truth


def _outline(region: Region, mask: np.ndarray, rng: np.random.Generator) -> list[list[float]] | None:
    """Return the thing's polygons, or None for a mask: cut by the frame, or its hidden part left out."""
    corners = np.concatenate(region.polygons)
    inside = (corners >= 0).all() and (corners <= mask.shape[::-1]).all()
    full = coco_mask.decode(coco_mask.merge(_encode(region.polygons, mask.shape))).sum()
    hidden = mask.sum() < 0.85 * full
    if not inside or (hidden and rng.random() < 0.5):
        return None
    return [[float(value) for value in points.ravel()] for points in region.polygons]


def _encode(polygons: Iterable[np.ndarray], shape: tuple[int, ...]) -> Any:
    return coco_mask.frPyObjects([points.ravel().tolist() for points in polygons], shape[0], shape[1])


def _annotation(category: int, mask: np.ndarray, outline: list[list[float]] | None) -> dict[str, Any]:
    """Return one annotation: polygons where given, else the mask as COCO's compressed run lengths."""
    if outline is None:
        runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    else:
        runs = coco_mask.merge(coco_mask.frPyObjects(outline, *mask.shape))
    return {
        "category_id": category,
        "area": float(coco_mask.area(runs)),
        "bbox": [float(value) for value in coco_mask.toBbox(runs)],
        "segmentation": outline or {"size": list(mask.shape), "counts": runs["counts"].decode("ascii")},
    }


def _number(table: _Table, found: list[dict[str, Any]], image_id: int, extra: dict[str, int]) -> None:
    for annotation in found:
        table.annotations.append(
            {"id": len(table.annotations) + 1, "image_id": image_id, **annotation, **extra}
        )


def _lvis_categories(
    official: list[dict[str, Any]], annotations: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the official categories with this train split's own counts; the frequency stays LVIS's."""
    instances = Counter(annotation["category_id"] for annotation in annotations)
    images = Counter(
        category for category, _ in {(row["category_id"], row["image_id"]) for row in annotations}
    )
    return [
        {
            **row,
            "synonyms": [row["name"]],
            "def": "",
            "image_count": images[row["id"]],
            "instance_count": instances[row["id"]],
        }
        for row in official
    ]
