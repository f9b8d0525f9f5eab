"""Check one image and its annotations; worker processes share this work."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.data.annotations.index import RowReader, Span
from pipeline.data.annotations.validation import ImageEntry
from pipeline.data.bootstrap.rle import foreground_runs
from pipeline.data.store.images import open_image
from pipeline.data.store.orientation import read_frame
from pipeline.data.store.pixels import is_deep, rgb_pixels
from pipeline.runtime.errors import DataError

ORIGINAL = "take the original file from its source again"


@dataclass(frozen=True, slots=True)
class Outline:
    """One annotation: its file, its place there, its id and its segmentation."""

    file: str
    place: int
    annotation_id: int
    segmentation: Span
    stuff: bool


@dataclass(frozen=True)
class Task:
    """An image with its annotations in drawing order; `path` is None where only these are checked."""

    image: ImageEntry
    path: Path | None
    outlines: list[Outline]


@dataclass
class Examined:
    """What was found wrong or odd in a task.

    Args:
        image: what makes the image unusable, if anything does.
        notes: kind and detail of what is odd and harmless.
        outlines: broken annotations and what is wrong with them.
        hollow: annotations that cover no pixel.
        covered: pixels drawn from LVIS, and pixels only stuff covers.
    """

    image: DataError | None = None
    notes: list[tuple[str, str]] = field(default_factory=list)
    outlines: list[tuple[Outline, DataError]] = field(default_factory=list)
    hollow: list[Outline] = field(default_factory=list)
    covered: tuple[int, int] = (0, 0)


def examine(task: Task) -> Examined:
    """Decode the image to its last pixel and every annotation."""
    found = Examined()
    if task.path is not None:
        found.image = examine_image(task.path, task.image, found.notes)
    height, width = task.image.height, task.image.width
    columns = np.zeros(height * width, np.uint8)
    with RowReader() as reader:
        for outline in reversed(task.outlines):
            where = f"{outline.file}: image {task.image.image_id}, annotation {outline.annotation_id}"
            try:
                segmentation = reader.read(outline.segmentation, where)
                runs = foreground_runs(segmentation, height, width, where)
            except DataError as problem:
                found.outlines.append((outline, problem))
                continue
            if not any(lengths[1::2].any() for lengths in runs):
                found.hollow.append(outline)
            for lengths in runs:
                inside = np.repeat(np.arange(len(lengths)) & 1 == 1, lengths)
                columns[inside] = 2 if outline.stuff else 1
    found.covered = int((columns == 1).sum()), int((columns == 2).sum())
    return found


def examine_image(path: Path, image: ImageEntry | None, notes: list[tuple[str, str]]) -> DataError | None:
    """Decode an image to its last pixel; return what is wrong with it, and add to `notes` what is odd.

    Args:
        path: of the file.
        image: has the size of the annotation; None where that is checked elsewhere.
        notes: gains kind and detail of what is odd.
    """
    from PIL import ImageFile

    def problem(what: str, found: object, allowed: object = None) -> DataError:
        return DataError(what, where=path, found=found, allowed=allowed, hint=ORIGINAL)

    if not path.exists():
        return problem("missing image", "a link to nothing" if path.is_symlink() else "it does not exist")
    if not path.is_file():
        return problem("unreadable image", "not a file")
    if path.stat().st_size == 0:
        return problem("empty image file", "0 bytes")
    assert not ImageFile.LOAD_TRUNCATED_IMAGES  # else half an image would pass for a whole one
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's on odd metadata
            with open_image(path) as opened:
                if image is not None:
                    read_frame(opened).require((image.height, image.width), str(path))
                mode, kind, pages = opened.mode, opened.format, getattr(opened, "n_frames", 1)
                opened.load()
                if is_deep(opened):
                    rgb_pixels(opened)
                    values = np.asarray(opened)
                    low, high = values.min(), values.max()
    except DataError as error:
        truncated = "truncated" in (error.found or "").lower()
        if truncated or error.what == "unreadable image":
            return problem("truncated image" if truncated else error.what, error.found)
        return error
    if mode.startswith("I") or mode == "F":
        detail = f"stored as {mode}, from {low:g} to {high:g}; it is scaled by the rule in docs/data.md"
        notes.append(("an image of more than 8 bits", detail))
    elif mode != "RGB":
        notes.append(("an image that is not RGB", f"stored as {mode}; it is converted when read"))
    if kind not in ("JPEG", "MPO"):
        notes.append(("an image that is not JPEG", f"stored as {kind}; it is read all the same"))
    if pages > 1 and kind != "MPO":
        notes.append(("an image file of several pictures", f"{pages} pages or frames; the first is read"))
    return None
