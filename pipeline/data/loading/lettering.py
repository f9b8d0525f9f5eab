"""Write names of classes on pictures in a font that has their letters.

Latin, Cyrillic, Greek and more are in the font that comes with matplotlib. For other scripts the fonts of the
machine are searched. Where none has the letters, the class id stands for the name: never an empty box.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from pipeline.data.store.listing import list_files

FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    "C:/Windows/Fonts",
)
ENDINGS = (".ttf", ".otf", ".ttc")


class Label(NamedTuple):
    """A name and where its middle goes.

    Args:
        column: in pixels.
        row: in pixels.
        text: the name, and what else is to be written.
        otherwise: what to write where no font has the letters, in ASCII.
    """

    column: int
    row: int
    text: str
    otherwise: str


def write_labels(picture: Image.Image, labels: list[Label]) -> list[Label]:
    """Write labels on a picture, white on black outlines, moved so far that they lie inside.

    Returns:
        Those whose letters no font has.
    """
    draw, size = ImageDraw.Draw(picture), max(11, picture.height // 36)
    strange = []
    for label in labels:
        text = readable(label.text)
        font: ImageFont.FreeTypeFont | ImageFont.ImageFont | None = font_for(text, size)
        if font is None:
            strange.append(label)
            text = label.otherwise
            font = font_for(text, size) or ImageFont.load_default(size)
        left, top, right, bottom = draw.textbbox(
            (label.column, label.row), text, font=font, anchor="mm", stroke_width=2
        )
        across = max(-left, 0) or min(picture.width - right, 0)
        down = max(-top, 0) or min(picture.height - bottom, 0)
        draw.text(
            (label.column + across, label.row + down),
            text,
            fill="white",
            font=font,
            anchor="mm",
            stroke_width=2,
            stroke_fill="black",
        )
    return strange


def readable(text: str) -> str:
    """Return text in one line, letters and accents composed, without characters that show nothing."""
    composed = unicodedata.normalize("NFC", " ".join(text.split()))
    return "".join(one for one in composed if unicodedata.category(one)[0] != "C")


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont | None:
    """Return the first font with all letters of a text; None where there is none."""
    letters = frozenset(text) - {" "}
    path = _path_for(letters)
    return None if path is None else ImageFont.truetype(path, size)


@functools.lru_cache(maxsize=1024)
def _path_for(letters: frozenset[str]) -> Path | None:
    return next((path for path in _fonts() if letters <= _letters(path)), None)


def _fonts() -> Iterator[Path]:
    matplotlib = importlib.util.find_spec("matplotlib")  # not imported: it may want a folder to write to
    if matplotlib is not None and matplotlib.origin is not None:
        yield Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    yield from installed_fonts()


@functools.cache
def installed_fonts() -> tuple[Path, ...]:
    """Return the fonts of this machine."""
    folders = [Path(folder).expanduser() for folder in FOLDERS]
    return tuple(path for folder in folders if folder.is_dir() for path in list_files(folder, ENDINGS))


@functools.cache
def _letters(path: Path) -> frozenset[str]:
    """Return the letters of a font; none of one that cannot be scaled or read."""
    from fontTools.ttLib import TTFont

    try:
        with TTFont(path, lazy=True, fontNumber=0) as font:
            table = font.getBestCmap() if {"glyf", "CFF ", "CFF2"} & set(font.keys()) else None
    except Exception:  # a damaged font may raise nearly anything
        return frozenset()
    return frozenset(map(chr, table or ()))


def explain_strange(labels: list[Label]) -> None:
    """Say on stderr which names could not be written."""
    if labels:
        names = ", ".join(f"{label.otherwise}: {label.text}" for label in labels)
        text = f"no installed font has the letters of {names}; install one, such as Noto Sans CJK"
        print(text, file=sys.stderr, flush=True)
