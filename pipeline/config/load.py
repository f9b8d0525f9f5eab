"""Read params.yaml into settings: apply overrides, check every key and value, make paths absolute.

Whatever is wrong ends in one error that names the file, the key, the value and what is allowed. Paths are
absolute because Ray and DVC change the working directory.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.config.paths import absolute_path
from pipeline.config.reading import check_values, read_yaml
from pipeline.config.renamed import current_key, current_tree
from pipeline.config.schema import NOT_IN_THE_FILE, SECTIONS, Settings
from pipeline.config.section import Section
from pipeline.config.seeds import is_reserved, repeat_of
from pipeline.runtime.errors import UsageError

_LONGEST_NAME = 100
_PLAIN_WORDS = {
    "a valid boolean": "true or false",
    "a valid string": "text, in quotes if it looks like a number",
}


def load_settings(
    path: Path | str = "params.yaml",
    *,
    variant: str | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Settings:
    """Read params.yaml into checked settings.

    Args:
        path: the file; relative paths in it are relative to its folder.
        variant: name under `variants` whose overrides apply, or None for the plain settings. With "-seed-N"
            behind it, its train.seed is N.
        overrides: further values by dotted key ("loss.num_negatives"), applied last.

    Raises:
        UsageError: missing or malformed file, unknown key, wrong type, value out of range, unknown variant.
    """
    path = Path(path).absolute()
    path = path.parent.resolve() / path.name  # the file itself may be a link, and the project lies here
    tree = _read_yaml(path)
    if variant is not None:
        variants = tree.get("variants") or {}
        base, seed = variant, None
        if isinstance(variants, dict) and variant not in variants:
            base, seed = repeat_of(variant) or (variant, None)
        if not isinstance(variants, dict) or base not in variants:
            raise UsageError(
                f"unknown variant {variant!r}",
                where=f"{path}: variants",
                allowed=", ".join(variants) or "none is defined",
                hint="name one of these, or add it under variants",
            )
        for name in variants:  # so that a mistake in any of them surfaces now
            _check(path, _with_variant(path, tree, name), name, path.parent)
        tree = _with_variant(path, tree, base)
        if seed is not None:
            _require_another_seed(path, _check(path, tree, base, path.parent), seed)
            _override(tree, "train.seed", seed, where=f"variant {variant}")
    for key, value in (overrides or {}).items():
        _override(tree, key, value, where=f"override {key}")
    return _check(path, tree, variant, path.parent)


def with_overrides(
    settings: Settings, overrides: Mapping[str, object], *, where: str = "override"
) -> Settings:
    """Return the settings with some values replaced by dotted key, checked as if they stood in the file.

    Raises:
        UsageError: unknown key, wrong type, value out of range.
    """
    tree = settings.model_dump(mode="json", exclude=set(NOT_IN_THE_FILE))
    for key, value in overrides.items():
        _override(tree, key, value, where=where)
    return _check(settings.file, tree, settings.variant, settings.project)


def variant_argument(arguments: list[str]) -> str:
    """Return the one argument of a stage that works on a variant.

    Raises:
        UsageError: none, or more than one.
    """
    if len(arguments) != 2:
        raise UsageError(
            "a stage works on one variant",
            found=f"{len(arguments) - 1} arguments",
            allowed="the name of one variant of params.yaml",
        )
    return arguments[1]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = read_yaml(path)
    except FileNotFoundError as error:
        raise UsageError(
            "no settings file",
            where=path,
            hint="run inside the project, or name the file with --params",
        ) from error
    if not isinstance(tree, dict):
        raise UsageError("the settings file holds no sections", where=path, allowed=", ".join(SECTIONS))
    variants = tree.get("variants")
    variants = variants if isinstance(variants, dict) else {}
    for name in variants:
        _check_variant_name(name, path, variants)
    return current_tree(tree, path)


def _require_another_seed(path: Path, settings: Settings, seed: int) -> None:
    if settings.train.seed == seed:
        raise UsageError(
            "a variant trained again with its own seed is the same training",
            where=f"{path}: seeds.values",
            found=f"{seed}, which is train.seed of {settings.variant}",
            allowed="other seeds: the variant's own training is counted with them",
        )


def _check_variant_name(name: str, path: Path, variants: Collection[str]) -> None:
    """Refuse a name that is no argument of a stage, no folder below checkpoints/, or no key of DVC's."""
    if not re.fullmatch(r"\w[\w-]*", name) or len(name.encode()) > _LONGEST_NAME:
        raise UsageError(
            "not a name for a variant",
            where=f"{path}: variants",
            found=repr(name),
            allowed=f"letters, digits, _ and -, at most {_LONGEST_NAME} bytes",
            hint="it names a folder, an argument of a stage and a key of DVC: choose another",
        )
    if is_reserved(name, variants):
        raise UsageError(
            "a variant's name that means seeds of another variant",
            where=f"{path}: variants",
            found=repr(name),
            hint="choose another, or list the seed under seeds.values",
        )


def _with_variant(path: Path, tree: dict[str, Any], variant: str) -> dict[str, Any]:
    merged = copy.deepcopy(tree)
    changes = merged["variants"][variant] or {}
    if not isinstance(changes, dict) or not all(isinstance(values, dict) for values in changes.values()):
        raise UsageError(
            "a variant must map sections to keys",
            where=f"{path}: variants.{variant}",
            found=changes,
            allowed="for example {loss: {name: knn}}",
        )
    for section, values in changes.items():
        for key, value in values.items():
            _override(merged, f"{section}.{key}", value, where=f"{path}: variants.{variant}")
    return merged


def _override(tree: dict[str, Any], key: str, value: object, where: str) -> None:
    check_values(value, where)
    section, dot, name = current_key(key, where).partition(".")
    if not dot or section not in ("data", "model", "loss", "train", "evaluate", "tracking", "runtime"):
        raise UsageError(
            "cannot override this key",
            where=where,
            found=key,
            allowed="SECTION.KEY with a section of data, model, loss, train, evaluate, tracking, runtime",
        )
    for part in (section, *name.split(".")[:-1]):
        if not isinstance(tree.get(part), dict):
            tree[part] = {}
        tree = tree[part]
    tree[name.rpartition(".")[2]] = value


def _check(path: Path, tree: dict[str, Any], variant: str | None, project: Path) -> Settings:
    for reserved in NOT_IN_THE_FILE:
        if reserved in tree:
            raise _unknown_key(path, reserved, list(SECTIONS))
    known = {
        **tree,
        "variants": {name: changes or {} for name, changes in (tree.get("variants") or {}).items()},
    }
    try:
        settings = Settings.model_validate({**known, "project": project, "file": path, "variant": variant})
    except ValidationError as error:
        raise _explain(path, error, known) from None
    return _absolute(settings)


def _absolute(settings: Settings) -> Settings:
    def resolve(value: Path) -> Path:
        return absolute_path(settings.project, value)

    data = settings.data.model_copy(update={"root": resolve(settings.data.root)})
    model = settings.model
    if model.weights is not None:
        model = model.model_copy(update={"weights": resolve(model.weights)})
    tune = settings.tune.model_copy(update={"folder": resolve(settings.tune.folder)})
    return settings.model_copy(update={"data": data, "model": model, "tune": tune})


def _explain(path: Path, error: ValidationError, tree: Mapping[str, Any]) -> UsageError:
    errors = error.errors(include_url=False)
    first = errors[0]
    location = _in_the_file(first, tree)
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        section = _section(location[:-1])
        return _unknown_key(path, key, list(section.model_fields if section else SECTIONS))
    if first["type"] == "missing":
        return UsageError("a setting is missing", where=f"{path}: {key}", hint="add it to the file")
    # a value of several kinds has an error for each
    kinds = [_allowed(one) for one in errors if _in_the_file(one, tree) == location]
    return UsageError(
        "a setting has a wrong value",
        where=f"{path}: {key}" if key else path,
        found=repr(first["input"]) if not isinstance(first["input"], dict) else "this combination",
        allowed=" or ".join(dict.fromkeys(kinds)),
        hint=_field_help(location),
    )


def _in_the_file(error: Any, tree: Any) -> list[str]:
    """Return where an error is in the file; pydantic's place may end with the kind of value that it tried."""
    found: list[str] = []
    for part in error["loc"]:
        there = part in tree if isinstance(tree, Mapping) else isinstance(part, int) and part < len(tree)
        if not there and error["type"] != "missing":
            break
        found.append(str(part))
        tree = tree[part] if there else {}
        tree = tree if isinstance(tree, Mapping | list) else {}
    return found


def _section(location: list[str]) -> type[Section] | None:
    """Return the section at a place in the tree, such as data or data.voc."""
    section: type[BaseModel] = Settings
    for name in location:
        field = section.model_fields.get(name)
        kind = None if field is None else field.annotation
        if not isinstance(kind, type) or not issubclass(kind, Section):
            return None
        section = kind
    return section if location and issubclass(section, Section) else None


def _allowed(error: Any) -> str:
    message = str(error["msg"])
    for opening in ("Input should be ", "Value error, "):
        message = message.removeprefix(opening)
    return _PLAIN_WORDS.get(message, message)


def _field_help(location: list[str]) -> str | None:
    for depth in range(len(location), 1, -1):  # an entry of a list has a place of its own below its key
        section = _section(location[: depth - 1])
        field = section.model_fields.get(location[depth - 1]) if section else None
        if field is not None:
            return None if field.description is None else f"{location[depth - 1]} is: {field.description}"
    return None


def _unknown_key(path: Path, key: str, allowed: list[str]) -> UsageError:
    close = difflib.get_close_matches(key.rpartition(".")[2], allowed, n=1)
    return UsageError(
        "unknown setting",
        where=f"{path}: {key}",
        found=key.rpartition(".")[2],
        allowed=", ".join(allowed),
        hint=f"did you mean {close[0]}?" if close else "remove it",
    )
