"""Describe the report's charts in Vega-Lite: what is drawn, and what a reader is told who points at it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.encodings import axis, color, dashes, scale, told
from pipeline.report.memory_file import MemoryPoint
from pipeline.report.vega import Spec

COMMON_GPUS = (8, 24, 80)  # GiB
_BINS = 120
_SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")


def curves_chart(
    names: Sequence[str],
    curves: Sequence[Sequence[tuple[float, float]]],
    *,
    title: str,
    description: str,
    percent: bool = False,
) -> Spec:
    """Draw one line per variant over the training steps.

    Args:
        names: of the variants, in the order of the page's colors.
        curves: (step, value) points by variant; NaN are left out, many are shown as means of neighbors.
        title: what the values are.
        description: for those who do not see the chart.
        percent: show fractions as percent.
    """
    values, many = [], False
    for name, curve in zip(names, curves, strict=True):
        points = [point for point in curve if math.isfinite(point[1])]
        binned = _binned(points)
        many = many or len(binned) < len(points)
        values += [
            {"variant": name, "low": low, "high": high, "step": s, "value": v} for s, v, low, high in binned
        ]
    number = ".1%" if percent else ".3~g"
    lines = {
        "mark": {"type": "line", "point": None if many else {"size": 28}, "strokeWidth": 1.7},
        "encoding": {
            "x": axis("step", "training step", format=",d"),
            "y": axis("value", title, format="%" if percent else "~g", zero=percent),
            "color": color("variant", names),
            "strokeDash": dashes("variant", names),
            "tooltip": [told("variant"), told("step", format=",.0f"), told("value", title, format=number)],
        },
    }
    band = {
        "mark": {"type": "area", "opacity": 0.13},
        "encoding": {
            "x": axis("step", "training step", format=",d"),
            "y": {"field": "low", "type": "quantitative"},
            "y2": {"field": "high"},
            "color": color("variant", names),
        },
    }
    return {
        "description": description,
        "data": {"values": values},
        "layer": [band, lines] if many else [lines],
    }


def accuracy_chart(points: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Spec:
    """Draw mIoU over peak memory, one point a variant: up and to the left is better.

    Args:
        points: variant, gib, miou, and where they are known low and high, the interval of mIoU.
        names: of all variants, in the order of the page's colors.
    """
    x = axis("gib", "peak memory of a training step, GiB (logarithmic)", scale="log", format="~g")
    words = [
        told("variant"),
        told("miou", "mIoU", format=".2%"),
        told("gib", "GiB", format=".3~g"),
        told("kind", "memory"),
    ]
    interval = {
        "transform": [{"filter": "isValid(datum.low)"}],
        "mark": {"type": "rule", "strokeWidth": 1.4, "opacity": 0.7},
        "encoding": {
            "x": x,
            "y": axis("low", "mIoU on val", format="%", zero=True),
            "y2": {"field": "high"},
            "color": color("variant", names),
        },
    }
    dots = {
        "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1},
        "encoding": {
            "x": x,
            "y": axis("miou", "mIoU on val", format="%", zero=True),
            "color": color("variant", names),
            "shape": scale("variant", names, _SHAPES),
            "tooltip": words,
        },
    }
    labels = {
        "mark": {"type": "text", "align": "left", "dx": 9, "dy": -2},
        "encoding": {"x": x, "y": {"field": "miou", "type": "quantitative"}, "text": {"field": "variant"}},
    }
    return {
        "description": "Points of mIoU on val over the peak memory of a training step, one a variant.",
        "height": 290,
        "data": {"values": list(points)},
        "layer": [*([interval] if any(one.get("low") is not None for one in points) else []), dots, labels],
    }


def memory_chart(rows: Sequence[MemoryPoint], heads: Sequence[str]) -> Spec:
    """Draw peak memory over the number of classes, both logarithmic: lines predicted, rings measured."""
    values = [row.model_dump() for row in rows]
    x = axis("num_classes", "classes", scale="log", format=",d")
    title = "peak memory of a training step, GiB"

    def layer(field: str, mark: Spec) -> Spec:
        return {
            "transform": [{"filter": f"isValid(datum.{field})"}],
            "mark": mark,
            "encoding": {
                "x": x,
                "y": axis(field, title, scale="log", format="~g"),
                "color": color("head", heads),
                "tooltip": [
                    told("head"),
                    told("num_classes", "classes", format=","),
                    told(field, f"{field.removesuffix('_gib')}, GiB", format=".3~g"),
                ],
            },
        }

    predicted = layer("predicted_gib", {"type": "line", "point": {"size": 28}, "strokeWidth": 1.8})
    predicted["encoding"]["strokeDash"] = dashes("head", heads)
    rings = layer("measured_gib", {"type": "point", "size": 70, "filled": False})
    known = [one for row in rows for one in (row.predicted_gib, row.measured_gib) if one]
    low, high = min(known, default=1), max(known, default=1)
    cards = [{"gib": gib, "label": f"{gib} GiB"} for gib in COMMON_GPUS if low <= gib <= high]
    y = {"field": "gib", "type": "quantitative"}
    lines = {"data": {"values": cards}, "mark": {"type": "rule", "strokeDash": [2, 2]}, "encoding": {"y": y}}
    label = {"type": "text", "align": "left", "baseline": "bottom", "dx": 3, "dy": -2}
    names = {
        "data": {"values": cards},
        "mark": label,
        "encoding": {"y": y, "x": {"value": 0}, "text": {"field": "label"}},
    }
    return {
        "description": "Peak memory of a training step over the number of classes, a line for each head.",
        "data": {"values": values},
        "layer": [
            *([lines, names] if cards else []),
            predicted,
            *([rings] if any(row.measured_gib for row in rows) else []),
        ],
    }


def calibration_chart(bins: Mapping[str, Sequence[Mapping[str, float]]], names: Sequence[str]) -> Spec:
    """Draw accuracy over confidence, a line a variant; on the diagonal a model is as sure as it is right.

    Args:
        bins: confidence, accuracy and pixels by variant.
        names: of all variants, in the order of the page's colors.
    """
    values = [{"variant": name, **one} for name, of_one in bins.items() for one in of_one]
    ends = [{"confidence": 0, "accuracy": 0}, {"confidence": 1, "accuracy": 1}]
    x = axis("confidence", "confidence of the predicted class", format="%", domain=[0, 1])
    y = axis("accuracy", "pixels that are right", format="%", domain=[0, 1])
    diagonal = {
        "data": {"values": ends},
        "mark": {"type": "line", "color": "var(--soft)", "strokeWidth": 1, "strokeDash": [3, 3]},
        "encoding": {"x": x, "y": y},
    }
    lines = {
        "mark": {"type": "line", "point": {"size": 32}, "strokeWidth": 1.7},
        "encoding": {
            "x": x,
            "y": y,
            "color": color("variant", names),
            "strokeDash": dashes("variant", names),
            "tooltip": [
                told("variant"),
                told("confidence", format=".1%"),
                told("accuracy", "right", format=".1%"),
                told("pixels", format=",d"),
            ],
        },
    }
    return {
        "description": "Share of right pixels over confidence, a line a variant, beside the diagonal.",
        "data": {"values": values},
        "layer": [diagonal, lines],
    }


def class_map_chart(places: Sequence[Mapping[str, Any]], names: Sequence[str], groups: Sequence[str]) -> Spec:
    """Draw the class embeddings of one variant at a time as points with names.

    Args:
        places: variant, name, group, iou, pixels, x, y, met (in a truth or prediction; others are pale) and
            named (the name is written beside it).
        names: of the variants that have a map; the first is shown until another is chosen.
        groups: names of frequency groups, in the order of the page's colors.
    """
    chosen = {
        "name": "shown",
        "value": names[0],
        "bind": {"input": "select", "options": list(names), "name": "variant "},
    }
    place = {
        "x": {"field": "x", "type": "quantitative", "axis": None, "scale": {"zero": False}},
        "y": {"field": "y", "type": "quantitative", "axis": None, "scale": {"zero": False}},
    }
    by_group = {
        **color("group", groups),
        "legend": {"title": None, "orient": "top", "labelColor": "var(--soft)"},
    }
    words = [
        told("name", "class"),
        told("group"),
        told("iou", "IoU"),
        told("pixels", "true pixels", format=","),
    ]
    dots = {
        "mark": {"type": "point", "filled": True, "size": 34},
        "encoding": {
            **place,
            "color": by_group,
            "opacity": {"condition": {"test": "datum.met", "value": 0.9}, "value": 0.22},
            "tooltip": words,
        },
    }
    labels = {
        "transform": [{"filter": "datum.named"}],
        "mark": {"type": "text", "align": "left", "dx": 5, "fontSize": 10},
        "encoding": {**place, "text": {"field": "name"}},
    }
    return {
        "description": "The class embeddings in the plane of their two largest principal components.",
        "height": 420,
        "params": [chosen],
        "data": {"values": list(places)},
        "transform": [{"filter": "datum.variant == shown"}],
        "layer": [dots, labels],
    }


def long_tail_chart(classes: Sequence[tuple[str, int]]) -> Spec:
    """Draw the images that show each class, on a logarithmic scale.

    Args:
        classes: name and number of train images, the most frequent first; those in none are left out.
    """
    values = [{"rank": rank, "name": name, "images": n} for rank, (name, n) in enumerate(classes, 1) if n]
    return {
        "description": "The number of train images that show each class, the most frequent first.",
        "data": {"values": values},
        "mark": {
            "type": "line",
            "color": "var(--series-0)",
            "strokeWidth": 1.6,
            "interpolate": "step",
        },
        "encoding": {
            "x": axis("rank", "classes, the most frequent first", format=",d"),
            "y": axis("images", "train images that show the class", scale="log", format=",d"),
            "tooltip": [told("name", "class"), told("images", "train images", format=","), told("rank")],
        },
    }


def source_chart(splits: Sequence[tuple[str, Mapping[str, float]]]) -> Spec:
    """Draw one bar per split: the shares of its pixels from things, from stuff and from no annotation."""
    kinds = list(dict.fromkeys(kind for _, shares in splits for kind in shares))
    values = [
        {"split": split, "source": kind, "share": share, "order": kinds.index(kind)}
        for split, shares in splits
        for kind, share in shares.items()
    ]
    colors = ["var(--series-0)", "var(--series-1)", *["var(--line)"] * len(kinds)][: len(kinds)]
    return {
        "description": "The shares of each split's pixels that things, stuff and no annotation cover.",
        "height": 38 * max(len(splits), 1),
        "data": {"values": values},
        "mark": "bar",
        "encoding": {
            "x": axis("share", "share of the pixels", format="%", domain=[0, 1]),
            "y": {"field": "split", "type": "nominal", "sort": [split for split, _ in splits], "title": None},
            "order": {"field": "order", "type": "quantitative"},
            "color": scale("source", kinds, colors),
            "tooltip": [told("split"), told("source"), told("share", format=".1%")],
        },
    }


def _binned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float, float, float]]:
    """Reduce to at most `_BINS` points: step, mean, least and largest of neighbors."""
    width = max(math.ceil(len(points) / _BINS), 1)
    groups = [points[start : start + width] for start in range(0, len(points), width)]
    return [
        (
            sum(step for step, _ in group) / len(group),
            sum(value for _, value in group) / len(group),
            min(value for _, value in group),
            max(value for _, value in group),
        )
        for group in groups
    ]
