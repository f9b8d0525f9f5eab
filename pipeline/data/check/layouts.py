"""Check a dataset of any layout: read everything once and name all that is wrong.

The rules are those of bootstrapping, which stops at the first breach. `pipeline.data.check.check` has the
layout coco_lvis, whose faults can be put into quarantine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.data.annotations.index import RowReader
from pipeline.data.annotations.validation import ImageEntry
from pipeline.data.bootstrap.rle import foreground_runs
from pipeline.data.check.check import CheckResult, Report, check
from pipeline.data.check.image import examine_image
from pipeline.data.layouts.layout import DEFAULT_OPTIONS, LayoutOptions, Region, StoredMask
from pipeline.data.layouts.opening import layout_advice, open_layout
from pipeline.data.layouts.paired import PairedLayout, annotated_size
from pipeline.runtime.errors import DataError
from pipeline.runtime.progress import Progress
from pipeline.runtime.workers import ordered_map, worker_pool

NOT_JPEG = "an image that is not JPEG"  # no remark where the official images are PNGs


def check_layout(
    root: Path, layout: str = "coco_lvis", *, options: LayoutOptions = DEFAULT_OPTIONS, num_workers: int = 0
) -> CheckResult:
    """Check a dataset.

    Args:
        root: the dataset's folder.
        layout: how it lies on disk.
        options: choices that concern a single layout.
        num_workers: processes that decode images and read masks, this one among them.

    Raises:
        DataError: there is no such folder.
        UsageError: an unknown layout.
    """
    advice = layout_advice(layout, root)
    if layout == "coco_lvis" and root.is_dir() and not advice:
        return check(root, num_workers=num_workers)
    result = CheckResult(root)
    report = Report(result)
    if layout == "coco_lvis" and advice:  # instead of its four files one by one
        report.problem(".", DataError("no annotations of LVIS and COCO-Stuff here", where=root, hint=advice))
        return result
    if not root.is_dir():
        open_layout(layout, root, options=options)  # says so
    try:
        dataset = open_layout(layout, root, options=options)
        tasks = list(_tasks(dataset, root, report))
    except DataError as problem:  # nothing can be listed
        report.problem(_relative(root, problem), problem)
        return result
    with (
        worker_pool(num_workers, "pipeline.data.check.layouts") as pool,
        Progress("check images", len(tasks)) as progress,
    ):
        examined = ordered_map(examine_task, (task for _, task in tasks), pool)
        for (split, task), found in zip(tasks, examined, strict=True):
            _report(task, found, result.splits.setdefault(split, Counter()), report)
            progress.advance()
    return result


@dataclass(frozen=True)
class Task:
    """An image, its mask or annotations, the size that these state, and whether the image exists."""

    root: Path
    file: str
    content: StoredMask | list[Region]
    size: tuple[int, int] | None = None
    is_there: bool = True


@dataclass
class Examined:
    """What was found: problems, notes as (kind, detail), and the pixels of the image, all and labeled."""

    problems: list[DataError] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    pixels: int = 0
    labeled: int = 0


def examine_task(task: Task) -> Examined:
    """Decode an image to its last pixel, and read its mask or draw its annotations."""
    found = Examined()
    path = task.root / task.file
    if isinstance(task.content, StoredMask):
        _read_image_and_mask(path, task.content, found)
        return found
    assert task.size is not None  # annotations state it
    height, width = task.size
    if task.is_there and (
        problem := examine_image(path, ImageEntry(0, height, width, task.file), found.notes)
    ):
        found.problems.append(problem)
    _draw_regions(task.content, height, width, found)
    return found


def _read_image_and_mask(path: Path, mask: StoredMask, found: Examined) -> None:
    if problem := examine_image(path, None, found.notes):
        found.problems.append(problem)
    try:
        if problem is None:
            height, width = annotated_size(path, mask)
        else:
            height, width = mask.numbers().shape
        drawing = mask.read(height, width)
    except DataError as wrong:
        found.problems.append(wrong)
        return
    found.pixels, found.labeled = height * width, sum(drawing.pixel_counts)
    if not found.labeled:
        found.notes.append(("an image without a labeled pixel", "bootstrapping leaves it out"))


def _draw_regions(regions: list[Region], height: int, width: int, found: Examined) -> None:
    found.pixels = height * width
    with RowReader() as reader:
        for region in regions:
            try:
                runs = foreground_runs(
                    reader.read(region.segmentation, region.where), height, width, region.where
                )
            except DataError as problem:
                found.problems.append(problem)
                continue
            if not any(lengths[1::2].any() for lengths in runs):
                found.notes.append(("an annotation that covers no pixel", region.where))
    if not regions:
        found.notes.append(("an image without annotations", "bootstrapping leaves it out"))


def _tasks(dataset: Any, root: Path, report: Report) -> Iterator[tuple[str, Task]]:
    """Return the images of all splits; what is wrong with the list of files is reported at once."""
    if isinstance(dataset, PairedLayout):
        for problem in dataset.problems:
            report.problem(_relative(root, problem), problem)
        for where, kind, detail in dataset.remarks:
            report.note(where.relative_to(root).as_posix(), kind, detail)
        for split, pairs in dataset.pairs.items():
            if not pairs:
                empty = dataset.empty_split(split)
                report.problem(".", empty)
            for pair in pairs:
                yield split, Task(root, pair.image, pair.mask)
        listed = {
            split: [ImageEntry(pair.image_id, 1, 1, pair.image) for pair in pairs]
            for split, pairs in dataset.pairs.items()
        }
        report.copies(listed)
        return
    divided = dataset.splits(0, 0)
    images = divided.images
    for left in divided.left_out:
        report.note(
            left.file, "an image that bootstrapping leaves out", f"image {left.image_id}: {left.reason}"
        )
    if not images["train"]:
        hint = "annotate some of its images"
        report.problem(".", DataError("no image to train on", where=root, hint=hint))
    report.copies(images)
    for split, entries in images.items():
        for entry in entries:
            is_there = (root / (entry.file or "")).exists()
            if not is_there:
                problem = dataset.missing_image(entry)
                report.problem(_relative(root, problem, entry.file or ""), problem)
            size = (entry.height, entry.width)
            yield split, Task(root, entry.file or "", dataset.content(entry), size, is_there)


def _report(task: Task, found: Examined, counts: Counter[str], report: Report) -> None:
    for problem in found.problems:
        report.problem(_relative(task.root, problem, task.file), problem)
    for kind, detail in found.notes:
        if kind != NOT_JPEG:
            report.note(task.file, kind, detail)
    counts["images"] += 1
    counts["pixels"] += found.pixels
    counts["labeled"] += found.labeled


def _relative(root: Path, problem: DataError, otherwise: str = ".") -> str:
    """Return the file that a problem names, relative to the root; `otherwise` where it names none."""
    try:
        return Path(problem.where or "").relative_to(root).as_posix()
    except ValueError:
        return otherwise
