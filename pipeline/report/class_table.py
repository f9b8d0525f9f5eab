"""Build the table of all classes and the lists of confused pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.evaluation.picture_file import Picture
from pipeline.report.gallery import crop_of_pair
from pipeline.report.inputs import ClassResult, Variant
from pipeline.report.tables import GROUPS

SHOWN_PAIRS = 12
"""Confused pairs shown for each variant."""
SHOWN_EXAMPLES = 3
"""Images named for each class."""


@dataclass(frozen=True)
class ClassRow:
    """Compare a class across the variants.

    Attributes:
        class_id: of the class.
        name: of the class.
        group: of frequency, in words.
        true_pixels: in the truth of val, as the first variant that has the class counted them.
        ious: by variant; None where the class is neither in truth nor in prediction.
        change: largest IoU less the smallest; None with fewer than two.
        examples: ids of images on the page whose truth has the class.
    """

    class_id: int
    name: str
    group: str
    true_pixels: int
    ious: list[float | None]
    change: float | None
    examples: list[int]


@dataclass(frozen=True)
class PairShown:
    """Hold a confused pair with a picture of it, where one of the drawn images shows it."""

    name: str
    predicted: str
    pixels: int
    share: float
    image_id: int | None
    crop: str | None
    """a data URI"""


def class_rows(variants: Sequence[Variant], examples: Mapping[int, Sequence[int]]) -> list[ClassRow]:
    """Return a row for each class that is in a truth or a prediction, those with most pixels first.

    Args:
        variants: whose classes are compared.
        examples: ids of images by class id.
    """
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
        group, shown = GROUPS.get(one.frequency, one.frequency), list(examples.get(one.class_id, ()))
        row = ClassRow(one.class_id, name, group, one.true_pixels, ious, change, shown[:SHOWN_EXAMPLES])
        rows.append(row)
    return sorted(rows, key=lambda row: (-row.true_pixels, row.name))


def confused_pairs(variant: Variant, image_ids: Sequence[int]) -> list[PairShown]:
    """Return a variant's most confused pairs; an empty list if its evaluation did not count them.

    Args:
        variant: whose pairs they are.
        image_ids: of its pictures, from which the pairs are cut.

    Raises:
        DataError: a picture is missing or damaged.
    """
    pictures: dict[int, Picture] = (
        {one: variant.picture(one) for one in image_ids} if variant.confused else {}
    )
    shown = []
    for pair in variant.confused[:SHOWN_PAIRS]:
        image_id, crop = crop_of_pair(pictures, pair.class_id, pair.predicted_id) or (None, None)
        shown.append(PairShown(pair.name, pair.predicted, pair.pixels, pair.share, image_id, crop))
    return shown
