"""Decode the outlines of annotations to run lengths: polygons, COCO's RLE strings, and RLE lists.

Pixels are numbered column by column, as COCO does. The runs of an annotation alternate, background first.
All outlines of an image are decoded in one vectorized pass. On any irregularity they are decoded one by one,
which names the broken one. Both use the same rules, `_all_sound` and `_decode_strings`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from pipeline.runtime.errors import DataError

REPAIR = "take the file from its source again, or remove this annotation"


class Intervals(NamedTuple):
    """Intervals of foreground pixels of several outlines: (K,) int64 each, grouped by outline.

    Args:
        starts: first pixel of each interval, 0..H * W - 1.
        ends: the pixel after its last one.
        owners: index of the outline it belongs to.
    """

    starts: np.ndarray
    ends: np.ndarray
    owners: np.ndarray


def foreground_intervals(
    segmentations: Sequence[Any], height: int, width: int, wheres: Sequence[str]
) -> Intervals:
    """Return the pixels of each outline as intervals; those of its several polygons may overlap.

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
    # the runs of each encoding sum to H * W, so one cumulative sum serves all of them
    bounds = np.cumsum(numbers) - np.repeat(np.arange(len(sizes)) * (height * width), sizes)
    filled = odd[numbers[odd] > 0]
    return Intervals(bounds[filled - 1], bounds[filled], np.repeat(owners, sizes)[filled])


class _Runs(NamedTuple):
    """Run lengths of several encodings, concatenated.

    Args:
        numbers: (N,) int64 run lengths.
        sizes: how many of them each encoding has.
        owners: index of the outline that each encoding belongs to.
    """

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
    """Return the runs of all polygons and RLE strings; None where something is or may be wrong."""
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
    decoded = _decode_strings(strings)
    if decoded is None:
        return None
    numbers, sizes = decoded
    first = np.cumsum(sizes) - sizes
    if numbers.min() < 0 or (np.add.reduceat(numbers, first) != height * width).any():
        return None
    return _Runs(numbers, sizes, np.array(of_polygons + of_strings))


def _all_sound(polygons: list[Any], height: int, width: int) -> bool:
    """Whether all polygons have 6 or an even larger number of finite coordinates, none far outside."""
    try:
        if any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
            return False  # four numbers would pass for a box in pycocotools
        flat = np.concatenate([np.asarray(polygon, dtype=np.float64) for polygon in polygons])
    except (TypeError, ValueError, OverflowError):
        return False
    if flat.ndim != 1:
        return False
    x, y = flat[0::2], flat[1::2]
    # a comparison with NaN is false
    return bool(x.min() >= -width and x.max() <= 2 * width and y.min() >= -height and y.max() <= 2 * height)


def _decode_strings(strings: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray] | None:
    """Decode several of COCO's RLE strings in one pass.

    A number is written in groups of 5 bits, lowest first, as characters from "0" on. The bit of value 32 says
    that more groups follow, the bit of value 16 in the last group is the sign. From the fourth number on, the
    number is the difference to the one two places before.

    Returns:
        (N,) int64 run lengths, not checked for sign and sum, and how many each string has; None where a
        string is broken or there is none.
    """
    groups = np.frombuffer(b"".join(strings), dtype=np.uint8).astype(np.int64) - 48
    # find the last group of each number, and the last number of each string, which must end with the string
    ends = np.flatnonzero(groups & 32 == 0)
    last = np.cumsum([len(text) for text in strings]) - 1
    final = np.searchsorted(ends, last)
    if not len(groups) or groups.min() < 0 or groups.max() > 63 or final[-1] >= len(ends):
        return None
    counts = np.diff(final, prepend=-1)  # numbers in each string
    starts = np.concatenate([[0], ends[:-1] + 1])
    sizes = ends - starts + 1  # groups in each number
    if (ends[final] != last).any() or counts.min() < 1 or sizes.max() > 7:
        return None
    # put the groups of each number together, then subtract 2^bits where the sign is set
    places = np.arange(len(groups)) - np.repeat(starts, sizes)
    numbers = np.add.reduceat((groups & 31) << (5 * places), starts)
    numbers -= (groups[ends] >> 4 & 1) << (5 * sizes)
    # undo the differences: in each string, cumulative sums over odd places, and over even ones from 2 on
    first = final - counts + 1
    local = np.arange(len(numbers)) - np.repeat(first, counts)
    for chosen in (local & 1 == 1, (local & 1 == 0) & (local > 0)):
        at = np.flatnonzero(chosen)
        sums = np.concatenate([[0], np.cumsum(numbers[at])])
        before = sums[np.searchsorted(at, first)]  # what the strings before have added
        numbers[at] = sums[1:] - np.repeat(before, counts)[at]
    return numbers, counts


def foreground_runs(segmentation: Any, height: int, width: int, where: str) -> list[np.ndarray]:
    """Decode one outline: one array of run lengths for RLE, one a polygon; their union is the annotation.

    Everything is checked before pycocotools sees it. Its C code reads past the end of a broken string and
    allocates as much memory as far-off coordinates ask for.

    Returns:
        (N,) int64 arrays, each of non-negative lengths that sum to height * width.

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
        if not _all_sound([polygon], height, width):
            raise _polygon_fault(polygon, height, width, where)
    encoded = coco_mask.frPyObjects(segmentation, height, width)
    return [decode_counts(rle["counts"], where) for rle in encoded]


def _polygon_fault(polygon: Any, height: int, width: int, where: str) -> DataError:
    """Name what is wrong with a polygon that is not sound."""
    try:
        numbers = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = np.zeros((0, 0))
    if numbers.ndim != 1 or len(numbers) % 2 or len(numbers) < 6:
        return DataError(
            "a polygon that is none",
            where=where,
            found=f"{len(numbers)} coordinates" if numbers.ndim == 1 else _shown(polygon),
            allowed="x, y, x, y, ...: an even number of coordinates, at least 6",
            hint=REPAIR,
        )
    if not np.isfinite(numbers).all():
        return DataError(
            "a polygon with a coordinate that is not finite",
            where=where,
            found=numbers[~np.isfinite(numbers)][0],
            allowed="finite numbers",
            hint=REPAIR,
        )
    x, y = numbers[0::2], numbers[1::2]
    name, size, values = ("x", width, x) if x.min() < -width or x.max() > 2 * width else ("y", height, y)
    return DataError(
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
    """Return the run lengths of COCO's RLE string, see `_decode_strings`.

    Returns:
        (N,) int64, not checked for sign and sum.

    Raises:
        DataError: a character or an ending that the code does not have.
    """
    raw = text.encode("utf-8") if isinstance(text, str) else text
    decoded = _decode_strings([raw])
    if decoded is None:
        raise _string_fault(raw, where)
    return decoded[0]


def _string_fault(raw: bytes, where: str) -> DataError:
    """Name what is wrong with a string that does not decode."""
    for at, character in enumerate(raw):
        if not 48 <= character <= 48 + 63:
            allowed = "characters from '0' to 'o'"
            return _broken_rle(where, f"byte {raw[at : at + 1]!r} at place {at}", allowed)
    if not raw or (raw[-1] - 48) & 32:
        return _broken_rle(where, f"a string of {len(raw)} characters that breaks off")
    longest = max(map(len, re.findall(rb"[P-o]*[0-O]", raw)))
    return _broken_rle(where, f"a number of {longest} characters", "at most 7")


def _broken_rle(where: str, found: object, allowed: str = "COCO's RLE of the whole image") -> DataError:
    return DataError("broken RLE", where=where, found=found, allowed=allowed, hint=REPAIR)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
