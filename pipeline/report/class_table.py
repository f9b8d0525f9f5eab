"""Build the table of all classes and the tables of confused pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.report.inputs import ClassResult, ConfusedPair, Variant
from pipeline.report.tables import GROUPS

SHOWN_PAIRS = 12
"""Confused pairs listed for each variant."""


@dataclass(frozen=True)
class ClassRow:
    """Compare a class across the variants.

    Attributes:
        name: of the class.
        group: of frequency, in words.
        true_pixels: in the truth of val, as the first variant that has the class counted them.
        ious: by variant; None where the class is neither in truth nor in prediction.
        change: largest IoU less the smallest; None with fewer than two.
    """

    name: str
    group: str
    true_pixels: int
    ious: list[float | None]
    change: float | None


def class_rows(variants: Sequence[Variant]) -> list[ClassRow]:
    """Return a row for each class that is in a truth or a prediction, those with most pixels first."""
    by_variant = [{one.name: one for one in variant.classes} for variant in variants]
    first: dict[str, ClassResult] = {}
    for classes in by_variant:
        for name, one in classes.items():
            if one.true_pixels or one.predicted_pixels:
                first.setdefault(name, one)
    rows = []
    for name, one in first.items():
        ious = [classes[name].iou if name in classes else None for classes in by_variant]
        known = [iou for iou in ious if iou is not None]
        change = max(known) - min(known) if len(known) > 1 else None
        rows.append(ClassRow(name, GROUPS.get(one.frequency, one.frequency), one.true_pixels, ious, change))
    return sorted(rows, key=lambda row: (-row.true_pixels, row.name))


def confused_rows(variants: Sequence[Variant]) -> list[list[ConfusedPair]]:
    """Return each variant's most confused pairs; empty lists if no evaluation counted them."""
    return [variant.confused[:SHOWN_PAIRS] for variant in variants]
