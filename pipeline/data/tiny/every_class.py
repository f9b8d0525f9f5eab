"""Draw pictures in which every class occurs: textures and shapes made from the class's number.

For benchmarks that need all 1,284 classes at once, which the drawn scenes do not have. Class i is striped or
dotted in a pair of colors of its own and has an outline that it shares with others, so that it can be told
apart at a glance and learned in minutes. How often a class is drawn follows its LVIS frequency: a long tail.
"""

from __future__ import annotations

import colorsys
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from pipeline.data.labels.label_space import LVIS, ClassEntry
from pipeline.data.labels.merge import merge_categories
from pipeline.data.labels.official import official_categories
from pipeline.data.tiny.drawing import Canvas, Drawing, Figure, polygon, wavy_line
from pipeline.data.tiny.textures import Surface, dots, level_stripes, upright_stripes

COMMONNESS = {"f": 1.0, "c": 0.5, "r": 0.25, "stuff": 1.0}
"""Relative number of pictures of a class, by its frequency."""

_ROWS, _COLUMNS = 3, 3  # of cells with a thing each
_BANDS = 2  # of stuff behind them
_HUES, _TONES = 10, ((0.85, 0.95), (0.75, 0.5), (0.25, 0.75))  # tones: saturation and value
_PATTERNS = (level_stripes, upright_stripes, dots)
_PERIOD = 6.0  # pixels, in a picture 64 high
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


@dataclass(frozen=True)
class Cast:
    """The classes that a picture shows, by class id.

    Args:
        things: one for each cell.
        stuff: one for each band, from top to bottom.
    """

    things: tuple[int, ...]
    stuff: tuple[int, ...]


@cache
def _classes() -> tuple[ClassEntry, ...]:
    official = official_categories()
    return merge_categories(official.lvis, official.stuff, official.merged_pairs).classes


def fewest_pictures() -> int:
    """Return the pictures that a split needs to have room for every class."""
    things = sum(1 for entry in _classes() if entry.source == LVIS)
    stuff = len(_classes()) - things
    return max(-(-things // (_ROWS * _COLUMNS)), -(-stuff // _BANDS))


def deal(num_pictures: int, rng: np.random.Generator) -> list[Cast]:
    """Decide which picture shows which classes: each at least once, the frequent ones more often.

    Args:
        num_pictures: at least `fewest_pictures()`.
        rng: shuffles.
    """
    kinds = [[entry for entry in _classes() if (entry.source == LVIS) is thing] for thing in (True, False)]
    things, stuff = (
        rng.permutation(_copies(entries, num_pictures * places)).reshape(num_pictures, places)
        for entries, places in zip(kinds, (_ROWS * _COLUMNS, _BANDS), strict=True)
    )
    return [
        Cast(tuple(int(one) for one in of_cells), tuple(int(one) for one in of_bands))
        for of_cells, of_bands in zip(things, stuff, strict=True)
    ]


def _copies(entries: Sequence[ClassEntry], places: int) -> list[int]:
    """Return `places` class ids: each once, and the rest in proportion to their commonness."""
    weights = np.array([COMMONNESS[entry.frequency] for entry in entries])
    wanted = weights / weights.sum() * (places - len(entries))
    counts = np.floor(wanted).astype(int)
    counts[np.argsort(counts - wanted, kind="stable")[: places - len(entries) - counts.sum()]] += 1
    return [
        entry.class_id for entry, count in zip(entries, counts, strict=True) for _ in range(int(count) + 1)
    ]


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


def _figure(class_id: int) -> Figure:
    outline = polygon(_OUTLINES[class_id % len(_OUTLINES)])
    return Figure(_classes()[class_id - 1].name, (outline,), surface_of(class_id), (), (9.0, 9.0), 12.0)


def draw_cast(cast: Cast, rng: np.random.Generator, width: int, height: int) -> Drawing:
    """Draw a picture with a thing in each cell of a grid, in front of bands of stuff.

    Args:
        cast: the classes to show.
        rng: decides everything else.
        width: in pixels.
        height: in pixels.
    """
    canvas = Canvas(width, height, rng)
    for band, class_id in enumerate(cast.stuff):
        top = band * height / len(cast.stuff)
        line = top + wavy_line(rng, width, height / 16) if band else np.zeros(width)
        canvas.fill(_classes()[class_id - 1].name, surface_of(class_id), line)
    across, down = width / _COLUMNS, height / _ROWS
    for cell, class_id in enumerate(cast.things):
        row, column = divmod(cell, _COLUMNS)
        half = min(across, down) / 2 * float(rng.uniform(0.9, 1.1))
        x, y = ((place + 0.5 + float(rng.uniform(-0.08, 0.08))) for place in (column, row))
        canvas.place(_figure(class_id), x * across, y * down, half, is_thing=True, has_body=False)
    return canvas.finish(weather=False)
