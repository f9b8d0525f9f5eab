"""Read the lists that say which class a pixel value or color means."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.annotations.schema import is_unicode
from pipeline.data.layouts.layout import LARGEST
from pipeline.runtime.errors import DataError

COLOR = re.compile(r"#?([0-9a-fA-F]{6})")
CSV = "a header value,name or color,name and one line a value (0 to 65,535) or color (#rrggbb)"
UTF8 = "save the list as CSV in UTF-8"


def read_classes(path: Path) -> tuple[list[tuple[int, str]], bool]:
    """Return values or colors (0xrrggbb) with their names, and whether they are colors.

    Spreadsheets put a byte order mark before the header and, in some countries, semicolons for commas.

    Raises:
        DataError: missing or damaged, or a value that is listed twice.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=head.count)
            rows = list(csv.DictReader(file, delimiter=delimiter))
    except (OSError, ValueError, csv.Error) as error:
        raise _problem(path, "no readable list of classes", error, UTF8) from error
    kind = "color" if rows and "color" in rows[0] else "value"
    if rows and not {kind, "name"} <= rows[0].keys():
        raise _problem(path, "a damaged list of classes", f"a header {head.strip()!r}")
    found, lines = [], list(range(2, 2 + len(rows)))
    for line, row in zip(lines, rows, strict=True):
        text, name = (row[kind] or "").strip(), (row["name"] or "").strip()
        if kind == "color" and (match := COLOR.fullmatch(text)):
            found.append((int(match[1], 16), name))
        elif kind == "value" and text.isascii() and text.isdigit() and int(text) <= LARGEST:
            found.append((int(text), name))
        else:
            shown = delimiter.join(map(str, row.values()))
            raise _problem(path, "a damaged list of classes", f"line {line}: {shown}")
    _require_once(path, found, lines, is_color=kind == "color")
    return found, kind == "color"


def read_labelmap(path: Path) -> list[tuple[int, str]]:
    """Colors and names of CVAT's `label:r,g,b:parts:actions`; its background is unlabeled.

    Raises:
        DataError: missing or damaged, or a color that is listed twice.
    """
    found, lines = [], []
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise _problem(path, "no readable list of classes", error, UTF8) from error
    for line, text in enumerate(content.splitlines(), start=1):
        if not text.strip() or text.startswith("#"):
            continue
        name, _, rest = text.rpartition(":")[0].rpartition(":")[0].rpartition(":")
        numbers = rest.split(",")
        if len(numbers) != 3 or not all(number.isdigit() and int(number) < 256 for number in numbers):
            raise _problem(path, "a damaged list of classes", f"line {line}: {text}")
        red, green, blue = map(int, numbers)
        found.append((red << 16 | green << 8 | blue, "" if name == "background" else name))
        lines.append(line)
    _require_once(path, found, lines, is_color=True)
    return found


def read_id2label(path: Path) -> list[tuple[int, str]]:
    """Values and names of a JSON object {"0": "wall"}, as models of the Hugging Face hub have it.

    Raises:
        DataError: damaged, or a value that is listed twice.
    """
    try:
        pairs = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=tuple)
        if not isinstance(pairs, tuple):
            raise ValueError("no JSON object")
        found = [(int(value), str(name)) for value, name in pairs]
        if odd := [value for value, name in found if not (0 <= value <= LARGEST and is_unicode(name))]:
            raise ValueError(f"value {odd[0]}: out of range, or a name that is no Unicode text")
    except (OSError, ValueError, TypeError) as error:
        allowed = 'a JSON object of values (0 to 65,535) and names: {"0": "wall"}'
        raise DataError("a damaged list of classes", where=path, found=error, allowed=allowed) from error
    _require_once(path, found, None, is_color=False)
    return found


def _require_once(
    path: Path, found: Sequence[tuple[int, str]], lines: Sequence[int] | None, *, is_color: bool
) -> None:
    first: dict[int, int] = {}
    for place, (value, name) in enumerate(found):
        other = first.setdefault(value, place)
        if other != place:
            where = f", lines {lines[other]} and {lines[place]}" if lines else ""
            shown = f"#{value:06x}" if is_color else str(value)
            raise DataError(
                f"a {'color' if is_color else 'value'} that is listed twice",
                where=f"{path}{where}",
                found=f"{shown}: {found[other][1]!r} and {name!r}",
                allowed="one name for each",
                hint="remove one of the two",
            )


def _problem(path: Path, what: str, found: object, hint: str | None = None) -> DataError:
    return DataError(what, where=path, found=found, allowed=CSV, hint=hint)
