"""From the outlines of annotations to a mask of class ids.

Where annotations overlap there are two rules. `first` is the reference's: LVIS annotations are drawn before
stuff, each in the order of its file, and the first one drawn keeps a pixel; so stuff fills what the things
leave. `smallest`: things still cover stuff, but among things, and among stuff, the one of fewest pixels keeps
the pixel (a button on a shirt is button, whichever was annotated first), the first drawn among equals. An
annotation whose class is unlabeled (0) claims its pixels like any other, so that leaving out a class never
uncovers another one.

Nothing is decoded to pixels before the end. The outlines of an image are intervals of pixels counted column
by column; their bounds cut the image into pieces that are uniform, a few thousand for 300,000 pixels. The
pieces are painted from bottom to top, so that the uppermost annotation wins without asking which are taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from pipeline.data.bootstrap.rle import Intervals, foreground_intervals
from pipeline.data.layouts.layout import Drawing, Shape
from pipeline.runtime.errors import UsageError

OverlapRule = Literal["first", "smallest"]
OVERLAP_RULES = get_args(OverlapRule)

COLUMNS = 128
"""Turned at once from columns to rows: what fits the processor's first cache."""


def draw(shapes: Sequence[Shape], height: int, width: int, *, overlap: str = "first") -> Drawing:
    """Draws the annotations of one image.

    Args:
        shapes: LVIS first, then stuff, each in the order of its file.
        height: of the image, in pixels.
        width: of the image, in pixels.
        overlap: which annotation keeps a pixel claimed by several, "first" or "smallest"; see the module.

    Returns:
        16-bit class ids. Never 8-bit: the reference's masks of images with exactly one stuff annotation are,
        and their ids above 255 wrap or raise.

    Raises:
        DataError: a broken outline.
        UsageError: an unknown overlap rule.
    """
    check_overlap_rule(overlap)
    segmentations = [shape.segmentation for shape in shapes]
    drawn = foreground_intervals(segmentations, height, width, [shape.where for shape in shapes])
    if not len(drawn.starts):
        return Drawing(np.zeros((height, width), np.uint16), [], [], 0)
    height_of = _heights(shapes, drawn, overlap)[drawn.owners]
    bottom_up = np.argsort(height_of, kind="stable")
    bounds = np.sort(np.concatenate([drawn.starts, drawn.ends]), kind="stable")  # largely sorted already
    bounds = bounds[np.diff(bounds, prepend=-1) > 0]
    # between two neighboring bounds the mask is uniform: paint these pieces instead of pixels
    starts = np.searchsorted(bounds, drawn.starts[bottom_up])
    ends = np.searchsorted(bounds, drawn.ends[bottom_up])
    number = ends - starts
    first = np.cumsum(number) - number
    pieces = np.arange(number.sum()) + np.repeat(starts - first, number)
    top = np.full(len(bounds) - 1, len(shapes))  # the shape that shows; none: the place after the last
    top[pieces] = np.repeat(drawn.owners[bottom_up], number)  # of several values the last one stays
    ids = np.array([*(shape.class_id for shape in shapes), 0], np.uint16)[top]
    lengths = np.diff(bounds)
    pixels = np.bincount(ids, lengths)[1:].astype(np.int64)  # sums below 2^53 are exact
    class_ids = np.flatnonzero(pixels)
    stuff = np.array([*(shape.stuff for shape in shapes), False])[top] & (ids > 0)
    mask = _lay_out(ids, lengths, int(bounds[0]), height, width)
    return Drawing(mask, (class_ids + 1).tolist(), pixels[class_ids].tolist(), int(lengths[stuff].sum()))


def draw_mask(shapes: Sequence[Shape], height: int, width: int, *, overlap: str = "first") -> np.ndarray:
    """The mask of `draw` alone: (height, width) uint16 class ids, 0 = unlabeled."""
    return draw(shapes, height, width, overlap=overlap).mask


def check_overlap_rule(overlap: str) -> None:
    """Raises UsageError unless `overlap` is a rule that `draw_mask` knows."""
    if overlap not in OVERLAP_RULES:
        raise UsageError(
            "unknown overlap rule", where="data.overlap", found=overlap, allowed=", ".join(OVERLAP_RULES)
        )


def _heights(shapes: Sequence[Shape], drawn: Intervals, overlap: str) -> np.ndarray:
    """(N,) int64: how high each shape lies; what is higher covers what is lower."""
    numbers = np.arange(len(shapes))
    if overlap == "first":
        return -numbers
    areas = np.zeros(len(shapes), np.int64)
    np.add.at(areas, drawn.owners, drawn.ends - drawn.starts)
    stuff = np.array([shape.stuff for shape in shapes])
    heights = np.empty_like(numbers)
    heights[np.lexsort((numbers, areas, stuff))] = -numbers
    return heights


def _lay_out(values: np.ndarray, lengths: np.ndarray, first: int, height: int, width: int) -> np.ndarray:
    """The mask whose pixels, column by column from pixel `first` on, are `values` of these run lengths."""
    left, right = first // height, -(-(first + int(lengths.sum())) // height)
    inside = np.zeros((right - left) * height, np.uint16)
    start = first - left * height
    drawn = np.repeat(values, lengths)
    inside[start : start + len(drawn)] = drawn
    mask = np.zeros((height, width), np.uint16)
    for column in range(left, right, COLUMNS):
        some = inside[(column - left) * height : (column - left + COLUMNS) * height]
        mask[:, column : column + COLUMNS][:, : right - column] = some.reshape(-1, height).T
    return mask
