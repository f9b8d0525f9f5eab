"""Build the report's tables: what is shown of each metric, what may be ranked, how numbers are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.seeds import Spread
from pipeline.report.inputs import ClassResult, Variant
from pipeline.report.labels import readable

SHOWN_CLASSES = 8
"""Best and worst classes listed for each variant."""
GROUPS = {"f": "frequent", "c": "common", "r": "rare", "stuff": "stuff"}
NOTHING = "–"


@dataclass(frozen=True)
class Measure:
    """Describe how a metric is shown; `better` is +1 if more is better, -1 if less is, 0 if neither."""

    key: str
    label: str
    kind: str
    better: int = 0
    note: str = ""


MEASURES = (
    Measure("miou", "mIoU", "quality", 1, "classes in truth or prediction"),
    Measure("miou_low", "mIoU, lower end", "quality", 0, "95 % interval over other images of the same kind"),
    Measure(
        "miou_high", "mIoU, upper end", "quality", 0, "of the same interval; says nothing of another training"
    ),
    Measure("miou_present", "mIoU, classes in truth", "quality", 1),
    Measure("miou_frequent", "mIoU, frequent", "quality", 1, "in more than 100 train images"),
    Measure("miou_common", "mIoU, common", "quality", 1, "in 11 to 100"),
    Measure("miou_rare", "mIoU, rare", "quality", 1, "in 10 or fewer"),
    Measure("miou_stuff", "mIoU, stuff", "quality", 1, "classes of stuff alone"),
    Measure("miou_federated", "mIoU, federated", "quality", 1, "false positives only where looked for"),
    Measure("miou_val2017", "mIoU, val2017", "quality", 1, "of COCO's val2017 images alone"),
    Measure("images_val2017", "images of val2017", "extent"),
    Measure("boundary_iou", "boundary IoU", "quality", 1, "of the pixels near outlines, mean over classes"),
    Measure(
        "region_iou_small", "IoU of small regions", "quality", 1, "a class in an image, below 32 x 32 pixels"
    ),
    Measure("region_iou_medium", "IoU of medium regions", "quality", 1, "below 96 x 96 pixels"),
    Measure("region_iou_large", "IoU of large regions", "quality", 1, "96 x 96 pixels and more"),
    Measure("frequency_weighted_iou", "frequency-weighted IoU", "quality", 1, "by the classes' true pixels"),
    Measure("pixel_accuracy", "pixel accuracy", "quality", 1),
    Measure("mean_accuracy", "mean class accuracy", "quality", 1),
    Measure("top5_accuracy", "top-5 accuracy", "quality", 1, "the true class is among the five highest"),
    Measure("calibration_error", "calibration error", "quality", -1, "gap of confidence and accuracy"),
    Measure("labeled_share", "labeled pixels", "quality", 0, "predictions on the others count nowhere"),
    Measure("classes_present", "classes in truth", "extent"),
    Measure("classes_predicted", "classes predicted", "extent"),
    Measure("images", "val images", "extent"),
    Measure("images_per_second", "prediction, images/s", "speed", 1),
    Measure("train_seconds", "training time, s", "speed", -1),
    Measure("train_peak_memory_gib", "peak memory in training, GiB", "memory", -1),
    Measure("peak_memory_gib", "peak memory in evaluation, GiB", "memory", -1),
)


def percent(fraction: float | None) -> str:
    """Write 0.1234 as 12.34 %."""
    return NOTHING if fraction is None else f"{100 * fraction:.2f} %"


def number(value: float | None) -> str:
    """Write three significant digits, thousands separated, no exponent."""
    if value is None:
        return NOTHING
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(2 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.0f}" if float(value).is_integer() or decimals == 0 else f"{value:.{decimals}f}"


def metrics_table(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """Return one row per metric: label, note, key, and for each variant the text and whether it is the best.

    The best is marked only if the comparison is fair: quality on the same images and classes, speed and
    memory on the same device, and memory only as the CUDA allocator counts it.
    """
    known = {measure.key for measure in MEASURES}
    others = sorted({key for variant in variants for key in variant.record.metrics} - known)
    rows = []
    for measure in (*MEASURES, *(Measure(key, readable(key), "other") for key in others)):
        values = [value_of(variant, measure.key) for variant in variants]
        if all(value is None for value in values):
            continue
        show: Callable[[float | None], str] = percent if measure.kind == "quality" else number
        best = _best(values, measure.better) if _is_fair(variants, measure.kind) else None
        cells = [(show(value), value is not None and value == best) for value in values]
        note = ", ".join(filter(None, [measure.note, _memory_note(variants, measure)]))
        rows.append({"label": measure.label, "key": measure.key, "note": note, "cells": cells})
    return rows


def value_of(variant: Variant, key: str) -> float | None:
    """Return the metric, or None if it is absent or not finite."""
    value = variant.record.metrics.get(key)
    return value if value is not None and math.isfinite(value) else None


def _best(values: Sequence[float | None], better: int) -> float | None:
    """Return the best of at least two values that are not all equal."""
    given = [value for value in values if value is not None]
    if better == 0 or len(given) < 2 or min(given) == max(given):
        return None
    return max(given) if better > 0 else min(given)


def _is_fair(variants: Sequence[Variant], kind: str) -> bool:
    """Tell whether the metrics of a kind can be ranked among these variants."""
    records = [variant.record for variant in variants]
    if kind == "quality":
        return len({(record.num_classes, record.metrics.get("images")) for record in records}) == 1
    devices = {
        (record.training.device, *(str(record.environment.get(key)) for key in ("device", "threads")))
        for record in records
    }
    if kind == "memory" and {record.training.peak_memory_kind for record in records} != {"cuda_allocator"}:
        return False
    return len(devices) == 1


def _memory_note(variants: Sequence[Variant], measure: Measure) -> str:
    if measure.kind != "memory":
        return ""
    kinds = {variant.record.training.peak_memory_kind for variant in variants}
    names = {"cuda_allocator": "the CUDA allocator's count", "process_resident": "resident, whole process"}
    if len(kinds) > 1:
        return "differs in kind: not to be compared"
    return names.get(kind := kinds.pop(), kind)


def reading_notes(variants: Sequence[Variant]) -> list[str]:
    """List what a reader must know to read the numbers correctly."""
    notes = [
        "mIoU is dataset-wide: pixels are counted over all val images together, and the IoU is averaged over "
        "the classes that are in the truth or in a prediction. Predictions count on labeled pixels only."
    ]
    if not _is_fair(variants, "quality"):
        notes.append("They were evaluated on different images or classes, so no best quality is marked.")
    if len(variants) > 1 and not _is_fair(variants, "speed"):
        notes.append("They ran on different devices or threads, so no best speed is marked.")
    if any(variant.record.training.peak_memory_kind == "process_resident" for variant in variants):
        notes.append(
            "Memory of runs on the CPU is the resident memory of the whole process, with interpreter and "
            "libraries (about half a GiB). It is no measure of the method and is not ranked."
        )
    return notes


def best_variant(variants: Sequence[Variant]) -> Variant | None:
    """Return the variant with the highest mIoU, or None without a fair winner."""
    values = [value_of(variant, "miou") for variant in variants]
    best = _best(values, 1) if _is_fair(variants, "quality") else None
    return None if best is None else variants[values.index(best)]


@dataclass(frozen=True)
class Row:
    """Hold a fact and its values by variant; `key` is the setting's key."""

    label: str
    values: list[str]
    key: str = ""


def training_table(variants: Sequence[Variant]) -> list[Row]:
    """Return the facts about the trainings."""
    records = [variant.record for variant in variants]
    return [
        Row("parameters", [f"{record.parameters:,}" for record in records]),
        Row("classes", [f"{record.num_classes:,}" for record in records]),
        Row("training steps", [f"{record.training.steps:,}" for record in records]),
        Row(
            "evaluated checkpoint: step",
            [NOTHING if (step := record.training.best_step) is None else f"{step:,}" for record in records],
        ),
        Row(
            "its mIoU on the held-out part",
            [percent(record.training.best_holdout_miou) for record in records],
        ),
        Row("trained on", [record.training.device for record in records]),
    ]


def seeds_table(spreads: Sequence[Spread | None]) -> list[Row]:
    """Return mean and spread of mIoU over seeds; nothing if every variant was trained once."""
    if not any(one is not None and one.std is not None for one in spreads):
        return []
    return [
        Row("trainings that differ in their seed", [str(len(one.values)) if one else "1" for one in spreads]),
        Row("mIoU, mean over seeds", [percent(one.mean if one else None) for one in spreads]),
        Row(
            "standard deviation of one training",
            [percent(one.std if one else None) for one in spreads],
        ),
    ]


def side_by_side(tables: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> dict[str, list[Row]]:
    """Return one row per key: those that differ between variants apart from those in common."""
    rows: dict[str, list[Row]] = {"differing": [], "common": []}
    for key in dict.fromkeys(key for table in tables for key in table):
        values = [_setting(table[key]) if key in table else NOTHING for table in tables]
        rows["common" if len(set(values)) == 1 else "differing"].append(
            Row(labels.get(key, readable(key)), values, key)
        )
    return rows


def _setting(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return str(value)


def group_bars(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """Return the mIoU by frequency group: text and bar length (percent of the longest) for each variant."""
    keys = ("miou", "miou_frequent", "miou_common", "miou_rare", "miou_stuff")
    values = {key: [value_of(variant, key) for variant in variants] for key in keys}
    longest = max((value for row in values.values() for value in row if value is not None), default=0) or 1
    labels = {measure.key: (measure.label, measure.note) for measure in MEASURES}
    return [
        {
            "label": "all classes" if key == "miou" else labels[key][0].removeprefix("mIoU, "),
            "note": labels[key][1],
            "bars": [(percent(value), round(100 * (value or 0) / longest, 2)) for value in row],
        }
        for key, row in values.items()
        if any(value is not None for value in row)
    ]


def best_and_worst(variant: Variant) -> dict[str, Any]:
    """Return the best and worst classes with true pixels; equal IoUs are ordered by pixels."""
    present = [one for one in variant.classes if one.true_pixels > 0]

    def iou(one: ClassResult) -> float:
        return one.iou or 0.0

    measured = [one for one in present if one.iou is not None]
    ordered = sorted(measured, key=lambda one: (-iou(one), -one.true_pixels))
    shown = min(SHOWN_CLASSES, math.ceil(len(ordered) / 2))
    worst = sorted(ordered[shown:], key=lambda one: (iou(one), -one.true_pixels))
    return {
        "present": len(present),
        "zero": sum(iou(one) == 0 for one in measured),
        "predicted": sum(one.predicted_pixels > 0 for one in variant.classes),
        "best": ordered[:shown],
        "worst": worst[:SHOWN_CLASSES],
    }
