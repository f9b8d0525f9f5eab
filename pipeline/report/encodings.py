"""Say how fields of the charts' data become axes, colors, dashes and told words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.report.vega import Spec

SERIES = 6
"""Number of colors on the page; further variants share them, with other dashes."""
DASHES = ("", "7 3", "2 2.5", "9 3 2 3")


def dash_of(position: int) -> str:
    """Return the SVG dash pattern of the variant at `position`, empty for a solid line."""
    return DASHES[position % len(DASHES)]


def axis(
    field: str,
    title: str,
    *,
    format: str = "",
    scale: str = "linear",
    zero: bool = False,
    domain: Sequence[float] | None = None,
) -> Spec:
    """Return an axis of numbers."""
    kind: Spec = {"type": scale, **({"zero": zero} if scale == "linear" else {})}
    if domain is not None:
        kind["domain"] = list(domain)
    if scale == "log":
        kind |= {"nice": False, "padding": 14}
    axis: Spec = {"format": format, "tickCount": 5, "labelOverlap": True}
    if scale == "log":  # the lines between the powers of ten are faint
        power = "log(datum.value) / LN10"
        test = f"abs({power} - round({power})) < 1e-6"
        axis["gridOpacity"] = {"condition": {"test": test, "value": 1}, "value": 0.25}
    return {"field": field, "type": "quantitative", "title": title, "scale": kind, "axis": axis}


def told(field: str, title: str | None = None, *, format: str | None = None) -> Spec:
    """Return what a reader is told of a field; a format makes it a number."""
    kind = "nominal" if format is None else "quantitative"
    return {"field": field, "type": kind, "title": title or field, **({"format": format} if format else {})}


def scale(field: str, names: Sequence[str], values: Sequence[Any]) -> Spec:
    """Return a scale of names, whose values repeat when there are more names."""
    repeated = [values[position % len(values)] for position in range(len(names))]
    return {
        "field": field,
        "type": "nominal",
        "scale": {"domain": list(names), "range": repeated},
        "legend": None,
    }


def color(field: str, names: Sequence[str]) -> Spec:
    """Return the color of each name, in the order of the page's."""
    return scale(field, names, [f"var(--series-{position})" for position in range(SERIES)])


def dashes(field: str, names: Sequence[str]) -> Spec:
    """Return the dash pattern of each name, in the same order."""
    return scale(field, names, [[float(part) for part in dash.split()] or [1, 0] for dash in DASHES])
