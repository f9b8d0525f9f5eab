"""VOC's masks keep their classes when a tool has sorted their palette anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.layouts.voc_palette import voc_palette, voc_values

PUBLISHED = {
    0: (0, 0, 0),
    1: (128, 0, 0),
    2: (0, 128, 0),
    3: (128, 128, 0),
    8: (64, 0, 0),
    255: (224, 224, 192),
}
VALUES = np.array([[0, 1, 2, 3], [20, 15, 255, 0]], np.uint8)


def save(path: Path, values: np.ndarray, palette: np.ndarray) -> None:
    image = Image.fromarray(values)
    image.putpalette(palette.astype(np.uint8).ravel().tolist())
    image.save(path)


def test_the_palette_is_the_published_one() -> None:
    palette = voc_palette()
    assert {index: tuple(palette[index].tolist()) for index in PUBLISHED} == PUBLISHED
    assert len(np.unique(palette, axis=0)) == 256


def test_a_palette_in_order_gives_its_indices(tmp_path: Path) -> None:
    save(tmp_path / "a.png", VALUES, voc_palette())
    np.testing.assert_array_equal(voc_values(tmp_path / "a.png"), VALUES)


@pytest.mark.parametrize("seed", range(3))
def test_a_palette_sorted_anew_gives_the_same_classes(tmp_path: Path, seed: int) -> None:
    used = np.random.default_rng(seed).permutation(np.unique(VALUES))
    indices = np.searchsorted(np.sort(used), VALUES)
    place = np.argsort(np.argsort(used))  # where each of the sorted values went
    moved = np.argsort(place)[indices].astype(np.uint8)
    save(tmp_path / "a.png", moved, voc_palette()[used])
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "a.png").convert("RGB")), voc_palette()[VALUES]
    )
    np.testing.assert_array_equal(voc_values(tmp_path / "a.png"), VALUES)


def test_a_palette_of_other_colors_and_plain_gray_count_by_their_numbers(tmp_path: Path) -> None:
    save(tmp_path / "a.png", VALUES, np.arange(768) % 251)
    Image.fromarray(VALUES).save(tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        np.testing.assert_array_equal(voc_values(tmp_path / name), VALUES)
