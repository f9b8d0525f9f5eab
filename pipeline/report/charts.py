"""Draw the report's charts as SVG that takes its colors and font from the page.

The same numbers give the same bytes: fixed hash salts, no dates. Colors are drawn as placeholders and
replaced by the page's variables. Fixed colors would not do: no gray has the 4.5 : 1 contrast that text needs
on both the light and the dark page.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from pipeline.report.inputs import MemoryPoint

SERIES = 6
"""Number of colors on the page; further variants share them, with other dashes."""
DASHES = ("", "7 3", "2 2.5", "9 3 2 3")
_INK, _FAINT = "#010101", "#010102"
_SIZE = (4.7, 2.9)  # inches: at 96 dots 451 wide, readable on a telephone without shrinking
_BINS = 120
_MARKERS = ("o", "s", "^", "D", "v", "P")


def dash_of(position: int) -> str:
    """Return the SVG dash pattern of the variant at `position`, empty for a solid line."""
    return DASHES[position % len(DASHES)]


def curves_chart(
    curves: Sequence[Sequence[tuple[float, float]]], *, name: str, ylabel: str, percent: bool = False
) -> str:
    """Draw one line per variant over the training steps.

    Args:
        curves: (step, value) points by variant, in the order of the page's colors; NaN are left out.
        name: unique on the page.
        ylabel: what the values are.
        percent: show fractions as percent.
    """
    figure, axes = _axes("training step", ylabel)
    for position, curve in enumerate(curves):
        points = [point for point in curve if math.isfinite(point[1])]
        steps, means, lows, highs = _binned(points)
        color = _series(position)
        if len(points) > len(steps):
            axes.fill_between(steps, lows, highs, color=color, alpha=0.13, linewidth=0)
        marker = "o" if len(steps) <= 12 else None
        style = _linestyle(position)
        axes.plot(steps, means, color=color, lw=1.6, ls=style, marker=marker, markersize=3.5)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        axes.set_ylim(bottom=0)
    return _svg(figure, name)


def long_tail_chart(images: Sequence[int], *, name: str) -> str:
    """Draw the images that show each class, on a logarithmic scale, the most frequent class first."""
    figure, axes = _axes("classes, the most frequent first", "train images that show the class")
    seen = [number for number in images if number > 0]
    if seen:
        axes.fill_between(range(1, len(seen) + 1), seen, 0.7, step="mid", color=_series(0), alpha=0.25, lw=0)
        axes.step(range(1, len(seen) + 1), seen, where="mid", color=_series(0), linewidth=1.4)
        axes.set_yscale("log")
        axes.set_ylim(0.7, max(seen) * 1.6)
    axes.set_xlim(1, max(len(seen), 2))
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    return _svg(figure, name)


def source_chart(splits: Sequence[tuple[str, Sequence[float]]], *, name: str) -> str:
    """Draw one bar per split: the shares of its pixels from things, from stuff and from neither."""
    figure, axes = _axes("share of the pixels", "")
    places = range(len(splits))
    left = [0.0] * len(splits)
    for position in range(max((len(shares) for _, shares in splits), default=0)):
        widths = [shares[position] for _, shares in splits]
        color = _series(position) if position < 2 else _FAINT
        axes.barh(places, widths, left=left, height=0.62, color=color)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(places, [split for split, _ in splits])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    return _svg(figure, name)


def memory_chart(rows: Sequence[MemoryPoint], heads: Sequence[str], *, name: str) -> str:
    """Draw peak memory over the number of classes, both logarithmic: lines predicted, rings measured."""
    figure, axes = _axes("classes", "peak memory of a training step, GiB")
    for position, head in enumerate(heads):
        color = _series(position)
        own = sorted((row for row in rows if row.head == head), key=lambda row: row.num_classes)
        predicted = [(row.num_classes, row.predicted_gib) for row in own if row.predicted_gib]
        measured = [(row.num_classes, row.measured_gib) for row in own if row.measured_gib]
        if predicted:
            axes.plot(
                *zip(*predicted, strict=True), color=color, linewidth=1.8, linestyle=_linestyle(position)
            )
        if measured:
            axes.plot(
                *zip(*measured, strict=True), "o", markeredgecolor=color, markerfacecolor="none", markersize=6
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    for gib in (8, 24, 80):  # what common GPUs have
        if low <= gib <= high:
            axes.axhline(gib, color=_FAINT, linewidth=0.8, dashes=(2, 2))
            axes.annotate(
                f"{gib} GiB",
                (0, gib),
                xycoords=("axes fraction", "data"),
                xytext=(3, 2),
                textcoords="offset points",
                fontsize=7.5,
                color=_INK,
            )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(_plain))
        axis.set_minor_formatter(NullFormatter())
    return _svg(figure, name)


def accuracy_chart(points: Sequence[tuple[float, float] | None], *, name: str) -> str:
    """Draw mIoU over peak memory, one point a variant: up and to the left is better.

    Args:
        points: (GiB, mIoU) by variant, in the order of the page's colors; None for a variant without.
        name: unique on the page.
    """
    figure, axes = _axes("peak memory of a training step, GiB (logarithmic)", "mIoU on val")
    for position, point in enumerate(points):
        if point is not None:
            axes.plot(
                *point, marker=_MARKERS[position % len(_MARKERS)], color=_series(position), markersize=8
            )
    axes.set_xscale("log")
    highest = max((point[1] for point in points if point is not None), default=0)
    axes.set_ylim(0, 1.15 * highest or 1)
    axes.margins(x=0.25)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.xaxis.set_minor_formatter(NullFormatter())
    return _svg(figure, name)


def _binned(
    points: Sequence[tuple[float, float]],
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Reduce to at most `_BINS` points: steps, means, minima and maxima of neighbors."""
    width = max(math.ceil(len(points) / _BINS), 1)
    groups = [points[start : start + width] for start in range(0, len(points), width)]
    return (
        [sum(step for step, _ in group) / len(group) for group in groups],
        [sum(value for _, value in group) / len(group) for group in groups],
        [min(value for _, value in group) for group in groups],
        [max(value for _, value in group) for group in groups],
    )


def _plain(value: float, position: object) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _series(position: int) -> str:
    return f"#0201{position % SERIES:02x}"


def _linestyle(position: int) -> str | tuple[float, tuple[float, ...]]:
    dash = dash_of(position)
    return (0, tuple(float(part) / 1.6 for part in dash.split())) if dash else "-"


def _axes(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    with rc_context({"font.size": 8.5, "font.family": "sans-serif", "axes.formatter.use_mathtext": False}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        axes.set_xlabel(xlabel, color=_INK)
        axes.set_ylabel(ylabel, color=_INK)
        axes.grid(color=_FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", color=_FAINT, labelcolor=_INK, length=0)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(_FAINT)
    return figure, axes


def _svg(figure: Figure, name: str) -> str:
    """Return the figure as an SVG element to inline, without links, group ids or fixed colors."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.hashsalt": f"kiloseg {name}", "svg.fonttype": "none", "font.size": 8.5}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"<g id=\"[^\"]*\"", "<g", text)
    text = re.sub(r"\sxmlns(:\w+)?=\"[^\"]*\"", "", text)
    text = re.sub(r"<svg[^>]*?viewBox=\"([^\"]*)\"[^>]*>", r'<svg viewBox="\1" role="img">', text, count=1)
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = text.replace(_INK, "var(--soft)").replace(_FAINT, "var(--line)")
    for position in range(SERIES):
        text = text.replace(_series(position), f"var(--series-{position})")
    return text.strip()
