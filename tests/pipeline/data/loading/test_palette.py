"""Classes of one picture have colors that people tell apart."""

from __future__ import annotations

from functools import cache
from itertools import combinations, pairwise

import numpy as np
import pytest
from PIL import Image, ImageCms

from pipeline.data.loading.palette import ALIKE, class_color, picture_colors

PROFILES = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
TRANSFORM = ImageCms.buildTransform(*PROFILES, "RGB", "LAB")


@cache
def lab(color: tuple[int, int, int]) -> np.ndarray:
    """CIELAB by way of another library."""
    found = np.asarray(ImageCms.applyTransform(Image.new("RGB", (1, 1), color), TRANSFORM))[0, 0]
    lightness, a, b = (int(value) for value in found)
    return np.array([lightness / 255 * 100, *(value - 256 if value > 127 else value for value in (a, b))])


def test_neighboring_classes_have_colors_of_their_own() -> None:
    colors = [class_color(class_id) for class_id in range(1, 1_285)]
    assert all(0 <= value <= 255 for color in colors for value in color)
    assert all(first != second for first, second in pairwise(colors))
    assert len(set(colors)) > 1_200


def test_a_lone_class_has_its_usual_color() -> None:
    assert picture_colors([7]) == {7: class_color(7)}
    assert picture_colors([]) == {}


@pytest.mark.parametrize("seed", range(5))
def test_no_two_classes_of_a_picture_look_alike(seed: int) -> None:
    ids = np.random.default_rng(seed).choice(np.arange(1, 1_285), 12, replace=False).tolist()
    colors = picture_colors(ids)
    assert colors.keys() == set(ids)
    distances = [np.linalg.norm(lab(a) - lab(b)) for a, b in combinations(colors.values(), 2)]
    assert min(distances) > ALIKE - 6  # the two ways round differently
    plain = [np.linalg.norm(lab(class_color(a)) - lab(class_color(b))) for a, b in combinations(ids, 2)]
    assert min(plain) < min(distances)


def test_what_is_predicted_alone_has_one_color_for_all_models() -> None:
    truth = [1, 5, 900]
    one, two = picture_colors(truth, [5, 17, 40]), picture_colors(truth, [40, 41, 1_000])
    assert [one[key] for key in (*truth, 40)] == [two[key] for key in (*truth, 40)]


def test_more_classes_than_colors_all_get_one() -> None:
    assert len(picture_colors(range(1, 400))) == 399
