"""Count what is in a bootstrapped dataset: a table of the classes, and JSON with the sums over them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.data.labels.label_space import LabelSpace
from pipeline.data.store.manifest import SPLITS, SplitCounts
from pipeline.runtime.files import csv_text

FORMAT = "kiloseg statistics 1"


def label_space_table(label_space: LabelSpace) -> str:
    """Return CSV with one line a class: the category ids of each source in a column, several by blanks."""
    sources = label_space.sources
    rows = []
    for entry in label_space.classes:
        ids = (" ".join(map(str, entry.category_ids.get(source, ()))) for source in sources)
        rows.append([entry.class_id, entry.name, entry.source, entry.frequency, *ids])
    columns = [f"{source}_category_ids" for source in sources]
    return csv_text(["class_id", "name", "source", "frequency", *columns], rows)


def class_table(label_space: LabelSpace, counts: Mapping[str, SplitCounts]) -> str:
    """Return CSV with one line a class: its images and pixels in each split."""
    columns = [f"{split}_{unit}" for split in SPLITS for unit in ("images", "pixels")]
    by_class = zip(
        *(a[1:].tolist() for s in SPLITS for a in (counts[s].images, counts[s].pixels)), strict=True
    )
    rows = [
        [entry.class_id, entry.name, entry.source, entry.frequency, *values]
        for entry, values in zip(label_space.classes, by_class, strict=True)
    ]
    return csv_text(["class_id", "name", "source", "frequency", *columns], rows)


def statistics(label_space: LabelSpace, counts: Mapping[str, SplitCounts]) -> dict[str, Any]:
    """Return the counts as plain types.

    Returns:
        splits: for each the images, the pixels, the share of them that is labeled (coverage), the pixels
            drawn from each kind of annotation, and for each frequency group the classes, those seen, and the
            pixels;
        classes_never_seen: names of the classes without a pixel in each split, and in all of them;
        classes: images and pixels of each class by split.
    """
    never = {
        split: [entry.name for entry in label_space.classes if not counts[split].images[entry.class_id]]
        for split in SPLITS
    }
    everywhere = [
        entry.name
        for entry in label_space.classes
        if not any(counts[split].images[entry.class_id] for split in SPLITS)
    ]
    return {
        "format": FORMAT,
        "splits": {split: _of_split(label_space, counts[split]) for split in SPLITS},
        "classes_never_seen": {**never, "all": everywhere},
        "classes": [
            {
                "class_id": entry.class_id,
                "name": entry.name,
                "images": {split: int(counts[split].images[entry.class_id]) for split in SPLITS},
                "pixels": {split: int(counts[split].pixels[entry.class_id]) for split in SPLITS},
            }
            for entry in label_space.classes
        ],
    }


def _of_split(label_space: LabelSpace, counts: SplitCounts) -> dict[str, Any]:
    groups: dict[str, dict[str, int]] = {}
    for entry in label_space.classes:
        group = groups.setdefault(entry.frequency, {"classes": 0, "seen": 0, "pixels": 0})
        group["classes"] += 1
        group["seen"] += int(counts.images[entry.class_id] > 0)
        group["pixels"] += int(counts.pixels[entry.class_id])
    pixels = int(counts.pixels.sum())
    return {
        "images": counts.num_images,
        "pixels": pixels,
        "coverage": counts.labeled_pixels / pixels if pixels else None,
        "pixels_from": {
            "things": counts.labeled_pixels - counts.stuff_pixels,
            "stuff": counts.stuff_pixels,
            "nothing": int(counts.pixels[0]),
        },
        "groups": groups,
    }


def as_json(tree: Mapping[str, Any]) -> str:
    """Return the statistics as JSON with one line a class, for people."""
    head = json.dumps({key: value for key, value in tree.items() if key != "classes"}, indent=1)
    classes = ",\n".join(f"  {json.dumps(row)}" for row in tree["classes"])
    return f'{head.removesuffix("}").rstrip()},\n "classes": [\n{classes}\n ]\n}}\n'
