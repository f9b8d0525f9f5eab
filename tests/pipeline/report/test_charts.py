"""Charts as SVG for a page of their colors."""

from __future__ import annotations

import math

from pipeline.report.charts import curves_chart


def test_a_chart_passes_through_its_values_and_takes_its_colors_from_the_page() -> None:
    svg = curves_chart([[(0, 1.0), (10, math.nan), (20, 0.5)], []], name="one", ylabel="loss")
    assert "var(--series-0)" in svg
    assert "nan" not in svg.lower()
    assert svg != curves_chart([[(0, 1.0), (20, 0.6)], []], name="one", ylabel="loss")
