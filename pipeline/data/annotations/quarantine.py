"""Record what `pipeline data check --quarantine` found unusable; bootstrapping leaves it out by name.

    annotations/quarantine.json
        files     for each annotation file its digest, and the places of its bad rows with what is wrong
        images    for each image that cannot be used as a whole: its id and what is wrong

Rows are named by their place, since their id may be what is wrong. The digest ties the places to one version
of the file; another version is refused, because its rows at these places may be sound.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.data.annotations.validation import NOTHING, Rows
from pipeline.runtime.errors import DataError
from pipeline.runtime.files import file_digest, write_json

FORMAT = "kiloseg quarantine 1"
AGAIN = "check again: pipeline data check ROOT --quarantine"


@dataclass(frozen=True)
class Quarantine:
    """Rows and images to leave out.

    Args:
        digests: file name -> SHA-256 of the annotation file that the places belong to.
        rows: file name -> list -> place -> what is wrong.
        images: image id -> what is wrong.
    """

    digests: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, Mapping[str, Mapping[int, str]]] = field(default_factory=dict)
    images: Mapping[int, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.rows or self.images)

    def rows_of(self, path: Path) -> Rows:
        """Return the places to leave out of an annotation file.

        Raises:
            DataError: the file is not the one that was checked.
        """
        rows = self.rows.get(path.name)
        if not rows or not path.is_file():
            return NOTHING
        if file_digest(path) != self.digests.get(path.name):
            raise DataError(
                "a quarantine of another version of the file",
                where=path,
                found="its content has changed since it was checked",
                hint=AGAIN + ", or remove quarantine.json",
            )
        return {key: places.keys() for key, places in rows.items()}

    def describe(self) -> dict[str, Any]:
        """Return the number of rows left out of each file, and of images, for the manifest."""
        return {
            name: {key: len(places) for key, places in rows.items()} for name, rows in self.rows.items()
        } | {"images": len(self.images)}

    def save(self, root: Path) -> Path:
        """Write the file, or remove it where there is nothing to leave out."""
        path = _path(root)
        if not self:
            path.unlink(missing_ok=True)
            return path
        files = {
            name: {"sha256": self.digests[name]}
            | {
                key: {str(place): what for place, what in sorted(places.items())}
                for key, places in rows.items()
            }
            for name, rows in self.rows.items()
        }
        images = {str(image_id): what for image_id, what in sorted(self.images.items())}
        tree = {"format": FORMAT, "files": files, "images": images}
        write_json(path, tree, sort_keys=True)
        return path

    @classmethod
    def load(cls, root: Path) -> Quarantine:
        """Read what `save` wrote; an empty one where there is no file.

        Raises:
            DataError: damaged.
        """
        path = _path(root)
        if not path.is_file():
            return cls()
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            if tree["format"] != FORMAT:
                raise ValueError(f"format {tree['format']!r}")
            files = {str(name): dict(row) for name, row in tree["files"].items()}
            return cls(
                {name: str(row.pop("sha256")) for name, row in files.items()},
                {
                    name: {
                        key: {int(place): str(what) for place, what in places.items()}
                        for key, places in row.items()
                    }
                    for name, row in files.items()
                },
                {int(image_id): str(what) for image_id, what in tree["images"].items()},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError("an unreadable quarantine", where=path, found=error, hint=AGAIN) from error


def _path(root: Path) -> Path:
    return root / "annotations" / "quarantine.json"
