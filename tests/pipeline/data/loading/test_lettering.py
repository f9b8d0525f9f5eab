"""Names are drawn with letters that a font has, inside the picture; else their ids stand for them."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.ft2font import FT2Font
from PIL import Image

from pipeline.data.loading import lettering
from pipeline.data.loading.lettering import Label, font_for, readable, write_labels


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose only fonts are matplotlib's."""
    monkeypatch.setattr(lettering, "installed_fonts", lambda: ())
    lettering._path_for.cache_clear()


def drawn(text: str, otherwise: str = "class 7") -> tuple[np.ndarray, list[Label]]:
    picture = Image.new("RGB", (300, 60), (90, 90, 90))
    strange = write_labels(picture, [Label(150, 30, text, otherwise)])
    return np.asarray(picture), strange


@pytest.mark.parametrize("name", ["cat", "кошка", "Straße café", "γάτα", "kedi ığş", "ne\u0301e"])
def test_latin_cyrillic_and_greek_have_their_letters(name: str) -> None:
    font = font_for(readable(name), 12)
    assert font is not None
    table = FT2Font(font.path).get_charmap()
    assert all(table.get(ord(letter)) for letter in readable(name).replace(" ", ""))
    picture, strange = drawn(name)
    assert strange == []
    assert not np.array_equal(picture, drawn("class 7")[0])


def test_letters_that_no_font_has_are_replaced_by_the_id() -> None:
    picture, (strange,) = drawn("新しい (7)")
    np.testing.assert_array_equal(picture, drawn("class 7")[0])
    assert strange.text == "新しい (7)"


def test_fonts_of_the_machine_are_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A font with mathematical letters stands for one with other scripts; a damaged one is passed over."""
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    (tmp_path / "broken.ttf").write_bytes(b"nothing")
    letter = next(
        chr(code)
        for code in sorted(FT2Font(str(fonts / "STIXGeneral.ttf")).get_charmap())
        if code not in FT2Font(str(fonts / "DejaVuSans.ttf")).get_charmap() and chr(code).isprintable()
    )
    assert font_for(letter, 12) is None
    lettering._path_for.cache_clear()
    monkeypatch.setattr(
        lettering, "installed_fonts", lambda: (tmp_path / "broken.ttf", fonts / "STIXGeneral.ttf")
    )
    font = font_for(letter, 12)
    assert font is not None
    assert Path(font.path).name == "STIXGeneral.ttf"


@pytest.mark.parametrize("place", [(0, 0), (299, 0), (0, 59), (299, 59)])
def test_labels_lie_inside_the_picture(place: tuple[int, int]) -> None:
    picture = Image.new("RGB", (300, 60))
    write_labels(picture, [Label(*place, "a name at the edge", "x")])
    at_edge = np.asarray(picture).any(axis=2)
    picture = Image.new("RGB", (300, 60))
    write_labels(picture, [Label(150, 30, "a name at the edge", "x")])
    assert at_edge.sum() == np.asarray(picture).any(axis=2).sum()


def test_line_breaks_and_invisible_characters_are_left_out() -> None:
    assert readable("a\n b\t\u200bc\x00") == "a b c"
