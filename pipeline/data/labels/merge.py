"""Merge the categories of LVIS and COCO-Stuff into one label space.

LVIS v1's categories keep their ids 1..1203. A stuff category of the same name takes the LVIS id, and the
other 81 follow in COCO's order as 1204..1284. The class id of an annotation is looked up once, in one table
per source. The reference renumbers its masks in place, one category after the other, so a pixel can be
renumbered twice (blanket 93 -> 110 -> 1217, which is desk-stuff).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.data.labels.label_space import LVIS, STUFF, UNLABELLED_STUFF, ClassEntry, LabelSpace


def merge_categories(
    lvis: Sequence[Mapping[str, Any]],
    stuff: Sequence[Mapping[str, Any]],
    merged_pairs: Mapping[int, int],
) -> LabelSpace:
    """Return the label space of LVIS and COCO-Stuff together.

    LVIS's categories are numbered in the order of their ids, which leaves 1..1203 as they are; then follow
    the stuff categories that merge with none, in the order of theirs.

    Args:
        lvis: the `categories` of an LVIS file: id, name, frequency.
        stuff: the `categories` of a COCO-Stuff file: id, name.
        merged_pairs: stuff category id -> LVIS category id. A pair counts where both are there and bear one
            name; in other lists the same ids may mean anything.

    Raises:
        UsageError: more classes than fit into 16-bit masks.
    """
    things = {category["id"]: category for category in lvis}
    stuff = sorted((c for c in stuff if c["id"] not in UNLABELLED_STUFF), key=lambda c: c["id"])
    merged: dict[int, tuple[int, ...]] = {}
    alone = []
    for category in stuff:
        partner = things.get(merged_pairs.get(category["id"], -1))
        if partner is None or partner["name"] != category["name"]:
            alone.append(category)
        else:
            merged[partner["id"]] = (category["id"],)
    entries = []
    for category_id in sorted(things):
        category = things[category_id]
        ids = {LVIS: (category_id,)} | ({STUFF: merged[category_id]} if category_id in merged else {})
        entries.append((category["name"], LVIS, category["frequency"], ids))
    entries += [(category["name"], STUFF, "stuff", {STUFF: (category["id"],)}) for category in alone]
    classes = tuple(ClassEntry(class_id, *entry) for class_id, entry in enumerate(entries, start=1))
    return LabelSpace(classes, {STUFF: UNLABELLED_STUFF})
