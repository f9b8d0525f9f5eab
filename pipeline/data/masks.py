"""From the outlines of annotations to a mask of class ids.

Where annotations overlap there are two rules. `first` is the reference's: LVIS annotations are drawn before
stuff, each in the order of its file, and the first one drawn keeps a pixel; so stuff fills what the things
leave. `smallest`: things still cover stuff, but among things, and among stuff, the one of fewest pixels keeps
the pixel (a button on a shirt is button, whichever was annotated first), the first drawn among equals. An
annotation whose class is unlabelled (0) claims its pixels like any other, so that leaving out a class never
uncovers another one.

Outlines are held as run lengths over the pixels column by column (COCO's RLE: background first, then
alternating). Only the span between an annotation's first and last pixel is ever touched, and painting from
bottom to top makes the uppermost annotation win without asking which pixels are taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from pycocotools import mask as coco_mask

from pipeline.errors import DataProblem, UsageProblem

OverlapRule = Literal["first", "smallest"]
OVERLAP_RULES = get_args(OverlapRule)

REPAIR = "take the file from its source again, or remove this annotation"


@dataclass(frozen=True, slots=True)
class Shape:
    """One annotation to draw.

    Args:
        class_id: the value of its pixels, 0 for unlabelled.
        segmentation: polygons [[x, y, x, y, ...], ...] in pixels, or RLE {"size": [height, width], "counts":
            run lengths or COCO's string}.
        where: names the annotation in errors.
        stuff: a background region, which things cover.
    """

    class_id: int
    segmentation: Any
    where: str
    stuff: bool = False


def draw_mask(shapes: Sequence[Shape], height: int, width: int, *, overlap: str = "first") -> np.ndarray:
    """Draws the annotations of one image.

    Args:
        shapes: LVIS first, then stuff, each in the order of its file.
        height: of the image, in pixels.
        width: of the image, in pixels.
        overlap: which annotation keeps a pixel claimed by several, "first" or "smallest"; see the module.

    Returns:
        (height, width) int32 class ids, 0 = unlabelled. Never 8-bit: the reference's masks of images with
        exactly one stuff annotation are, and their ids above 255 wrap or raise.

    Raises:
        DataProblem: a broken outline.
        UsageProblem: an unknown overlap rule.
    """
    check_overlap_rule(overlap)
    runs = [foreground_runs(shape.segmentation, height, width, shape.where) for shape in shapes]
    columns = np.zeros(height * width, dtype=np.int32)
    for index in _bottom_to_top(shapes, runs, overlap):
        for lengths in runs[index]:
            _paint(columns, lengths, shapes[index].class_id)
    return np.ascontiguousarray(columns.reshape(width, height).T)


def check_overlap_rule(overlap: str) -> None:
    """Raises UsageProblem unless `overlap` is a rule that `draw_mask` knows."""
    if overlap not in OVERLAP_RULES:
        raise UsageProblem(
            "unknown overlap rule", where="data.overlap", found=overlap, allowed=", ".join(OVERLAP_RULES)
        )


def _bottom_to_top(shapes: Sequence[Shape], runs: Sequence[list[np.ndarray]], overlap: str) -> Iterable[int]:
    """The places of the shapes in the order of painting; what comes later covers what came before."""
    if overlap == "first":
        return range(len(shapes) - 1, -1, -1)
    areas = [sum(int(lengths[1::2].sum()) for lengths in of_shape) for of_shape in runs]
    return sorted(range(len(shapes)), key=lambda index: (shapes[index].stuff, areas[index], index))[::-1]


def _paint(columns: np.ndarray, lengths: np.ndarray, class_id: int) -> None:
    """Sets the foreground of (N,) run lengths in the (width * height,) pixels to `class_id`."""
    lengths = lengths[: len(lengths) // 2 * 2]  # a last background run needs no painting
    if not len(lengths):
        return
    span = columns[lengths[0] : lengths.sum()]
    foreground = np.arange(1, len(lengths)) & 1 == 1
    span[np.repeat(foreground, lengths[1:])] = class_id


def foreground_runs(segmentation: Any, height: int, width: int, where: str) -> list[np.ndarray]:
    """The outline as run lengths: one array for RLE, one a polygon; their union is the annotation.

    Everything is checked here, before pycocotools sees it: its C code reads past the end of a broken string
    and allocates whatever far-off coordinates ask for.

    Returns:
        (N,) int64 arrays, each of non-negative lengths that sum up to height * width.

    Raises:
        DataProblem: a broken outline, named by `where`.
    """
    if isinstance(segmentation, dict):
        return [_rle_runs(segmentation, height, width, where)]
    if not isinstance(segmentation, list) or not segmentation:
        raise DataProblem(
            "an annotation without an outline",
            where=where,
            found=_shown(segmentation),
            allowed="a list of polygons, or RLE with size and counts",
            mend=REPAIR,
        )
    for polygon in segmentation:
        _check_polygon(polygon, height, width, where)
    encoded = coco_mask.frPyObjects(segmentation, height, width)
    return [decode_counts(rle["counts"], where) for rle in encoded]


def _check_polygon(polygon: Any, height: int, width: int, where: str) -> None:
    try:
        numbers = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = np.zeros((0, 0))
    if numbers.ndim != 1 or len(numbers) % 2 or len(numbers) < 6:
        # four numbers would pass for a box in pycocotools
        raise DataProblem(
            "a polygon that is none",
            where=where,
            found=f"{len(numbers)} coordinates" if numbers.ndim == 1 else _shown(polygon),
            allowed="x, y, x, y, ...: an even number of coordinates, at least 6",
            mend=REPAIR,
        )
    if not np.isfinite(numbers).all():
        raise DataProblem(
            "a polygon with a coordinate that is not finite",
            where=where,
            found=numbers[~np.isfinite(numbers)][0],
            allowed="finite numbers",
            mend=REPAIR,
        )
    for name, size, values in (("x", width, numbers[0::2]), ("y", height, numbers[1::2])):
        if values.min() < -size or values.max() > 2 * size:
            raise DataProblem(
                "a polygon far outside its image",
                where=where,
                found=f"{name} from {values.min():g} to {values.max():g}",
                allowed=f"0 to {size}, or beyond by no more than that again",
                mend=REPAIR,
            )


def _rle_runs(rle: dict[str, Any], height: int, width: int, where: str) -> np.ndarray:
    if rle.get("size") != [height, width]:
        raise DataProblem(
            "RLE of another size than its image",
            where=where,
            found=_shown(rle.get("size")),
            allowed=[height, width],
            mend=REPAIR,
        )
    counts = rle.get("counts")
    if isinstance(counts, str | bytes):
        lengths = decode_counts(counts, where)
    else:
        # checked one by one, because NumPy would round fractions and take strings
        whole = isinstance(counts, list) and all(type(c) is int and 0 <= c < 2**32 for c in counts)
        if not whole:
            raise _broken_rle(where, _shown(counts))
        lengths = np.array(counts, dtype=np.int64)
    if (lengths < 0).any():
        raise _broken_rle(where, f"a run of {lengths.min()} pixels")
    if lengths.sum() != height * width:
        raise _broken_rle(where, f"runs of {lengths.sum()} pixels in all", f"{height * width} in all")
    return lengths


def decode_counts(text: str | bytes, where: str) -> np.ndarray:
    """Run lengths from COCO's RLE string.

    A number is written in groups of 5 bits, lowest first, as characters from "0" on; the bit of value 32 says
    that more follow, the one of value 16 in the last group is the sign. From the fourth number on, the number
    is the difference to the one two places before.

    Returns:
        (N,) int64, not checked for sign and sum.

    Raises:
        DataProblem: a character or an ending that the code does not have.
    """
    raw = text.encode("utf-8") if isinstance(text, str) else text
    groups = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 48
    if len(groups) and (groups.min() < 0 or groups.max() > 63):
        at = int(np.flatnonzero((groups < 0) | (groups > 63))[0])
        raise _broken_rle(where, f"byte {raw[at : at + 1]!r} at place {at}", "characters from '0' to 'o'")
    ends = np.flatnonzero(groups & 32 == 0)
    if not len(ends) or ends[-1] != len(groups) - 1:
        raise _broken_rle(where, f"a string of {len(groups)} characters that breaks off")
    starts = np.concatenate([[0], ends[:-1] + 1])
    sizes = ends - starts + 1
    if sizes.max() > 7:
        raise _broken_rle(where, f"a number of {sizes.max()} characters", "at most 7")
    places = np.arange(len(groups)) - np.repeat(starts, sizes)
    numbers: np.ndarray = np.add.reduceat((groups & 31) << (5 * places), starts)
    numbers -= (groups[ends] >> 4 & 1) << (5 * sizes)
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers


def _broken_rle(where: str, found: object, allowed: str = "COCO's RLE of the whole image") -> DataProblem:
    return DataProblem("broken RLE", where=where, found=found, allowed=allowed, mend=REPAIR)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
