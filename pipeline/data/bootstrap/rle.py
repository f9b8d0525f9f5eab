"""The outlines of annotations, checked, as run lengths: polygons, COCO's RLE strings, and RLE lists.

Pixels are counted column by column, as COCO does. An annotation's runs alternate, background first. All
outlines of an image are turned into runs together, in a few passes over all their numbers: one by one, most
of the time went into starting NumPy. Where anything may be amiss they are gone through one by one, which
names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from pipeline.runtime.errors import DataError

REPAIR = "take the file from its source again, or remove this annotation"


class Intervals(NamedTuple):
    """The foreground of several outlines: (K,) int64 each, grouped by outline.

    Args:
        starts: first pixel of each interval, 0..H * W - 1.
        ends: the pixel after its last one.
        owners: the place of the outline it belongs to.
    """

    starts: np.ndarray
    ends: np.ndarray
    owners: np.ndarray


def foreground_intervals(
    segmentations: Sequence[Any], height: int, width: int, wheres: Sequence[str]
) -> Intervals:
    """The pixels of each outline as intervals; those of its several polygons may overlap.

    Args:
        segmentations: one an outline: polygons [[x, y, x, y, ...], ...] in pixels, or RLE {"size": [height,
            width], "counts": run lengths or COCO's string}.
        height: of the image, in pixels.
        width: of the image, in pixels.
        wheres: names of the outlines in errors.

    Raises:
        DataError: a broken outline.
    """
    together = _together(segmentations, height, width)
    if together is None:
        together = _one_by_one(segmentations, height, width, wheres)
    numbers, sizes, owners = together
    first = np.cumsum(sizes) - sizes
    odd = np.flatnonzero((np.arange(len(numbers)) - np.repeat(first, sizes)) & 1)
    # all runs of an outline sum up to the whole image, so that one running sum serves all outlines
    bounds = np.cumsum(numbers) - np.repeat(np.arange(len(sizes)) * (height * width), sizes)
    filled = odd[numbers[odd] > 0]
    return Intervals(bounds[filled - 1], bounds[filled], np.repeat(owners, sizes)[filled])


class _Runs(NamedTuple):
    """Run lengths of several encodings in a row, how many each has, and the outline it belongs to."""

    numbers: np.ndarray
    sizes: np.ndarray
    owners: np.ndarray


def _one_by_one(segmentations: Sequence[Any], height: int, width: int, wheres: Sequence[str]) -> _Runs:
    runs: list[np.ndarray] = [np.zeros(0, np.int64)]
    owners = [0]
    for owner, (segmentation, where) in enumerate(zip(segmentations, wheres, strict=True)):
        lengths = foreground_runs(segmentation, height, width, where)
        runs += lengths
        owners += [owner] * len(lengths)
    # the first, empty one is there for an image without outlines
    return _Runs(
        np.concatenate(runs),
        np.array([len(one) for one in runs[1:]], np.int64),
        np.array(owners[1:], np.int64),
    )


def _together(segmentations: Sequence[Any], height: int, width: int) -> _Runs | None:
    """The runs of all polygons and RLE strings; None where something is or may be wrong."""
    polygons: list[Any] = []
    strings: list[bytes] = []
    of_polygons: list[int] = []
    of_strings: list[int] = []
    for owner, segmentation in enumerate(segmentations):
        if isinstance(segmentation, list) and segmentation:
            polygons += segmentation
            of_polygons += [owner] * len(segmentation)
        elif isinstance(segmentation, dict) and isinstance(counts := segmentation.get("counts"), str | bytes):
            if segmentation.get("size") != [height, width]:
                return None
            strings.append(counts.encode() if isinstance(counts, str) else counts)
            of_strings.append(owner)
        else:
            return None
    if polygons:
        if not _all_sound(polygons, height, width):
            return None
        encoded = coco_mask.frPyObjects(polygons, height, width)
        strings = [rle["counts"] for rle in encoded] + strings
    if not strings:
        return None
    decoded = _decode_all(strings, height * width)
    return None if decoded is None else _Runs(*decoded, np.array(of_polygons + of_strings))


def _all_sound(polygons: list[Any], height: int, width: int) -> bool:
    """Whether `_check_polygon` would pass them all."""
    try:
        if any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
            return False
        flat = np.concatenate([np.asarray(polygon, dtype=np.float64) for polygon in polygons])
    except (TypeError, ValueError, OverflowError):
        return False
    if flat.ndim != 1:
        return False
    x, y = flat[0::2], flat[1::2]
    # a comparison with NaN is false
    return bool(x.min() >= -width and x.max() <= 2 * width and y.min() >= -height and y.max() <= 2 * height)


def _decode_all(strings: list[bytes], pixels: int) -> tuple[np.ndarray, np.ndarray] | None:
    """`decode_counts` of many strings at once, and how many numbers each has.

    Returns:
        None where a string is broken or not of so many pixels.
    """
    raw = b"".join(strings)
    groups = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(groups & 32 == 0)
    last = np.cumsum([len(text) for text in strings]) - 1
    # the number of the last group of each string, which must end there
    final = np.searchsorted(ends, last)
    if not len(groups) or groups.min() < 0 or groups.max() > 63 or final[-1] >= len(ends):
        return None
    counts = np.diff(final, prepend=-1)
    starts = np.concatenate([[0], ends[:-1] + 1])
    sizes = ends - starts + 1
    if (ends[final] != last).any() or counts.min() < 1 or sizes.max() > 7:
        return None
    places = np.arange(len(groups)) - np.repeat(starts, sizes)
    numbers = np.add.reduceat((groups & 31) << (5 * places), starts)
    numbers -= (groups[ends] >> 4 & 1) << (5 * sizes)
    first = final - counts + 1
    local = np.arange(len(numbers)) - np.repeat(first, counts)
    for chosen in (local & 1 == 1, (local & 1 == 0) & (local > 0)):
        # from the fourth number on each is the difference to the one two before: a sum within each string
        at = np.flatnonzero(chosen)
        sums = np.concatenate([[0], np.cumsum(numbers[at])])
        before = sums[np.searchsorted(at, first)]
        numbers[at] = sums[1:] - np.repeat(before, counts)[at]
    if numbers.min() < 0 or (np.add.reduceat(numbers, first) != pixels).any():
        return None
    return numbers, counts


def foreground_runs(segmentation: Any, height: int, width: int, where: str) -> list[np.ndarray]:
    """The outline as run lengths: one array for RLE, one a polygon; their union is the annotation.

    Everything is checked here, before pycocotools sees it: its C code reads past the end of a broken string
    and allocates whatever far-off coordinates ask for.

    Returns:
        (N,) int64 arrays, each of non-negative lengths that sum up to height * width.

    Raises:
        DataError: a broken outline, named by `where`.
    """
    if isinstance(segmentation, dict):
        return [_rle_runs(segmentation, height, width, where)]
    if not isinstance(segmentation, list) or not segmentation:
        raise DataError(
            "an annotation without an outline",
            where=where,
            found=_shown(segmentation),
            allowed="a list of polygons, or RLE with size and counts",
            hint=REPAIR,
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
        raise DataError(
            "a polygon that is none",
            where=where,
            found=f"{len(numbers)} coordinates" if numbers.ndim == 1 else _shown(polygon),
            allowed="x, y, x, y, ...: an even number of coordinates, at least 6",
            hint=REPAIR,
        )
    if not np.isfinite(numbers).all():
        raise DataError(
            "a polygon with a coordinate that is not finite",
            where=where,
            found=numbers[~np.isfinite(numbers)][0],
            allowed="finite numbers",
            hint=REPAIR,
        )
    for name, size, values in (("x", width, numbers[0::2]), ("y", height, numbers[1::2])):
        if values.min() < -size or values.max() > 2 * size:
            raise DataError(
                "a polygon far outside its image",
                where=where,
                found=f"{name} from {values.min():g} to {values.max():g}",
                allowed=f"0 to {size}, or beyond by no more than that again",
                hint=REPAIR,
            )


def _rle_runs(rle: dict[str, Any], height: int, width: int, where: str) -> np.ndarray:
    if rle.get("size") != [height, width]:
        raise DataError(
            "RLE of another size than its image",
            where=where,
            found=_shown(rle.get("size")),
            allowed=[height, width],
            hint=REPAIR,
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
        DataError: a character or an ending that the code does not have.
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


def _broken_rle(where: str, found: object, allowed: str = "COCO's RLE of the whole image") -> DataError:
    return DataError("broken RLE", where=where, found=found, allowed=allowed, hint=REPAIR)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
