"""Keep a sweep's settings so that a copied or moved project goes on with its own data, sweeps and store.

On disk the paths inside the project are relative to it, and the project is relative to the sweep's folder if
that lies inside. Sweeps of earlier versions have absolute paths, read for the place where they are now.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PATHS = (("file",), ("data", "root"), ("model", "weights"), ("tune", "folder"))
"""Places of the settings that hold a path, besides the project itself."""


def to_disk(tree: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return settings with absolute paths as they are kept in the sweep's `folder`."""
    stored, project = copy.deepcopy(dict(tree)), Path(tree["project"])
    for keys in PATHS:
        _change(
            stored, keys, lambda path: path.relative_to(project) if path.is_relative_to(project) else path
        )
    if folder.is_relative_to(project):
        stored["project"] = os.path.relpath(project, folder)
    return stored


def from_disk(stored: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return settings with absolute paths, from those kept in the sweep's `folder`."""
    tree, project = copy.deepcopy(dict(stored)), Path(stored["project"])
    if project.is_absolute():
        tree = at_project(tree, _place_now(stored, folder) or project)
    else:
        project = Path(os.path.normpath(folder / project))
        tree["project"] = str(project)
        for keys in PATHS:
            _change(tree, keys, lambda path: project / path)
    tree["tune"]["folder"] = str(folder.parent)
    return tree


def at_project(tree: Mapping[str, Any], project: Path) -> dict[str, Any]:
    """Return settings with absolute paths, those inside their project moved to another one."""
    moved, old = copy.deepcopy(dict(tree)), Path(tree["project"])
    moved["project"] = str(project)
    for keys in PATHS:
        _change(
            moved, keys, lambda path: project / (path.relative_to(old) if path.is_relative_to(old) else path)
        )
    return moved


def _place_now(stored: Mapping[str, Any], folder: Path) -> Path | None:
    """Return where the project lies by the place of the sweep's folder; None where that lies outside."""
    old, sweeps = Path(stored["project"]), Path(stored["tune"]["folder"])
    if not sweeps.is_relative_to(old):
        return None
    below = sweeps.relative_to(old)
    project = Path(*folder.parent.parts[: len(folder.parent.parts) - len(below.parts)])
    return project if project / below == folder.parent else None


def _change(tree: dict[str, Any], keys: tuple[str, ...], change: Any) -> None:
    for key in keys[:-1]:
        tree = tree.get(key) or {}
    if tree.get(keys[-1]) is not None:
        tree[keys[-1]] = str(change(Path(tree[keys[-1]])))
