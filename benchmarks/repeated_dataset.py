"""A dataset of any size in the official layout: a small real one, repeated under new ids.

The photographs are not copied: every repetition's `coco_url` names the same files. Written piece by piece, so
that a file of gigabytes takes no memory to make.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

NAMES = ("lvis_v1_train", "lvis_v1_val", "stuff_train2017", "stuff_val2017")
STEP = 1_000_000
"""Between the ids of an image and of its next repetition; COCO's are smaller."""


def repeat(source: Path, root: Path, num_images: int) -> int:
    """Write at least `num_images` images, all of `source` equally often, and return the number."""
    trees = _start(source, root)
    times = -(-num_images // sum(len(trees[name]["images"]) for name in NAMES[:2]))
    for name, tree in trees.items():
        images = (_again(row, turn) for turn in range(times) for row in tree["images"])
        annotations = (
            row | {"image_id": row["image_id"] + turn * STEP}
            for turn in range(times)
            for row in tree["annotations"]
        )
        _write(root / "annotations" / f"{name}.json", tree["categories"], images, annotations)
    return times * sum(len(trees[name]["images"]) for name in NAMES[:2])


def full_size(source: Path, root: Path, num_images: int, num_annotations: int) -> int:
    """Write an LVIS train file of exactly these numbers, the other files as they are; return its bytes.

    The annotations of all of LVIS in `source` go round and round over the images, each onto one of its size.
    """
    trees = _start(source, root)
    for name in NAMES[1:]:
        tree = trees[name]
        _write(root / "annotations" / f"{name}.json", tree["categories"], tree["images"], tree["annotations"])
    tree = trees["lvis_v1_train"]
    by_image = defaultdict(list)
    for row in tree["annotations"]:
        by_image[row["image_id"]].append(row)
    shown = [row for row in tree["images"] if by_image[row["id"]]]
    images = [_again(shown[i % len(shown)], 1 + i // len(shown)) for i in range(num_images)]
    path = root / "annotations" / "lvis_v1_train.json"
    _write(path, tree["categories"], images, _spread(images, by_image, num_annotations))
    return path.stat().st_size


def _spread(images: list[Any], by_image: dict[int, list[Any]], number: int) -> Iterator[Any]:
    """Yield `number` annotations, of each image its own over and over, shared out evenly."""
    least, more = divmod(number, len(images))
    for place, image in enumerate(images):
        own = itertools.cycle(by_image[image["id"] % STEP])
        for row in itertools.islice(own, least + (place < more)):
            yield row | {"image_id": image["id"]}


def _start(source: Path, root: Path) -> dict[str, Any]:
    (root / "annotations").mkdir(parents=True)
    for folder in ("train2017", "val2017"):
        (root / folder).symlink_to((source / folder).resolve())
    return {name: json.loads((source / "annotations" / f"{name}.json").read_text()) for name in NAMES}


def _again(image: dict[str, Any], turn: int) -> dict[str, Any]:
    return image | {"id": image["id"] + turn * STEP}


def _write(path: Path, categories: list[Any], images: Iterable[Any], annotations: Iterable[Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(f'{{"categories": {json.dumps(categories)}, "images": [')
        file.writelines(_separated(images))
        file.write('], "annotations": [')
        file.writelines(_separated(row | {"id": place} for place, row in enumerate(annotations, start=1)))
        file.write("]}")


def _separated(rows: Iterable[Any]) -> Iterator[str]:
    for place, row in enumerate(rows):
        yield ("," if place else "") + json.dumps(row)
