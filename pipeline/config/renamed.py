"""Accept settings under their old names for one release."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pipeline.runtime.errors import UsageError

RENAMED = {  # old key: new key, of the same section
    "train.accumulate": "train.accumulation_steps",
    "train.backbone_rate_factor": "train.backbone_lr_multiplier",
}

Value = TypeVar("Value")
Rename = Callable[[str, str | Path | None], str]


def current_key(key: str, where: str | Path | None) -> str:
    """Return the present name of a dotted key that a user wrote; warn on stderr if it was renamed."""
    new = RENAMED.get(key, key)
    if new != key:
        text = f"warning: {where}: {key} is now called {new}; the old name works for this release only"
        print(text, file=sys.stderr, flush=True)
    return new


def current_keys(values: Mapping[str, Value]) -> dict[str, Value]:
    """Rename the dotted keys of a file that kiloseg wrote: silently, as nobody can do anything about it."""
    return {RENAMED.get(key, key): value for key, value in values.items()}


def current_names(section: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """Rename the keys of one section, as `current_keys` does, in a file that leaves out the section."""
    renamed = current_keys({f"{section}.{name}": value for name, value in values.items()})
    return {key.removeprefix(f"{section}."): value for key, value in renamed.items()}


def current_tree(tree: Mapping[str, Any], where: str | Path | None = None) -> dict[str, Any]:
    """Rename the keys of a tree of settings: its sections, variants, and the space and fixed part of `tune`.

    What has not the form of settings is left as it is, for the checks that come after.

    Args:
        tree: of a settings file, or of `Settings.model_dump`.
        where: the file that a user wrote, for the warnings; None is silent.

    Raises:
        UsageError: a setting stands there under both names.
    """
    rename: Rename = _silently if where is None else current_key
    renamed = _sections(tree, where, rename)
    if isinstance(variants := renamed.get("variants"), dict):
        renamed["variants"] = {
            name: _sections(changes, f"{where}: variants.{name}", rename)
            for name, changes in variants.items()
        }
    if isinstance(tune := renamed.get("tune"), dict):
        renamed["tune"] = tune = dict(tune)
        for part in ("space", "fixed"):
            if isinstance(tune.get(part), dict):
                tune[part] = _renamed(tune[part], f"{where}: tune.{part}", rename)
    return renamed


def _sections(tree: Any, where: str | Path | None, rename: Rename) -> Any:
    if not isinstance(tree, Mapping):
        return tree
    sections = dict(tree)
    for section in {key.partition(".")[0] for key in RENAMED} & sections.keys():
        if isinstance(sections[section], dict):
            sections[section] = _renamed(sections[section], where, rename, prefix=f"{section}.")
    return sections


def _renamed(
    values: Mapping[Any, Any], where: str | Path | None, rename: Rename, prefix: str = ""
) -> dict[Any, Any]:
    keys = {name: f"{prefix}{name}" for name in values}
    for old, new in RENAMED.items():
        if {old, new} <= set(keys.values()):
            raise UsageError(
                "a setting is named twice",
                where=where,
                found=f"{old} and {new}",
                allowed=new,
                hint=f"remove {old}, the old name",
            )
    return {
        rename(keys[name], where).removeprefix(prefix) if keys[name] in RENAMED else name: value
        for name, value in values.items()
    }


def _silently(key: str, where: str | Path | None) -> str:
    return RENAMED.get(key, key)
