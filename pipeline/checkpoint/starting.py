"""Start a training from a trained network: on other data, with other classes, or with both.

Backbone, decoder and head are taken as far as they are the same; the log says what is new. Of the classes,
those of the same name keep their rows, the others begin as in any training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.segmenter import CLASS_ROWS, Segmenter
from pipeline.checkpoint.format import load_checkpoint
from pipeline.data.labels.label_space import ClassEntry, LabelSpace
from pipeline.runtime.errors import UsageError

_PARTS = ("decoder", "head")
_LISTED = 200  # classes that the log names, at most


@dataclass(frozen=True)
class Start:
    """What a training took from a checkpoint.

    Attributes:
        path: of the checkpoint.
        step: of its training.
        parts: of the network that were taken, besides the classes' rows.
        changed: parts that begin anew, at least in part.
        kept: names of the classes whose rows were carried over.
        new: names of the others.
    """

    path: Path
    step: int
    parts: tuple[str, ...]
    changed: tuple[str, ...]
    kept: tuple[str, ...]
    new: tuple[str, ...]

    def __str__(self) -> str:
        """Return the line of the log; of kept and new classes it names the fewer."""
        text = f"weights: from step {self.step} of {self.path}: {', '.join(self.parts)}"
        if self.changed:
            text += f"; {' and '.join(self.changed)} begin anew"
        total = len(self.kept) + len(self.new)
        if not self.new:
            return f"{text}; all {total} classes keep their rows"
        if len(self.kept) <= len(self.new):
            named, rest = f"kept {_listed(self.kept)}", "the others are new"
        else:
            named, rest = f"new {_listed(self.new)}", "the others keep theirs"
        return f"{text}; {len(self.kept)} of {total} classes keep their rows: {named}; {rest}"


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint of kiloseg, of any version, rather than a backbone's weights."""
    try:
        with safe_open(path, framework="pt") as file:
            return "kiloseg" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def start_from(segmenter: Segmenter, label_space: LabelSpace, path: Path, *, backbone: str) -> Start:
    """Give a new network the weights of a checkpoint.

    Args:
        segmenter: is changed in place.
        label_space: of its classes.
        path: of the checkpoint.
        backbone: the network's, by name.

    Raises:
        DataError: a damaged checkpoint, or one of another version.
        UsageError: of another backbone.
    """
    trained = load_checkpoint(path)
    if trained.arguments.backbone != backbone:
        raise UsageError(
            "a checkpoint of another backbone",
            where=path,
            found=trained.arguments.backbone,
            allowed=backbone,
            hint=f"set model.backbone: {trained.arguments.backbone}, or model.weights to another file",
        )
    target = segmenter.state_dict()
    source = {**trained.model, **trained.average}
    taken = {
        name: value
        for name, value in source.items()
        if name not in CLASS_ROWS and name in target and target[name].shape == value.shape
    }
    if lacking := [name for name in target if name.startswith("backbone.") and name not in taken]:
        raise UsageError(
            "a checkpoint of another form of this backbone",
            where=path,
            found=f"{len(lacking)} of its tensors do not fit, {lacking[0]} first",
            hint="use the version of timm that it was trained with",
        )
    changed = [
        part
        for part in _PARTS
        if any(name.startswith(f"{part}.") and name not in taken for name in target if name not in CLASS_ROWS)
    ]
    rows = [] if "head" in changed else matching_classes(trained.label_space, label_space)
    tables = {name: _with_rows(target[name], source, name, rows) for name in CLASS_ROWS if name in target}
    if any(table is None for table in tables.values()):  # of another head or dimension
        rows, tables = [], {}
        changed = list(dict.fromkeys([*changed, "head"]))
    segmenter.load_state_dict({**target, **taken, **{k: v for k, v in tables.items() if v is not None}})
    kept = {new for new, _ in rows}
    names = label_space.names
    return Start(
        path,
        trained.step,
        tuple(part for part in ("backbone", *_PARTS) if part not in changed),
        tuple(changed),
        tuple(name for index, name in enumerate(names) if index in kept),
        tuple(name for index, name in enumerate(names) if index not in kept),
    )


def matching_classes(old: LabelSpace, new: LabelSpace) -> list[tuple[int, int]]:
    """Return (new train id, old train id) of the classes of the same name.

    Case does not count, and blanks stand for underscores. Where several old classes bear a name, the source
    decides, as between LVIS and COCO-Stuff; where it cannot, the class is new.
    """
    places: dict[str, list[int]] = {}
    for place, entry in enumerate(old.classes):
        places.setdefault(_plain(entry), []).append(place)
    found = []
    for index, entry in enumerate(new.classes):
        alike = places.get(_plain(entry), [])
        if len(alike) > 1:
            alike = [other for other in alike if old.classes[other].source == entry.source]
        if len(alike) == 1:
            found.append((index, alike[0]))
    return found


def _plain(entry: ClassEntry) -> str:
    return entry.name.strip().casefold().replace(" ", "_")


def _with_rows(
    table: Tensor, source: dict[str, Tensor], name: str, rows: Sequence[tuple[int, int]]
) -> Tensor | None:
    """Return the table with rows of the trained one, or None if theirs are of another length."""
    if name not in source or source[name].shape[1:] != table.shape[1:]:
        return None
    changed = table.clone()
    if rows:
        new, old = torch.tensor(rows).T
        changed[new.to(table.device)] = source[name][old].to(table)
    return changed


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    return (", ".join(names[:_LISTED]) or "none") + (f" and {more} more" if more > 0 else "")
