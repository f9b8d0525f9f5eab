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
        found.image = _examine_image(task.path, task.image, found.notes)
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


def _examine_image(path: Path, image: ImageEntry, notes: list[tuple[str, str]]) -> DataError | None:
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
            warnings.simplefilter("ignore")  # Pillow's on odd metadata and large images
            with open_image(path) as opened:
                if opened.size != (image.width, image.height):
                    return problem(
                        "an image of another size than its annotation",
                        f"{opened.size[0]} x {opened.size[1]} (width x height)",
                        f"{image.width} x {image.height}",
                    )
                mode, kind = opened.mode, opened.format
                opened.load()
    except DataError as error:
        truncated = "truncated" in (error.found or "").lower()
        return problem("truncated image" if truncated else error.what, error.found)
    if mode != "RGB":
        notes.append(("an image that is not RGB", f"stored as {mode}; it is converted when read"))
    if kind != "JPEG":
        notes.append(("an image that is not JPEG", f"stored as {kind}; it is read all the same"))
    return None
