"""Choose the colors of classes in pictures."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping
from functools import cache

import numpy as np

from pipeline.data.loading.batch import IGNORE_INDEX

Color = tuple[int, int, int]
ALIKE = 36.0
"""Distance in CIELAB below which two colors are taken for one in a picture."""
TRIES = 120
XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
D65 = (0.95047, 1.0, 1.08883)
"""Linear sRGB to XYZ, and the white point."""


def class_color(class_id: int) -> Color:
    """Return the (red, green, blue) of a class id 1..C, 8 bits each.

    Hues follow the golden ratio, so neighboring ids look different; three lightnesses and two saturations.
    """
    train_id = class_id - 1
    hue = (train_id * 0.6180339887498949) % 1.0
    lightness, saturation = (0.42, 0.56, 0.70)[train_id % 3], (0.85, 0.55)[train_id // 3 % 2]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
    return round(red * 255), round(green * 255), round(blue * 255)


def picture_colors(class_ids: Iterable[int], others: Iterable[int] = ()) -> dict[int, Color]:
    """Return colors for the classes of one picture: each its own, unless an earlier one looks like it.

    Args:
        class_ids: of the picture, such as those of its truth. No two look alike, as far as there are colors.
        others: of its predictions. None looks like one of `class_ids`; what they get depends on these alone,
            so a class has one color in the predictions of all models.
    """
    colors: dict[int, Color] = {}
    for class_id in sorted(set(class_ids)):
        colors[class_id] = _unlike(class_id, colors)
    taken = dict(colors)
    return colors | {one: _unlike(one, taken) for one in sorted(set(others) - taken.keys())}


def _unlike(class_id: int, taken: Mapping[int, Color]) -> Color:
    """Return the first of a class's colors that no taken one looks like, or the one farthest from all."""
    if not taken:
        return class_color(class_id)
    near = np.array([_lab(color) for color in taken.values()])
    best, farthest = class_color(class_id), -1.0
    for attempt in range(TRIES):
        color = class_color(class_id + 7 * attempt)
        distance = float(np.linalg.norm(near - _lab(color), axis=1).min())
        if distance >= ALIKE:
            return color
        if distance > farthest:
            best, farthest = color, distance
    return best


@cache
def _lab(color: Color) -> tuple[float, float, float]:
    """CIELAB of an sRGB color, white point D65."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in color)]
    x, y, z = (
        sum(factor * value for factor, value in zip(row, linear, strict=True)) / white
        for row, white in zip(XYZ, D65, strict=True)
    )
    fx, fy, fz = (t ** (1 / 3) if t > 216 / 24_389 else (24_389 / 27 * t + 16) / 116 for t in (x, y, z))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def colorize(train_ids: np.ndarray, colors: Mapping[int, Color]) -> np.ndarray:
    """Color (H, W) train ids as (H, W, 3) uint8; unlabeled pixels are white.

    Args:
        train_ids: of the pixels.
        colors: by class id, which is the train id plus one.
    """
    ids, inverse = np.unique(train_ids, return_inverse=True)
    table = [(255, 255, 255) if one == IGNORE_INDEX else colors[int(one) + 1] for one in ids]
    return np.array(table, dtype=np.uint8)[inverse].reshape(*train_ids.shape, 3)
