"""Build the report: variants side by side on one self-contained HTML page.

It is made from the files that evaluation wrote, never from MLflow, so it can be made again anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluation.seeds import records_of_seeds, spreads
from pipeline.report import labels
from pipeline.report.charts import (
    accuracy_chart,
    calibration_chart,
    class_map_chart,
    curves_chart,
    long_tail_chart,
    memory_chart,
    source_chart,
)
from pipeline.report.class_table import class_rows, confused_pairs
from pipeline.report.data_summary import DataSummary, read_data
from pipeline.report.encodings import SERIES, dash_of
from pipeline.report.findings import findings
from pipeline.report.gallery import drawn_images, gallery, images_of_classes
from pipeline.report.inputs import Variant, read_variants
from pipeline.report.memory_file import MemoryCurve, VariantPoint, read_memory
from pipeline.report.page import render
from pipeline.report.provenance import commands, is_dirty
from pipeline.report.tables import (
    GROUPS,
    best_and_worst,
    group_bars,
    metrics_table,
    percent,
    reading_notes,
    seeds_table,
    side_by_side,
    training_table,
    value_of,
)
from pipeline.report.vega import Spec, completed, embedded, vega_script
from pipeline.runtime.files import csv_text, write_text

LARGEST_MAP = 2000
"""Classes in the map of the class embeddings."""
NAMED_CLASSES = 30
"""Classes of it whose names are written beside them."""
COMPARED = (
    "miou",
    "miou_present",
    "miou_frequent",
    "miou_common",
    "miou_rare",
    "miou_stuff",
    "pixel_accuracy",
    "mean_accuracy",
    "images",
    "images_per_second",
    "train_seconds",
    "train_peak_memory_gib",
)
"""Columns of comparison.csv after the variant's name."""


def write_report(
    evaluations: Path, results: Path, bootstrapped: Path, variants: Sequence[str], out: Path
) -> None:
    """Write the report as one HTML file; the same inputs give the same bytes.

    Args:
        evaluations: one folder per variant, as the stage evaluate writes it.
        results: the folder that may hold `memory.json`.
        bootstrapped: the data's folder, for the section on the data.
        variants: their names in the order of the page.
        out: the file to write, atomically.

    Raises:
        DataError: a variant is not evaluated, or a file is missing or damaged.
        UsageError: no variant is named.
    """
    evaluated = read_variants(evaluations, variants)
    data, memory = read_data(bootstrapped), read_memory(results)
    step_memory = _step_memory(evaluated, memory)
    miou_spreads = [spreads(records_of_seeds(evaluations, one.name)).get("miou") for one in evaluated]
    drawn, shown = drawn_images(evaluated), gallery(evaluated)
    page = render(
        Path(__file__).with_name("report.html"),
        variants=evaluated,
        series=SERIES,
        dash_of=dash_of,
        embedded=embedded,
        vega=vega_script(),
        findings=findings(evaluated, miou_spreads, step_memory),
        metrics=metrics_table(evaluated),
        notes=reading_notes(evaluated),
        training=training_table(evaluated),
        seeds=seeds_table(miou_spreads),
        settings=side_by_side([variant.record.settings for variant in evaluated], labels.SETTINGS),
        environments=side_by_side([variant.record.environment for variant in evaluated], labels.ENVIRONMENT),
        commands=commands(evaluated),
        dirty=is_dirty(evaluated),
        groups=group_bars(evaluated),
        classes=[best_and_worst(variant) for variant in evaluated],
        all_classes=class_rows(evaluated, images_of_classes(shown)),
        confused=[confused_pairs(variant, drawn) for variant in evaluated],
        step_memory=step_memory,
        gallery=shown,
        drawn=len(drawn),
        seen_in_train=sum(number > 0 for _, number in data.train_images),
        mapped=len(evaluated[0].class_map),
        data=data,
        group_names=GROUPS,
        charts=_charts(evaluated, data, memory, step_memory),
        memory=memory,
        heads=_heads(memory),
    )
    write_text(out, page)


def write_comparison(evaluations: Path, variants: Sequence[str], out: Path) -> None:
    """Write one CSV line per variant with its main metrics; empty if a metric does not exist.

    Raises:
        DataError: a variant is not evaluated, or a file is missing or damaged.
        UsageError: no variant is named.
    """
    rows = []
    for variant in read_variants(evaluations, variants):
        values = [value_of(variant, key) for key in COMPARED]
        rows.append([variant.name, *("" if value is None else value for value in values)])
    write_text(out, csv_text(["variant", *COMPARED], rows))


def step_peaks(evaluations: Path, results: Path, names: Sequence[str]) -> list[tuple[Variant, float | None]]:
    """Return each variant with the peak memory of its training step, GiB, as sweeps count it.

    That is the CUDA allocator's count of the training where there was one, else the predicted peak.

    Raises:
        DataError: a file is missing or damaged.
    """
    variants = read_variants(evaluations, names)
    found = []
    for variant, point in zip(variants, _step_memory(variants, read_memory(results)), strict=True):
        measured = variant.record.training.peak_memory_kind == "cuda_allocator"
        predicted = None if point is None else point.predicted_gib
        peak = value_of(variant, "train_peak_memory_gib") if measured else predicted
        found.append((variant, peak))
    return found


def _heads(memory: MemoryCurve | None) -> list[str]:
    """List the heads of the memory curve in the order of its rows: the flat ones first."""
    return list(dict.fromkeys(row.head for row in memory.rows)) if memory else []


def _step_memory(variants: Sequence[Variant], memory: MemoryCurve | None) -> list[VariantPoint | None]:
    """Return the peak of each variant's training step; None for one that was not predicted."""
    known = {} if memory is None else {point.variant: point for point in memory.variants}
    return [known.get(variant.name) for variant in variants]


def _charts(
    variants: Sequence[Variant],
    data: DataSummary,
    memory: MemoryCurve | None,
    step_memory: Sequence[VariantPoint | None],
) -> dict[str, Spec]:
    names = [variant.name for variant in variants]
    training = [variant.record.training for variant in variants]
    holdout = [
        [(step, miou) for step, miou, _ in one.validation_curve if miou is not None] for one in training
    ]
    charts = {
        "loss": curves_chart(
            names,
            [one.loss_curve for one in training],
            title="training loss",
            description="Training loss over the steps, a line a variant.",
        ),
        "holdout": curves_chart(
            names,
            holdout,
            title="mIoU, held-out part",
            description="mIoU on the held-out part over the steps, a line a variant.",
            percent=True,
        ),
        "tail": long_tail_chart(data.train_images),
        "sources": source_chart([(one.name, one.sources) for one in data.splits]),
    }
    points = [
        {
            "variant": variant.name,
            "gib": point.gib,
            "kind": "predicted" if point.measured_gib is None else "measured",
            **{key.removeprefix("miou_") or key: value_of(variant, key) for key in ("miou_low", "miou_high")},
            "miou": miou,
        }
        for variant, point in zip(variants, step_memory, strict=True)
        if point is not None and (miou := value_of(variant, "miou")) is not None
    ]
    if points:
        charts["accuracy"] = accuracy_chart(points, names)
    if memory is not None and memory.rows:
        charts["memory"] = memory_chart(memory.rows, _heads(memory))
    if any(variant.calibration for variant in variants):
        charts["calibration"] = calibration_chart({one.name: one.calibration for one in variants}, names)
    places, mapped = _class_places(variants), [one.name for one in variants if one.class_map]
    if places:
        charts["class_map"] = class_map_chart(places, mapped, list(GROUPS.values()))
    return {name: completed(spec) for name, spec in charts.items()}


def _class_places(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """Return a point for each class of each class map; of very many classes those with most pixels in val."""
    places = []
    for variant in variants:
        found = [one for one in variant.classes if one.class_id in variant.class_map]
        ranked = sorted(found, key=lambda one: (-one.true_pixels, one.class_id))[:LARGEST_MAP]
        for rank, one in enumerate(ranked):
            x, y = variant.class_map[one.class_id]
            places.append(
                {
                    "variant": variant.name,
                    "name": one.name,
                    "group": GROUPS.get(one.frequency, one.frequency),
                    "iou": percent(one.iou),
                    "pixels": one.true_pixels,
                    "x": x,
                    "y": y,
                    "met": one.true_pixels + one.predicted_pixels > 0,
                    "named": rank < NAMED_CLASSES and one.true_pixels > 0,
                }
            )
    return places
