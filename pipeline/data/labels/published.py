"""Read the vendored class lists of published datasets: facts (ids, names), each file with its source."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from pipeline.data.labels.label_space import ClassEntry, LabelSpace


def published_classes(name: str, *, populated_only: bool = False) -> LabelSpace:
    """Return a published list of classes in the order of its ids.

    Args:
        name: of the list, which is also the source of its category ids: "cityscapes", "voc", "ade20k" or
            "cocostuff10k".
        populated_only: leave out the classes that never occur. Their ids are then unknown, not unlabeled.
    """
    text = resources.files(__package__).joinpath(f"{name}.json").read_text(encoding="utf-8")
    tree: dict[str, list[dict[str, Any]]] = json.loads(text)
    rows = [row for row in tree["categories"] if row.get("populated", True) or not populated_only]
    entries = [
        ClassEntry(class_id, row["name"], name, "f", {name: (row["id"],)})
        for class_id, row in enumerate(rows, start=1)
    ]
    return LabelSpace(tuple(entries), {name: tuple(row["id"] for row in tree["unlabeled"])})
