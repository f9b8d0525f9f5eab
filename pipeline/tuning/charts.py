"""Draw a sweep: Pareto front, heat map of mIoU over two swept settings, parallel coordinates.

Not `optuna.visualization.matplotlib`: it labels no point with its trial and values, and its contours
interpolate where our heat map shows numbers. Its parallel coordinates have no memory axis, and it changes
pyplot's style for the whole process.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from pipeline.runtime.files import atomic_path
from pipeline.tuning.results import pareto_front
from pipeline.tuning.sweep import SweepPlan, TrialRecord

MEMORY_LABELS = {
    "cuda_allocator": "peak GPU memory of training, GiB (measured)",
    "predicted": "peak memory of a training step, GiB (predicted)",
}
NOT_USED = "not used"
"""In place of a value that a trial's training does not use: an exact loss has no number of negatives."""


def draw(plan: SweepPlan, records: Sequence[TrialRecord], folder: Path) -> list[Path]:
    """Draw the pictures that these trials allow.

    Args:
        plan: names the axes.
        records: of the sweep; only finished trials are drawn.
        folder: receives pareto.png, heat_map.png (two swept settings or more) and parallel_coordinates.png.

    Returns:
        The files written.
    """
    finished = [record for record in records if record.outcome == "finished"]
    if not finished:
        return []
    figures = {"pareto": _pareto(plan, finished), "parallel_coordinates": _parallel(plan, finished)}
    if len(plan.space) >= 2:
        figures["heat_map"] = _heat_map(plan, finished)
    return [_save(figure, folder / f"{name}.png") for name, figure in figures.items()]


def _save(figure: Figure, path: Path) -> Path:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, bbox_inches="tight")
    return path


def _pareto(plan: SweepPlan, finished: Sequence[TrialRecord]) -> Figure:
    figure = Figure(figsize=(6.4, 4.2))
    axes = figure.subplots()
    points = [(record.memory_gib or 0.0, 100 * (record.score or 0.0)) for record in finished]
    axes.scatter(*zip(*points, strict=True), color="0.6", zorder=2, label="finished trials")
    front = sorted(pareto_front(finished), key=lambda record: record.memory_gib or 0.0)
    axes.plot(
        [record.memory_gib or 0.0 for record in front],
        [100 * (record.score or 0.0) for record in front],
        "o-",
        drawstyle="steps-post",
        color="tab:blue",
        zorder=3,
        label="Pareto front",
    )
    middle = (front[0].memory_gib or 0.0) / 2 + (front[-1].memory_gib or 0.0) / 2
    for record in front:
        right = (record.memory_gib or 0.0) > middle
        values = ", ".join(f"{_short_key(key)} {value}" for key, value in plan.used(record.values).items())
        axes.annotate(
            f"{record.number}: {values}",
            (record.memory_gib or 0.0, 100 * (record.score or 0.0)),
            xytext=(-5 if right else 4, 4 if right else -10),
            ha="right" if right else "left",
            textcoords="offset points",
            fontsize=7,
        )
    axes.set_xlabel(MEMORY_LABELS[plan.memory_kind])
    axes.set_ylabel(f"{plan.objectives[0]}, %")
    axes.legend(loc="lower right", fontsize=8)
    axes.set_title(f"sweep {plan.name}: {len(finished)} finished trials", fontsize=10)
    axes.margins(x=0.18)
    return figure


def _heat_map(plan: SweepPlan, finished: Sequence[TrialRecord]) -> Figure:
    """Draw the best mIoU of each pair of values of the first two swept settings."""
    across, down = list(plan.space)[:2]
    values = [[plan.used(record.values).get(key, NOT_USED) for key in (across, down)] for record in finished]
    columns, rows = (_distinct(of_key) for of_key in zip(*values, strict=True))
    best = np.full((len(rows), len(columns)), np.nan)
    for record, (column, row) in zip(finished, values, strict=True):
        cell = rows.index(row), columns.index(column)
        best[cell] = np.fmax(best[cell], 100 * (record.score or 0.0))
    figure = Figure(figsize=(1.6 + 0.8 * len(columns), 1.4 + 0.5 * len(rows)))
    axes = figure.subplots()
    image = axes.imshow(best, cmap="viridis", aspect="auto", origin="lower")
    for row, column in itertools.product(range(len(rows)), range(len(columns))):
        if not np.isnan(best[row, column]):
            bright = best[row, column] > 0.4 * np.nanmin(best) + 0.6 * np.nanmax(best)
            ink = "black" if bright else "white"
            axes.text(
                column, row, f"{best[row, column]:.2f}", ha="center", va="center", color=ink, fontsize=8
            )
    axes.set_xticks(range(len(columns)), [_short_number(value) for value in columns])
    axes.set_yticks(range(len(rows)), [_short_number(value) for value in rows])
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    figure.colorbar(image, ax=axes, label=f"best {plan.objectives[0]}, %")
    return figure


def _parallel(plan: SweepPlan, finished: Sequence[TrialRecord]) -> Figure:
    """Draw one line per trial through its swept values, memory and mIoU, colored by mIoU."""
    columns: list[tuple[str, list[Any]]] = [
        (key, [plan.used(record.values).get(key, NOT_USED) for record in finished]) for key in plan.space
    ]
    columns.append((f"memory, GiB ({plan.memory_kind})", [record.memory_gib or 0.0 for record in finished]))
    columns.append((f"{plan.objectives[0]}, %", [100 * (record.score or 0.0) for record in finished]))
    heights = [_positions(values) for _, values in columns]
    figure = Figure(figsize=(1.9 * len(columns), 3.8))
    axes = figure.subplots()
    for index in range(len(finished)):
        line = [column[index] for column in heights]
        axes.plot(line, color=colormaps["viridis"](line[-1]), alpha=0.85)
    for position, (_, values) in enumerate(columns):
        axes.axvline(position, color="0.7", linewidth=0.8, zorder=0)
        for value, height in {
            _short_number(value): height for value, height in zip(values, heights[position], strict=True)
        }.items():
            axes.text(position + 0.02, height, value, fontsize=6.5, va="center")
    axes.set_xticks(range(len(columns)), [name for name, _ in columns], fontsize=7.5)
    axes.set_yticks([])
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    return figure


def _positions(values: Sequence[Any]) -> list[float]:
    """Return positions from 0 to 1: numbers to scale, else evenly in order; below them what is not used."""
    used = [value for value in values if value != NOT_USED]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in used):
        low, high = min(used, default=0), max(used, default=0)
        place = {value: 0.5 if high == low else (value - low) / (high - low) for value in used}
    else:
        order = _distinct(used)
        place = {value: index / max(len(order) - 1, 1) for index, value in enumerate(order)}
    return [-0.15 if value == NOT_USED else place[value] for value in values]


def _distinct(values: Sequence[Any]) -> list[Any]:
    """Return each value once, in order; what is not used comes last."""
    distinct = list(dict.fromkeys(values))
    with contextlib.suppress(TypeError):  # of several types
        distinct.sort(key=lambda value: (True, 0) if value == NOT_USED else (False, value))
    return distinct


def _short_number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _short_key(key: str) -> str:
    return key.rpartition(".")[2]
