"""What a sweep's charts say of values that a trial's training does not use."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from matplotlib.figure import Figure

from pipeline.tuning.charts import _heat_map, _parallel
from pipeline.tuning.sweep import SweepPlan, TrialRecord
from tests.pipeline.tuning.test_results import make_plan


def plan_of(*keys: str) -> SweepPlan:
    return replace(make_plan(), space={key: {"choice": []} for key in keys})


def trials(*values: tuple[str, int]) -> list[TrialRecord]:
    return [
        TrialRecord(
            number,
            {"loss.name": name, "loss.num_negatives": negatives},
            "finished",
            0.1 * (number + 1),
            {"peak_memory_gib": 1.0 + number},
        )
        for number, (name, negatives) in enumerate(values)
    ]


def texts(figure: Figure) -> list[str]:
    (axes, *_) = figure.axes
    return [text.get_text() for text in axes.texts]


def ticks(figure: Figure) -> tuple[list[str], list[str]]:
    (axes, *_) = figure.axes
    across, down = axes.get_xticklabels(), axes.get_yticklabels()
    return [label.get_text() for label in across], [label.get_text() for label in down]


def test_the_number_of_negatives_of_an_exact_loss_is_not_drawn() -> None:
    plan = plan_of("loss.name", "loss.num_negatives")
    finished = trials(("exact", 7), ("knn", 1), ("knn", 3))
    said = texts(_parallel(plan, finished))
    assert said.count("not used") == 1
    assert "7" not in said
    heat_map = _heat_map(plan, finished)
    assert ticks(heat_map) == (["exact", "knn"], ["1", "3", "not used"])
    assert sorted(texts(heat_map)) == ["10.00", "20.00", "30.00"]


@pytest.mark.parametrize("values", [[("exact", 7)], [("knn", 1)], [("exact", 7), ("exact", 9), ("knn", 1)]])
def test_what_is_not_used_lies_below_the_numbers_that_are(values: Any) -> None:
    (axes, *_) = _parallel(plan_of("loss.name", "loss.num_negatives"), trials(*values)).axes
    heights = [line.get_ydata()[1] for line in axes.lines[: len(values)]]
    for (name, _), height in zip(values, heights, strict=True):
        assert height == -0.15 if name == "exact" else height >= 0
