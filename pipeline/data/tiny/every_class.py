"""Draw pictures in which every class occurs: textures and shapes made from the class's number.

For benchmarks that need all 1,284 classes at once, which the drawn scenes do not have. Class i is striped or
dotted in a pair of colors of its own and has an outline that it shares with others, so that it can be told
apart at a glance and learned in minutes. How often a class is drawn follows its LVIS frequency: a long tail.
"""

from __future__ import annotations

import colorsys
import itertools
from collections.abc import Sequence
from functools import cache

import numpy as np

from pipeline.data.labels.label_space import LVIS, ClassEntry
from pipeline.data.labels.merge import merge_categories
from pipeline.data.labels.official import official_categories
from pipeline.data.tiny.drawing import Canvas, Drawing, Figure, polygon
from pipeline.data.tiny.textures import Surface, dots, level_stripes, upright_stripes

COMMONNESS = {"f": 1.0, "c": 0.6, "r": 0.3, "stuff": 1.0}
"""Relative number of pictures of a class, by its frequency."""

_ROWS, _COLUMNS = 3, 3  # of cells with a class each
_HUES, _TONES = 10, ((0.85, 0.95), (0.75, 0.5), (0.25, 0.75))  # tones: saturation and value
_PATTERNS = (level_stripes, upright_stripes, dots)
_PERIOD = 6.0  # pixels, in a picture 64 high
_PATCH = "box -1 -1 1 1"  # stuff
_OUTLINES = (
    "box -0.8 -0.95 0.8 0.95",
    "box -1 -0.7 1 0.7",
    "ellipse 0 0 0.95 0.95",
    "ellipse 0 0 0.7 1",
    "polygon 0 -1 1 0 0 1 -1 0",
    "polygon -1 0.9 0 -1 1 0.9",
    "polygon -1 -0.9 1 -0.9 0 1",
    "polygon -0.5 -1 0.5 -1 1 0 0.5 1 -0.5 1 -1 0",
    "polygon -1 -1 0.2 -1 0.2 0 1 0 1 1 -1 1",
    "star 5 0.6",
    "star 4 0.6",
)


@cache
def _classes() -> tuple[ClassEntry, ...]:
    official = official_categories()
    return merge_categories(official.lvis, official.stuff, official.merged_pairs).classes


def fewest_pictures() -> int:
    """Return the pictures that a split needs to have room for every class."""
    return -(-len(_classes()) // (_ROWS * _COLUMNS))


def deal(num_pictures: int, rng: np.random.Generator) -> list[list[int]]:
    """Decide which picture shows which classes: each at least once, the frequent ones more often.

    Args:
        num_pictures: at least `fewest_pictures()`.
        rng: shuffles.

    Returns:
        The class ids in the cells of each picture, row by row.
    """
    places = num_pictures * _ROWS * _COLUMNS
    weights = np.array([COMMONNESS[entry.frequency] for entry in _classes()])
    wanted = weights / weights.sum() * (places - len(weights))
    counts = 1 + np.floor(wanted).astype(int)
    counts[np.argsort(counts - wanted, kind="stable")[: places - counts.sum()]] += 1
    dealt = rng.permutation(np.repeat(np.arange(1, len(weights) + 1), counts))
    return [[int(one) for one in cells] for cells in dealt.reshape(num_pictures, -1)]


def surface_of(class_id: int) -> Surface:
    """Return what a class is made of: no two classes have both colors and the pattern in common."""
    pairs = list(itertools.combinations(range(_HUES * len(_TONES)), 2))
    place = (class_id - 1) * 101 % len(pairs)  # neighbors in the list get unlike colors
    dark, light = (_color(number) for number in pairs[place])
    return Surface(_PATTERNS[(class_id - 1) // len(pairs)], dark, light, _PERIOD)


def _color(number: int) -> str:
    saturation, value = _TONES[number // _HUES]
    shares = colorsys.hsv_to_rgb(number % _HUES / _HUES, saturation, value)
    return "#" + "".join(f"{round(255 * share):02x}" for share in shares)


def _figure(entry: ClassEntry) -> Figure:
    outline = polygon(_OUTLINES[entry.class_id % len(_OUTLINES)] if entry.source == LVIS else _PATCH)
    return Figure(entry.name, (outline,), surface_of(entry.class_id), (), (8.0, 8.0), 12.0)


def draw_cells(class_ids: Sequence[int], rng: np.random.Generator, width: int, height: int) -> Drawing:
    """Draw a picture with a class in each cell of a grid, on nothing that has a name.

    Args:
        class_ids: the classes to show, row by row.
        rng: decides everything else.
        width: in pixels.
        height: in pixels.
    """
    canvas = Canvas(width, height, rng)
    canvas.image[:] = rng.uniform(90, 160)
    across, down = width / _COLUMNS, height / _ROWS
    for cell, class_id in enumerate(class_ids):
        row, column = divmod(cell, _COLUMNS)
        half = min(across, down) / 2 * float(rng.uniform(0.9, 1.1))
        x, y = ((place + 0.5 + float(rng.uniform(-0.08, 0.08))) for place in (column, row))
        entry = _classes()[class_id - 1]
        is_thing = entry.source == LVIS
        canvas.place(_figure(entry), x * across, y * down, half, is_thing=is_thing, has_body=False)
    return canvas.finish(weather=False)
