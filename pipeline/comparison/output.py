"""Show a comparison on the terminal and as one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.comparison.compare import Change, Comparison
from pipeline.report.page import render
from pipeline.report.tables import MEASURES, number, percent
from pipeline.runtime.files import write_text

_SHARES = {measure.key for measure in MEASURES if measure.kind == "quality"}


def as_text(comparison: Comparison) -> str:
    """Return the comparison as plain text, in columns."""
    parts = [comparison.verdict, ""]
    tables: list[tuple[str, list[list[str]]]] = [
        ("metric", [_cells(change, plain=_is_plain(change.name)) for change in comparison.metrics]),
        ("class, IoU", [_cells(change) for change in comparison.classes]),
        ("image, pixel accuracy", [_cells(change) for change in comparison.images]),
        ("setting", [list(row) for row in comparison.settings]),
    ]
    for title, rows in tables:
        if rows:
            header = [title, comparison.before, comparison.after, "change", ""][: len(rows[0])]
            parts += [*_columns([header, *rows]), ""]
    return "\n".join(parts).rstrip()


def write_page(comparison: Comparison, path: Path) -> None:
    """Write the comparison as one HTML file that needs no other."""
    tables = [
        ("Metrics", "metric", [_cells(one, plain=_is_plain(one.name)) for one in comparison.metrics]),
        ("Classes that moved most", "class, IoU", [_cells(one) for one in comparison.classes]),
        ("Images that changed most", "image, pixel accuracy", [_cells(one) for one in comparison.images]),
        ("Settings that differ", "setting", [list(row) for row in comparison.settings]),
    ]
    template = Path(__file__).with_name("comparison.html")
    write_text(path, render(template, comparison=comparison, tables=tables))


def _is_plain(name: str) -> bool:
    """Tell whether a metric is no share: a time, a size, a number of things."""
    return name.rpartition("/")[2] not in _SHARES


def _cells(change: Change, *, plain: bool = False) -> list[str]:
    values = [change.before, change.after]
    if plain:
        cells = [number(value) for value in values]
        gain = "" if change.gain is None else f"{change.gain:+,.4g}"
    else:
        cells = [percent(value) for value in values]
        gain = "" if change.gain is None else f"{100 * change.gain:+.2f}"
    return [change.name, *cells, gain, _seeds_note(change, plain=plain) or change.note]


def _seeds_note(change: Change, *, plain: bool) -> str:
    if change.seeds is None:
        return ""
    said = ["one seed" if std is None else f"± {std if plain else 100 * std:.3g}" for std in change.spreads]
    return f"{said[0]}, {said[1]} over seeds" + ("; within their spread" * change.seeds.within_spread)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *numbers = row
        cells = [first.ljust(widths[0])]
        for position, cell in enumerate(numbers, start=1):
            cells.append(cell.ljust(widths[position]) if position == 4 else cell.rjust(widths[position]))
        lines.append("  ".join(cells).rstrip())
    return lines
