"""Build the report: variants side by side on one self-contained HTML page.

It is made from the files that evaluation wrote, never from MLflow, so it can be made again anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipeline.report import labels
from pipeline.report.charts import (
    SERIES,
    accuracy_chart,
    curves_chart,
    dash_of,
    long_tail_chart,
    memory_chart,
    source_chart,
)
from pipeline.report.class_table import class_rows, confused_rows
from pipeline.report.inputs import DataSummary, MemoryCurve, Variant, read_data, read_memory, read_variants
from pipeline.report.page import render
from pipeline.report.tables import (
    GROUPS,
    best_and_worst,
    best_variant,
    group_bars,
    metrics_table,
    reading_notes,
    side_by_side,
    training_table,
    value_of,
)
from pipeline.runtime.files import csv_text, write_text

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
    page = render(
        Path(__file__).with_name("report.html"),
        variants=evaluated,
        series=SERIES,
        dash_of=dash_of,
        metrics=metrics_table(evaluated),
        best=best_variant(evaluated),
        notes=reading_notes(evaluated),
        training=training_table(evaluated),
        settings=side_by_side([variant.record.settings for variant in evaluated], labels.SETTINGS),
        environments=side_by_side([variant.record.environment for variant in evaluated], labels.ENVIRONMENT),
        groups=group_bars(evaluated),
        classes=[best_and_worst(variant) for variant in evaluated],
        all_classes=class_rows(evaluated),
        confused=confused_rows(evaluated),
        step_memory=step_memory,
        examples=_example_rows(evaluated),
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


def _example_rows(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """Return for each image: picture, truth, each variant's prediction, and the colors of the classes."""
    by_variant = [{example.image_id: example for example in one.record.examples} for one in variants]
    rows = []
    for image_id in dict.fromkeys(image_id for examples in by_variant for image_id in examples):
        first = next(i for i, examples in enumerate(by_variant) if image_id in examples)
        example = by_variant[first][image_id]
        legend = {
            entry.name: entry.color
            for examples in by_variant
            for entry in (examples[image_id].legend if image_id in examples else [])
        }
        predictions = [
            variant.picture(examples[image_id].prediction) if image_id in examples else None
            for variant, examples in zip(variants, by_variant, strict=True)
        ]
        rows.append(
            {
                "image_id": image_id,
                "image": variants[first].picture(example.image),
                "truth": variants[first].picture(example.truth),
                "predictions": predictions,
                "legend": legend,
            }
        )
    return rows


def _heads(memory: MemoryCurve | None) -> list[str]:
    """List the heads of the memory curve in the order of its rows: the flat ones first."""
    return list(dict.fromkeys(row.head for row in memory.rows)) if memory else []


def _step_memory(variants: Sequence[Variant], memory: MemoryCurve | None) -> list[float | None]:
    """Return each variant's predicted peak of a training step, GiB; None for one that is not in the curve.

    The curve holds for the plain settings with each head. A variant with another loss, backbone or crop needs
    other memory, so it has no point.
    """
    if memory is None:
        return [None] * len(variants)
    peaks = {(row.head, row.num_classes): row.predicted_gib for row in memory.rows}
    batch_and_crop = {"train.images_per_step": memory.batch_size, "train.crop_size": memory.crop_size}
    found: list[float | None] = []
    for variant in variants:
        own = variant.record.settings
        images = own.get("train.effective_batch_size") if own.get("train.batch_size") == "auto" else None
        own = {**own, "train.images_per_step": images or own.get("train.batch_size")}
        head = "dense" if own.get("loss.name") == "dense" else str(own.get("model.head"))
        expected = {**memory.settings, **batch_and_crop}
        if head == "dense":
            expected["loss.name"] = "dense"
        same = all(own.get(key) == value for key, value in expected.items())
        found.append(peaks.get((head, variant.record.num_classes)) if same else None)
    return found


def _charts(
    variants: Sequence[Variant],
    data: DataSummary,
    memory: MemoryCurve | None,
    step_memory: Sequence[float | None],
) -> dict[str, Markup]:
    training = [variant.record.training for variant in variants]
    holdout = [
        [(step, miou) for step, miou, _ in one.validation_curve if miou is not None] for one in training
    ]
    charts = {
        "loss": curves_chart([one.loss_curve for one in training], name="loss", ylabel="training loss"),
        "holdout": curves_chart(holdout, name="holdout", ylabel="mIoU, held-out part", percent=True),
        "tail": long_tail_chart(data.train_images, name="tail"),
        "sources": source_chart(
            [(one.name, list(one.sources.values())) for one in data.splits], name="sources"
        ),
    }
    mious = [value_of(variant, "miou") for variant in variants]
    points = [
        None if peak is None or miou is None else (peak, miou)
        for peak, miou in zip(step_memory, mious, strict=True)
    ]
    if any(points):
        charts["accuracy"] = accuracy_chart(points, name="accuracy")
    if memory is not None:
        charts["memory"] = memory_chart(memory.rows, _heads(memory), name="memory")
    return {name: Markup(svg) for name, svg in charts.items()}  # our own SVG, which holds no text of the user
