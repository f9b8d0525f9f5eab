"""Give a checkpoint other classes: rows of its table added, removed or renamed, everything else as it was.

Nothing is trained. The optimizer's state is left out, because it belongs to the old table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from models.segmenter import CLASS_ROWS
from pipeline.checkpoint.format import Checkpoint
from pipeline.data.labels.label_space import ClassEntry, LabelSpace
from pipeline.inference.predictor import find_classes
from pipeline.runtime.errors import UsageError


def remove_classes(checkpoint: Checkpoint, classes: Iterable[str | int]) -> Checkpoint:
    """Remove classes; the others keep their order and are numbered anew, from 1.

    Raises:
        UsageError: an unknown class, or all of them.
    """
    old = checkpoint.label_space
    gone = set(find_classes(old, classes))
    kept = [entry.class_id for entry in old.classes if entry.class_id not in gone]
    if not kept:
        raise UsageError("no class would be left", found=f"{len(gone)} of {old.num_classes} removed")
    rows = torch.tensor(kept) - 1
    names = [entry.name for entry in old.classes if entry.class_id in gone]
    return _with_tables(checkpoint, old.of_ids(kept), lambda _, table: table[rows], {"removed": names})


def rename_class(checkpoint: Checkpoint, old: str | int, new: str) -> Checkpoint:
    """Give a class another name; its number and its row stay.

    Raises:
        UsageError: an unknown class, or a name that another class bears.
    """
    found = find_classes(checkpoint.label_space, [old])
    if len(found) > 1:
        raise UsageError("several classes bear this name", found=old, hint=f"name one by its id: {found}")
    check_new_name(checkpoint.label_space, new)
    classes = [
        dataclasses.replace(entry, name=new) if entry.class_id == found[0] else entry
        for entry in checkpoint.label_space.classes
    ]
    space = dataclasses.replace(checkpoint.label_space, classes=tuple(classes))
    change = {"renamed": {checkpoint.label_space.classes[found[0] - 1].name: new}}
    return _with_tables(checkpoint, space, lambda _, table: table, change)


def add_class(
    checkpoint: Checkpoint, name: str, rows: dict[str, Tensor], *, about: dict[str, Any]
) -> Checkpoint:
    """Add a class as the last one.

    Args:
        checkpoint: to which it is added.
        name: of the class.
        rows: the new row of each table of the head by the table's name, (D,), (K, 1, 1) or ().
        about: where the rows came from, kept in the checkpoint.

    Raises:
        UsageError: a name that another class bears.
    """
    check_new_name(checkpoint.label_space, name)
    old = checkpoint.label_space.classes
    entry = ClassEntry(len(old) + 1, name, "added", "r", {})
    space = dataclasses.replace(checkpoint.label_space, classes=(*old, entry))

    def extended(table_name: str, table: Tensor) -> Tensor:
        return torch.cat([table, rows[table_name][None].to(table.dtype)])

    return _with_tables(checkpoint, space, extended, {"added": {name: about}})


def check_new_name(label_space: LabelSpace, name: str) -> None:
    """Refuse a name that a class bears, or that could not be searched for."""
    if name in label_space.names:
        raise UsageError("a class of this name exists", found=name, allowed="a new name")
    if not name.strip() or "," in name or name.strip().isdecimal():
        raise UsageError(
            "not a name for a class", found=repr(name), allowed="a word without commas, not a number"
        )


def _with_tables(
    checkpoint: Checkpoint,
    label_space: LabelSpace,
    change: Callable[[str, Tensor], Tensor],
    record: dict[str, Any],
) -> Checkpoint:
    def changed(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: change(name, tensor) if name in CLASS_ROWS else tensor for name, tensor in state.items()
        }

    changes = [*checkpoint.progress.get("class_changes", []), record]
    return dataclasses.replace(
        checkpoint,
        arguments=dataclasses.replace(checkpoint.arguments, num_classes=label_space.num_classes),
        label_space=label_space,
        progress={**checkpoint.progress, "class_changes": changes},
        model=changed(checkpoint.model),
        optimizer={},
        average=changed(checkpoint.average),
    )
