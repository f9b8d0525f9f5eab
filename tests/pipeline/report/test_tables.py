"""How the report writes numbers."""

from __future__ import annotations

import pytest

from pipeline.report.tables import number, percent


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0"), (12.345, "12.3"), (0.04567, "0.0457"), (1234.5, "1,234"), (4809, "4,809")],
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_fractions_are_percent() -> None:
    assert (percent(0.12345), percent(1.0), percent(None)) == ("12.35 %", "100.00 %", "–")
