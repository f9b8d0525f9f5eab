"""List the classes that a pixel can have, and the categories of annotation files that they stand for.

A *category id* is a number in an annotation file, a *class id* (1..C, 0 = unlabeled) a number in our masks.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.runtime.errors import DataError, UsageError
from pipeline.runtime.files import write_text

FORMAT = "kiloseg label space 1"
MAX_CLASSES = 65_534
"""Masks are 16-bit; 0 is unlabeled and 65,535 stays free as a mark of other tools."""

LVIS, STUFF = "lvis", "stuff"
UNLABELLED_STUFF = (183, 255)
"""COCO-Stuff's "other", which stands for every thing, and the 255 that its pixel maps use for unlabeled."""


@dataclass(frozen=True)
class ClassEntry:
    """One class.

    Args:
        class_id: its number in the masks, 1..C.
        name: as in the source.
        source: the list that gave the class its name, "lvis" or "stuff".
        frequency: LVIS's r (rare), c (common) or f (frequent), or "stuff".
        category_ids: for each source the category ids whose pixels belong to the class.
    """

    class_id: int
    name: str
    source: str
    frequency: str
    category_ids: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class LabelSpace:
    """All classes in the order of their ids, and the categories that count as unlabeled.

    Args:
        classes: the entry of class id i at place i - 1, which is its train id.
        unlabeled: for each source the category ids whose pixels count as unlabeled.

    Raises:
        UsageError: no class, or more than fit into 16-bit masks.
    """

    classes: tuple[ClassEntry, ...]
    unlabeled: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) <= MAX_CLASSES:
            raise UsageError(
                "a label space of this size cannot be stored",
                found=f"{len(self.classes)} classes",
                allowed=f"1 to {MAX_CLASSES}, as the masks are 16-bit",
                hint="name the classes that you need in data.keep_classes",
            )
        ids = [entry.class_id for entry in self.classes]
        if ids != list(range(1, len(ids) + 1)):
            raise DataError("class ids must be 1, 2, 3, ... in order", found=f"{ids[:5]} ...")
        for source in self.sources:
            known = [category for entry in self.classes for category in entry.category_ids.get(source, ())]
            twice = [c for c, n in Counter([*known, *self.unlabeled.get(source, ())]).items() if n > 1]
            if twice:
                raise DataError(
                    "a category belongs to two classes", where=source, found=f"category {twice[0]}"
                )

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.classes)

    @property
    def names(self) -> list[str]:
        """Return the class names in the order of the train ids."""
        return [entry.name for entry in self.classes]

    @property
    def frequencies(self) -> list[str]:
        """Return r, c, f or stuff of each class, in the order of the train ids."""
        return [entry.frequency for entry in self.classes]

    @property
    def sources(self) -> list[str]:
        """Return the kinds of annotation files of the classes, in the order of first appearance."""
        of_classes = (source for entry in self.classes for source in entry.category_ids)
        return list(dict.fromkeys([*of_classes, *self.unlabeled]))

    def lookup(self, source: str) -> dict[int, int]:
        """Return the table category id -> class id of a source; 0 for unlabeled, no key for unknown ones."""
        table = dict.fromkeys(self.unlabeled.get(source, ()), 0)
        for entry in self.classes:
            table |= dict.fromkeys(entry.category_ids.get(source, ()), entry.class_id)
        return table

    def subset(self, keep: Iterable[str | int] | None) -> LabelSpace:
        """Return only the wanted classes, renumbered 1..C in their old order; the rest becomes unlabeled.

        Args:
            keep: names or class ids of this label space; None for all.

        Raises:
            UsageError: an unknown name or id, a name that several classes bear, or nothing to keep.
        """
        if keep is None:
            return self
        return self.of_ids({self._find(key) for key in keep})

    def of_ids(self, wanted: Collection[int]) -> LabelSpace:
        """Return only the classes with these ids, as `subset` does.

        Raises:
            UsageError: none of them is there.
        """
        kept = [entry for entry in self.classes if entry.class_id in wanted]
        unlabeled = {source: list(ids) for source, ids in self.unlabeled.items()}
        for entry in self.classes:
            if entry.class_id not in wanted:
                for source, ids in entry.category_ids.items():
                    unlabeled.setdefault(source, []).extend(ids)
        return LabelSpace(
            tuple(dataclasses.replace(entry, class_id=i) for i, entry in enumerate(kept, start=1)),
            {source: tuple(sorted(ids)) for source, ids in unlabeled.items()},
        )

    def with_frequencies(self, images: Sequence[int]) -> LabelSpace:
        """Return the same classes in LVIS's groups: rare in up to 10 images, common in up to 100.

        Args:
            images: of the classes, in the order of the train ids: the images for training that show each.
        """
        groups = ("r" if number <= 10 else "c" if number <= 100 else "f" for number in images)
        entries = zip(self.classes, groups, strict=True)
        return LabelSpace(
            tuple(dataclasses.replace(entry, frequency=group) for entry, group in entries), self.unlabeled
        )

    def _find(self, key: str | int) -> int:
        if isinstance(key, str):
            matches = [entry.class_id for entry in self.classes if entry.name == key]
        else:
            matches = [key] if not isinstance(key, bool) and 1 <= key <= self.num_classes else []
            named = [entry.class_id for entry in self.classes if entry.name == str(key)]
            if matches:
                self.require_clear(key, named, "data.keep_classes")
            matches = matches or named
        if len(matches) == 1:
            return matches[0]
        close = difflib.get_close_matches(str(key), self.names, n=3)
        hint = f"name one by its id: {matches}" if matches else f"did you mean {', '.join(close)}?"
        raise UsageError(
            "several classes bear this name" if matches else "no such class to keep",
            where="data.keep_classes",
            found=repr(key),
            allowed=f"class names, or class ids from 1 to {self.num_classes}",
            hint=hint if matches or close else "look them up in label_space.csv of the whole dataset",
        )

    def require_clear(self, number: int, named: Sequence[int], where: str) -> None:
        """Require that a number, which is a class's id, is not the name of another one.

        Args:
            number: of a class.
            named: ids of the classes that are named so.
            where: names the setting or option in the error.

        Raises:
            UsageError: it is.
        """
        if named and list(named) != [number]:
            raise UsageError(
                "a number that is one class's id and another one's name",
                where=where,
                found=f"{number}: class {named[0]} is named so; class {number} is named "
                f"{self.classes[number - 1].name!r}",
                hint=f'for the name, write quotes ("{number}" in params.yaml, \'"{number}"\' in a shell); '
                "for the id, write the name of that class",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for JSON; `from_dict` is its inverse."""
        return {
            "format": FORMAT,
            "num_classes": self.num_classes,
            "unlabelled": {source: list(ids) for source, ids in self.unlabeled.items()},
            "classes": [
                {
                    "class_id": entry.class_id,
                    "name": entry.name,
                    "source": entry.source,
                    "frequency": entry.frequency,
                    "category_ids": {source: list(ids) for source, ids in entry.category_ids.items()},
                }
                for entry in self.classes
            ],
        }

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any], *, where: str | Path | None = None) -> LabelSpace:
        """Rebuild what `to_dict` gave.

        Raises:
            DataError: another format, or damaged.
        """
        try:
            if tree["format"] != FORMAT:
                raise ValueError(f"format {tree['format']!r}")
            classes = tuple(
                ClassEntry(
                    int(row["class_id"]),
                    str(row["name"]),
                    str(row["source"]),
                    str(row["frequency"]),
                    {str(source): tuple(map(int, ids)) for source, ids in row["category_ids"].items()},
                )
                for row in tree["classes"]
            )
            unlabeled = {str(s): tuple(map(int, ids)) for s, ids in tree["unlabelled"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                "not a label space of this version of kiloseg",
                where=where,
                found=f"{type(error).__name__}: {error}",
                allowed=FORMAT,
                hint="make it again: pipeline data bootstrap ROOT OUT",
            ) from error
        return cls(classes, unlabeled)

    def save(self, path: Path) -> None:
        """Write JSON with one line a class."""
        tree = self.to_dict()
        classes = ",\n".join("  " + json.dumps(row) for row in tree.pop("classes"))
        head = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in tree.items())
        write_text(path, f'{{\n{head},\n "classes": [\n{classes}\n ]\n}}\n')

    @classmethod
    def load(cls, path: Path) -> LabelSpace:
        """Read what `save` wrote.

        Raises:
            DataError: missing, damaged or of another format.
        """
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                "no readable label space",
                where=path,
                found=error,
                hint="run pipeline data bootstrap ROOT OUT",
            ) from error
        return cls.from_dict(tree if isinstance(tree, dict) else {}, where=path)
