"""Read YAML as DVC does: version 1.2 by the same library, so that a stage and DVC see the same values.

1e-3 is a number, and yes is a word. A key that stands twice in a section is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pipeline.runtime.errors import UsageError


def parse_yaml(text: str, where: str | Path) -> object:
    """Return what a YAML text holds.

    Args:
        text: with or without a byte order mark.
        where: the file or option, for errors.

    Raises:
        UsageError: not YAML, a key that is no text, or text that no file name or database can hold.
    """
    try:
        tree: object = YAML(typ="safe").load(text.removeprefix("\ufeff"))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        raise _not_yaml(where, f"{error.problem or error.context}{place}") from error
    except (YAMLError, ValueError) as error:  # ValueError: a date or number that cannot be
        raise _not_yaml(where, str(error).partition("\n")[0]) from error
    except RecursionError as error:
        raise _not_yaml(where, "lists or sections within each other without end") from error
    check_values(tree, where)
    return tree


def read_yaml(path: Path) -> object:
    """Return what a YAML file holds.

    Raises:
        UsageError: as `parse_yaml`, or another encoding than UTF-8.
        OSError: it cannot be read.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise _not_yaml(path, f"{error}; it is not in UTF-8") from error


def check_values(tree: object, where: str | Path) -> None:
    """Refuse keys that are no text, text that cannot be a name anywhere, and anchors in a circle.

    Raises:
        UsageError: names the key.
    """
    _check(tree, where, "", ())


def _check(value: object, where: str | Path, key: str, above: tuple[int, ...]) -> None:
    place = f"{where}: {key}" if key else str(where)
    if isinstance(value, str) and not _is_writable(value):
        raise UsageError(
            "a value has characters that no name can have",
            where=place,
            found=ascii(value),
            allowed="text without NUL and without halves of characters (\\ud800 to \\udfff)",
            hint="write it anew",
        )
    if not isinstance(value, dict | list):
        return
    if id(value) in above:
        raise _not_yaml(place, "an anchor (&) that holds itself")
    items: Any = value.items() if isinstance(value, dict) else enumerate(value)
    for name, inner in items:
        if isinstance(value, dict) and not isinstance(name, str):
            raise UsageError(
                "a name must be text",
                where=place,
                found=f"{name!r}, of type {type(name).__name__}",
                allowed=f'in quotes: "{name}"',
                hint="put the name in quotes",
            )
        _check(inner, where, f"{key}.{name}" if key else str(name), (*above, id(value)))


def _is_writable(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _not_yaml(where: str | Path, found: str) -> UsageError:
    return UsageError("not valid YAML", where=where, found=found, hint="fix the line")
