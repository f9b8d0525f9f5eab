"""Drawing: by hand on 8 x 8 pixels, against whole-mask arithmetic, and on broken outlines."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from pipeline.config.schema import DataSettings
from pipeline.data.bootstrap import rle as outlines
from pipeline.data.bootstrap.options import OVERLAP_RULES
from pipeline.data.bootstrap.rasterize import rasterize
from pipeline.data.bootstrap.rle import decode_counts, foreground_runs
from pipeline.data.layouts.layout import Region
from pipeline.runtime.errors import DataError, UsageError
from tests.pipeline.data.small_dataset import box, whole

# pycocotools' decode, which the code under test does without
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def draw_mask(regions: Sequence[Region], height: int, width: int, overlap: str = "first") -> np.ndarray:
    return rasterize(regions, height, width, overlap=overlap).mask


def encode(mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def whole_mask_arithmetic(regions: list[tuple[int, np.ndarray]], height: int, width: int) -> np.ndarray:
    """The rule, told the other way round: each annotation takes what is still free."""
    mask, free = np.zeros((height, width), dtype=np.int64), np.ones((height, width), dtype=bool)
    for class_id, inside in regions:
        mask[inside & free] = class_id
        free &= ~inside
    return mask


@st.composite
def overlapping(draw: st.DrawFn) -> tuple[int, int, list[tuple[int, np.ndarray]]]:
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    ids = draw(st.lists(st.integers(0, 65_534), max_size=6))
    return height, width, [(class_id, rng.random((height, width)) < share) for class_id in ids]


def test_an_8_by_8_drawing_made_by_hand() -> None:
    """LVIS 1 before LVIS 2; stuff 7 fills what is left, and stuff 8 comes too late where 7 is."""
    regions = [
        Region(1, box(1, 1, 5, 4), "first thing"),
        Region(2, box(3, 2, 7, 6), "second thing"),
        Region(7, {"size": [8, 8], "counts": [0, 48, 16]}, "stuff on columns 0 to 5"),
        Region(8, box(4, 5, 8, 8), "late stuff"),
    ]
    drawing = """
        7 7 7 7 7 7 . .
        7 1 1 1 1 7 . .
        7 1 1 1 1 2 2 .
        7 1 1 1 1 2 2 .
        7 7 7 2 2 2 2 .
        7 7 7 2 2 2 2 8
        7 7 7 7 7 7 8 8
        7 7 7 7 7 7 8 8
    """
    expected = [
        [0 if c == "." else int(c) for c in line.split()] for line in drawing.split("\n") if line.split()
    ]
    mask = draw_mask(regions, 8, 8)
    assert mask.tolist() == expected
    assert mask.dtype == np.uint16


@given(overlapping())
@settings(max_examples=200, deadline=None)
def test_painting_in_reverse_equals_whole_mask_arithmetic(case: Any) -> None:
    height, width, annotations = case
    regions = [Region(class_id, encode(inside), "") for class_id, inside in annotations]
    expected = whole_mask_arithmetic(annotations, height, width)
    np.testing.assert_array_equal(draw_mask(regions, height, width), expected)


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(3, 9))
@settings(max_examples=100, deadline=None)
def test_polygons_cover_what_pycocotools_says(seed: int, polygons: int, points: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(1, 60, 2))
    scale = np.tile([width, height], points)
    outline = [(rng.uniform(-0.2, 1.2, 2 * points) * scale).tolist() for _ in range(polygons)]
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(outline, height, width)))
    np.testing.assert_array_equal(draw_mask([Region(1, outline, "")], height, width), expected)
    packed = [array("d", polygon) for polygon in outline]
    np.testing.assert_array_equal(draw_mask([Region(1, packed, "")], height, width), expected)


@st.composite
def mixed_outlines(draw: st.DrawFn) -> tuple[int, int, list[tuple[int, Any]]]:
    """Polygons, RLE strings and, seldom, RLE lists on one image that may be wider than a block of columns."""
    height, width = draw(st.integers(1, 60)), draw(st.sampled_from([1, 7, 127, 128, 129, 300]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kinds = draw(st.lists(st.sampled_from(["polygon", "polygons", "string", "string", "list"]), max_size=9))
    if not draw(st.booleans()):
        kinds = [kind for kind in kinds if kind != "list"]  # without one, all are decoded together
    regions: list[tuple[int, Any]] = []
    for kind in kinds:
        left, top = rng.integers(-5, width), rng.integers(-5, height)
        size = rng.integers(1, 40, 2)
        points = int(rng.integers(3, 9))
        if kind.startswith("polygon"):
            outline: Any = [
                np.clip(
                    rng.uniform(0, 1, (points, 2)) * size + (left, top),
                    (-width, -height),
                    (2 * width, 2 * height),
                )
                .ravel()
                .tolist()
                for _ in range(1 if kind == "polygon" else 3)
            ]
        else:
            inside = np.zeros((height, width), bool)
            inside[max(top, 0) : max(top + size[1], 0), max(left, 0) : max(left + size[0], 0)] = True
            inside &= rng.random((height, width)) < rng.choice([0.3, 0.97, 1.0])
            outline = encode(inside)
            if kind == "list":
                outline = {"size": [height, width], "counts": decode_counts(outline["counts"], "").tolist()}
        regions.append((int(rng.integers(0, 65_535)), outline))
    return height, width, regions


@given(mixed_outlines())
@settings(max_examples=300, deadline=None)
def test_drawing_is_pixel_identical_with_whole_mask_arithmetic_and_counts_what_it_drew(case: Any) -> None:
    height, width, outlines_ = case
    decoded = []
    for class_id, outline in outlines_:
        rle = outline if isinstance(outline, dict) else coco_mask.frPyObjects(outline, height, width)
        if isinstance(rle, dict) and isinstance(rle["counts"], list):
            rle = coco_mask.frPyObjects(rle, height, width)
        merged = coco_mask.merge(rle) if isinstance(rle, list) else rle
        decoded.append((class_id, coco_mask.decode(merged).astype(bool)))
    regions = [Region(class_id, outline, "") for class_id, outline in outlines_]
    expected = whole_mask_arithmetic(decoded, height, width)
    drawing = rasterize(regions, height, width)
    np.testing.assert_array_equal(drawing.mask, expected)
    ids, counts = np.unique(expected[expected > 0], return_counts=True)
    assert (drawing.class_ids, drawing.pixel_counts) == (ids.tolist(), counts.tolist())


@given(mixed_outlines())
@settings(max_examples=100, deadline=None)
def test_outlines_taken_together_are_those_taken_one_by_one(case: Any) -> None:
    height, width, outlines_ = case
    segmentations = [outline for _, outline in outlines_]
    together = outlines.foreground_intervals(segmentations, height, width, [""] * len(segmentations))
    for owner, segmentation in enumerate(segmentations):
        alone = np.zeros(height * width, int)
        for lengths in foreground_runs(segmentation, height, width, ""):
            alone += np.repeat(np.arange(len(lengths)) & 1, lengths)
        mine = together.owners == owner
        drawn = np.zeros(height * width + 1, int)
        np.add.at(drawn, together.starts[mine], 1)
        np.add.at(drawn, together.ends[mine], -1)
        np.testing.assert_array_equal(np.cumsum(drawn)[:-1], alone)


@given(overlapping())
@settings(max_examples=100, deadline=None)
def test_decoded_strings_are_the_run_lengths(case: Any) -> None:
    for _, inside in case[2]:
        lengths = decode_counts(encode(inside)["counts"], "")
        values = np.arange(len(lengths)) % 2
        np.testing.assert_array_equal(np.repeat(values, lengths), inside.ravel(order="F"))


def test_long_runs_keep_their_length() -> None:
    """Runs of more than 2^20 pixels take five characters each, and their differences a sign."""
    mask = np.zeros((2000, 3000), dtype=bool)
    mask[:, 700:1500] = mask[10:20, 2900] = True
    np.testing.assert_array_equal(draw_mask([Region(1, encode(mask), "")], 2000, 3000), mask)


def test_a_single_stuff_annotation_keeps_its_16_bit_id() -> None:
    """The reference's mask is 8-bit for images with exactly one stuff annotation: 1284 would become 4."""
    assert (draw_mask([Region(1284, whole(), "")], 8, 8) == 1284).all()
    assert (draw_mask([Region(65_534, whole(), "")], 8, 8) == 65_534).all()


def test_an_unlabeled_annotation_claims_its_pixels() -> None:
    mask = draw_mask([Region(0, box(0, 0, 4, 8), ""), Region(5, whole(), "")], 8, 8)
    assert (mask[:, :4] == 0).all()
    assert (mask[:, 4:] == 5).all()


def test_no_annotation_means_no_label() -> None:
    assert not draw_mask([], 3, 5).any()
    assert draw_mask([], 3, 5).shape == (3, 5)


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        (None, "without an outline"),
        ([], "without an outline"),
        ("x", "without an outline"),
        ([[]], "0 coordinates"),
        ([[1, 1, 5, 1, 5]], "5 coordinates"),
        ([[1, 1, 5, 5]], "4 coordinates"),
        ([[1, 1, 5, 1, 5, 5, 2]], "7 coordinates"),
        ([[1, 1, 5, 1, 5, float("nan")]], "nan"),
        ([[1, 1, 5, 1, float("inf"), 2]], "inf"),
        ([[1, 1, 5, 1, 5, 1e9]], "far outside"),
        ([[1, 1, 5, 1, -9, 5]], "far outside"),
        ([["a", 1, 5, 1, 5, 5]], "a polygon that is none"),
        ([[[1, 1], [5, 1], [5, 5]]], "a polygon that is none"),
        ([1, 1, 5, 1, 5, 5], "a polygon that is none"),
        ([{"x": 1}], "a polygon that is none"),
        ([[1, 1, 5, 1, 5, 5], [1, 1]], "2 coordinates"),
        ({}, "another size"),
        ({"size": [8, 8]}, "broken RLE"),
        ({"size": [4, 16], "counts": [64]}, "another size"),
        ({"size": "88", "counts": [64]}, "another size"),
        ({"size": [8, 8], "counts": [63]}, "63 pixels in all"),
        ({"size": [8, 8], "counts": [60, 5]}, "65 pixels in all"),
        ({"size": [8, 8], "counts": [70, -6]}, "broken RLE"),
        ({"size": [8, 8], "counts": [32.5, 31.5]}, "broken RLE"),
        ({"size": [8, 8], "counts": [2**70]}, "broken RLE"),
        ({"size": [8, 8], "counts": 64}, "broken RLE"),
        ({"size": [8, 8], "counts": ""}, "breaks off"),
        ({"size": [8, 8], "counts": "P"}, "breaks off"),
        ({"size": [8, 8], "counts": "0P2P"}, "breaks off"),
        ({"size": [8, 8], "counts": "P3"}, "96 pixels in all"),
        ({"size": [8, 8], "counts": "P2 "}, "place 2"),
        ({"size": [8, 8], "counts": "P2é"}, "place 2"),
        ({"size": [8, 8], "counts": "oooooooo0"}, "a number of 9 characters"),
        ({"size": [8, 8], "counts": "O"}, "a run of -1"),
    ],
)
def test_a_broken_outline_is_named(segmentation: Any, words: str) -> None:
    with pytest.raises(DataError) as caught:
        draw_mask([Region(1, segmentation, "file.json: image 3, annotation 4")], 8, 8)
    assert words in str(caught.value)
    sound = Region(1, box(0, 0, 2, 2), "sound")
    with pytest.raises(DataError) as among_others:
        draw_mask([sound, Region(1, segmentation, "file.json: image 3, annotation 4"), sound], 8, 8)
    assert str(among_others.value) == str(caught.value)
    assert caught.value.where == "file.json: image 3, annotation 4"
    assert caught.value.hint


def kind_of_fault(decode: Callable[[], object]) -> str | None:
    try:
        decode()
    except DataError as problem:
        return problem.what
    return None


@given(st.lists(st.binary(max_size=9) | st.text("0PoO`Q", max_size=9).map(str.encode), max_size=4))
@settings(max_examples=300, deadline=None)
def test_a_string_is_refused_among_others_if_and_only_if_it_is_refused_alone(strings: list[bytes]) -> None:
    def broken(text: bytes) -> bool:
        return kind_of_fault(lambda: decode_counts(text, "here")) == "broken RLE"

    together = outlines._decode_strings(strings)
    assert (together is None) == (not strings or any(map(broken, strings)))
    if together is not None:
        numbers, counts = together
        alone = [decode_counts(text, "here") for text in strings]
        assert (numbers.tolist(), counts.tolist()) == (np.concatenate(alone).tolist(), list(map(len, alone)))


@given(st.lists(st.floats() | st.integers(-30, 30) | st.none() | st.sampled_from(["", "x"]), max_size=9))
@settings(max_examples=300, deadline=None)
def test_a_polygon_is_decoded_or_named_by_one_of_three_faults(polygon: list[Any]) -> None:
    numbers = polygon if all(isinstance(value, float | int) for value in polygon) else []
    x, y = numbers[0::2], numbers[1::2]
    sound = (
        len(numbers) >= 6
        and len(numbers) % 2 == 0
        and all(-8 <= value <= 16 for value in x)
        and all(-8 <= value <= 16 for value in y)
    )
    fault = kind_of_fault(lambda: foreground_runs([polygon], 8, 8, "here"))
    assert fault is None if sound else fault is not None and fault.startswith("a polygon ")


@given(st.text(st.characters(min_codepoint=45, max_codepoint=114), max_size=12))
@settings(max_examples=300, deadline=None)
def test_any_string_is_either_the_whole_image_or_refused(text: str) -> None:
    try:
        (lengths,) = foreground_runs({"size": [8, 8], "counts": text}, 8, 8, "here")
    except DataError:
        return
    assert lengths.sum() == 64
    assert (lengths >= 0).all()
    decoded = coco_mask.decode({"size": [8, 8], "counts": text.encode()})
    np.testing.assert_array_equal(draw_mask([Region(1, {"size": [8, 8], "counts": text}, "")], 8, 8), decoded)


def test_the_smallest_thing_is_on_top_of_the_same_8_by_8_drawing() -> None:
    """A thing of 4 pixels shows on the larger one before it; all things cover the stuff, small as it is."""
    regions = [
        Region(1, box(1, 1, 7, 7), "large thing, first"),
        Region(2, box(2, 2, 4, 4), "small thing, second"),
        Region(3, box(3, 3, 5, 5), "as small, third"),
        Region(7, whole(), "wide stuff", stuff=True),
        Region(8, box(0, 0, 2, 2), "small stuff", stuff=True),
    ]
    drawing = """
        8 8 7 7 7 7 7 7
        8 1 1 1 1 1 1 7
        7 1 2 2 1 1 1 7
        7 1 2 2 3 1 1 7
        7 1 1 3 3 1 1 7
        7 1 1 1 1 1 1 7
        7 1 1 1 1 1 1 7
        7 7 7 7 7 7 7 7
    """
    expected = [[int(c) for c in line.split()] for line in drawing.split("\n") if line.split()]
    assert draw_mask(regions, 8, 8, overlap="smallest").tolist() == expected
    first = draw_mask(regions, 8, 8)
    assert set(first.ravel()) == {1, 7}


@given(overlapping())
@settings(max_examples=100, deadline=None)
def test_smallest_equals_first_of_the_annotations_sorted_by_size(case: Any) -> None:
    height, width, annotations = case
    regions = [Region(class_id, encode(inside), "") for class_id, inside in annotations]
    by_size = sorted(annotations, key=lambda annotation: int(annotation[1].sum()))
    np.testing.assert_array_equal(
        draw_mask(regions, height, width, overlap="smallest"), whole_mask_arithmetic(by_size, height, width)
    )


def test_the_settings_allow_the_rules_there_are() -> None:
    assert get_args(DataSettings.model_fields["overlap"].annotation) == OVERLAP_RULES


def test_an_unknown_overlap_rule_is_refused() -> None:
    with pytest.raises(UsageError, match="largest"):
        draw_mask([Region(1, whole(), "")], 8, 8, overlap="largest")
