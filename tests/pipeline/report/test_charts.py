"""What the charts are told to draw."""

from __future__ import annotations

import math

import pytest

from pipeline.report.charts import curves_chart, memory_chart
from pipeline.report.memory_file import MemoryPoint


def test_a_curve_leaves_out_what_is_not_finite_and_many_points_become_means_of_neighbors() -> None:
    few = curves_chart(["a", "b"], [[(0, 1.0), (10, math.nan), (20, 0.5)], []], title="", description="")
    assert [(one["step"], one["value"]) for one in few["data"]["values"]] == [(0, 1.0), (20, 0.5)]
    assert len(few["layer"]) == 1
    many = curves_chart(["a"], [[(step, step % 3) for step in range(300)]], title="", description="")
    values = many["data"]["values"]
    assert len(values) == 100
    assert values[1] == {"variant": "a", "low": 0, "high": 2, "step": 4, "value": pytest.approx(1)}
    assert len(many["layer"]) == 2  # the range behind the mean


def test_measured_memory_is_drawn_apart_and_lines_of_common_gpus_where_they_help() -> None:
    rows = [MemoryPoint(head="dense", num_classes=c, predicted_gib=g) for c, g in ((19, 6), (1284, 40))]
    marks = [layer["mark"]["type"] for layer in memory_chart(rows, ["dense"])["layer"]]
    assert marks == ["rule", "text", "line"]
    cards = memory_chart(rows, ["dense"])["layer"][0]["data"]["values"]
    assert [one["gib"] for one in cards] == [8, 24]
    rows.append(MemoryPoint(head="dense", num_classes=150, predicted_gib=7, measured_gib=7.5))
    assert memory_chart(rows, ["dense"])["layer"][-1]["mark"]["type"] == "point"
