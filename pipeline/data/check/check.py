"""Read a dataset once, to its last pixel, and name everything that is wrong with it.

The rules and functions are those of bootstrapping, which stops at the first breach. A fault stops
bootstrapping or falsifies its result. A note is odd and harmless:
gray images, images nobody annotated, outlines that cover no pixel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.annotations.quarantine import Quarantine
from pipeline.data.annotations.reader import Source, check_files
from pipeline.data.annotations.schema import RESTORE
from pipeline.data.annotations.validation import (
    AnnotationFile,
    ImageEntry,
    category_disagreements,
    listed_twice,
    size_disagreement,
)
from pipeline.data.check.image import ORIGINAL, Examined, Outline, Task, examine
from pipeline.data.labels.official import LVIS_FILES, STUFF_FILES, official_categories
from pipeline.data.layouts.duplicates import find_copies
from pipeline.runtime.errors import DataError
from pipeline.runtime.files import csv_text, file_digest, write_text
from pipeline.runtime.progress import Progress
from pipeline.runtime.workers import WorkerPool, ordered_map, worker_pool

COLUMNS = ("file", "kind", "detail", "remedy", "weight", "quarantined")


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Args:
        file: relative to the dataset's root.
        kind: what is wrong, in words that are the same for all of its kind.
        detail: where in the file, what was found, what would be right.
        remedy: what to do.
        note: odd but harmless.
        row: list and place of the row to leave out, where that mends it.
        image_id: of the image to leave out, where that mends it.
    """

    file: str
    kind: str
    detail: str
    remedy: str
    note: bool = False
    row: tuple[str, int] | None = None
    image_id: int | None = None


@dataclass
class CheckResult:
    """All faults and notes, and the dataset in numbers.

    Args:
        root: the dataset.
        found: in the order of files and images.
        splits: for train and val: images, images with LVIS annotations, with stuff, with neither; pixels,
            pixels covered by LVIS and those covered by stuff alone.
        annotations: number by file.
        quarantine: what was in quarantine before.
    """

    root: Path
    found: list[Fault] = field(default_factory=list)
    splits: dict[str, Counter[str]] = field(default_factory=dict)
    annotations: dict[str, int] = field(default_factory=dict)
    quarantine: Quarantine = field(default_factory=Quarantine)

    @property
    def faults(self) -> list[Fault]:
        """The faults that are not in quarantine."""
        return [fault for fault in self.found if not fault.note and not self.is_quarantined(fault)]

    def add(self, problems: Iterable[DataError]) -> None:
        """Take in faults that were found elsewhere, such as damaged archives."""
        report = Report(self)
        for problem in problems:
            report.problem(Path(problem.where or ".").name, problem)

    def is_quarantined(self, fault: Fault) -> bool:
        """Whether bootstrapping passes the fault over already."""
        name = Path(fault.file).name
        if fault.row is not None:
            key, place = fault.row
            return place in self.quarantine.rows.get(name, {}).get(key, {})
        return fault.image_id is not None and fault.image_id in self.quarantine.images

    def kinds(self) -> list[tuple[str, str, int]]:
        """Return (weight, kind, number), the faults first, the most frequent first."""
        counts = Counter((self._weight(fault), fault.kind) for fault in self.found)
        rows = [(weight, kind, number) for (weight, kind), number in counts.items()]
        return sorted(rows, key=lambda row: (row[0] != "fault", row[0], -row[2], row[1]))

    def _weight(self, fault: Fault) -> str:
        return "note" if fault.note else "quarantined" if self.is_quarantined(fault) else "fault"

    def table(self) -> str:
        """Return CSV with one line for each fault and note."""
        rows = []
        for fault in self.found:
            weight, held = "note" if fault.note else "fault", self.is_quarantined(fault)
            rows.append([fault.file, fault.kind, fault.detail, fault.remedy, weight, "yes" if held else ""])
        return csv_text(COLUMNS, rows)

    def save(self, path: Path) -> None:
        """Write the table."""
        write_text(path, self.table())

    def put_into_quarantine(self) -> Path:
        """Record all rows and images that can be left out; an earlier record is replaced."""
        rows: dict[str, dict[str, dict[int, str]]] = {}
        images = {}
        for fault in self.found:
            if fault.row is not None:
                key, place = fault.row
                rows.setdefault(Path(fault.file).name, {}).setdefault(key, {})[place] = fault.kind
            elif fault.image_id is not None and not fault.note:
                images[fault.image_id] = fault.kind
        digests = {name: file_digest(self.root / "annotations" / name) for name in rows}
        self.quarantine = Quarantine(digests, rows, images)
        return self.quarantine.save(self.root)


def check(root: Path, *, num_workers: int = 0) -> CheckResult:
    """Check a dataset in the official layout.

    Args:
        root: folder with `train2017/`, `val2017/` and `annotations/`.
        num_workers: processes that decode images and draw annotations, this one among them.

    Raises:
        DataError: there is no such folder.
    """
    if not root.is_dir():
        raise DataError(
            "no such dataset folder", where=root, hint="fetch it: pipeline data fetch coco_lvis ROOT"
        )
    result = CheckResult(root)
    report = Report(result)
    with worker_pool(num_workers, "pipeline.data.check.image") as pool:
        files = _read_files(root, report, pool)
        _check_categories(files, report)
        _compare_files(files, report)
        tasks = list(_tasks(root, files, report))
        report.copies({name: [task.image for split, task in tasks if split == name] for name in LVIS_FILES})
        with Progress("check images", len(tasks)) as progress:
            for (split, task), examined in zip(
                tasks, ordered_map(examine, (task for _, task in tasks), pool), strict=True
            ):
                _report_examined(task, examined, result.splits[split], report)
                progress.advance()
    return result


class Report:
    """Collects faults and notes into a result."""

    def __init__(self, result: CheckResult) -> None:
        self.result = result
        try:
            stored = Quarantine.load(result.root)
            rows = {}
            for name, kept in stored.rows.items():
                stored.rows_of(result.root / "annotations" / name)
                rows[name] = kept
            result.quarantine = Quarantine(stored.digests, rows, stored.images)
        except DataError as problem:
            self.problem("annotations/quarantine.json", problem)

    def problem(
        self,
        file: str,
        problem: DataError,
        *,
        row: tuple[str, int] | None = None,
        image_id: int | None = None,
    ) -> None:
        """Take in a fault; `row` or `image_id` is what leaving out would mend it."""
        where = (problem.where or "").replace(f"{self.result.root}/", "")
        parts = [where if where != file else "", problem.found or ""]
        if problem.allowed:
            parts.append(f"allowed: {problem.allowed}")
        detail = "; ".join(part for part in parts if part)
        self.result.found.append(
            Fault(file, problem.what, detail, problem.hint or RESTORE, row=row, image_id=image_id)
        )

    def note(self, file: str, kind: str, detail: str, remedy: str = "none needed") -> None:
        """Take in what is odd and harmless."""
        self.result.found.append(Fault(file, kind, detail, remedy, note=True))

    def copies(self, images: Mapping[str, Iterable[ImageEntry]]) -> None:
        """Note the photographs that are listed more than once, by split."""
        for one in find_copies(self.result.root, images):
            self.note(one.files[0], one.kind, one.describe(), "keep one of them, or move all into one split")


def _read_files(root: Path, report: Report, pool: WorkerPool | None) -> dict[str, AnnotationFile]:
    """Read the official files and report what is wrong with them; return those that can be read, by name."""
    files = {}
    names = (*LVIS_FILES.values(), *STUFF_FILES)
    sources = [
        Source(root / "annotations" / name, "stuff" if name in STUFF_FILES else "lvis") for name in names
    ]
    for name, file in zip(names, check_files(sources, pool), strict=True):
        short = f"annotations/{name}"
        if isinstance(file, DataError):
            report.problem(short, file)
            continue
        for key, place, error in file.problems:
            # a category left out would change the classes without a word
            report.problem(short, error, row=None if key == "categories" else (key, place))
        report.result.annotations[name] = file.num_annotations
        files[name] = file
    return files


def _check_categories(files: dict[str, AnnotationFile], report: Report) -> None:
    """Compare the categories with the official lists."""
    official = official_categories()
    for name, file in files.items():
        rows = official.stuff if name in STUFF_FILES else official.lvis
        wanted = {row["id"]: row for row in rows}
        listed = {row["id"]: row for row in file.categories}
        for category_id, row in listed.items():
            for key in ("name", *(() if name in STUFF_FILES else ("frequency",))):
                if category_id not in wanted:
                    what, allowed = "a category that is not an official one", "the published list"
                elif row[key] != wanted[category_id][key]:
                    what, allowed = (
                        f"a category with another {key} than the official one",
                        wanted[category_id][key],
                    )
                else:
                    continue
                found = f"category {category_id}: {row[key]!r}"
                report.problem(f"annotations/{name}", DataError(what, found=found, allowed=allowed))
                break
        absent = [category_id for category_id in wanted if category_id not in listed]
        if absent:
            found = f"{len(absent)} of {len(wanted)}, first {absent[0]} {wanted[absent[0]]['name']!r}"
            report.problem(f"annotations/{name}", DataError("official categories are absent", found=found))


def _compare_files(files: dict[str, AnnotationFile], report: Report) -> None:
    """Compare the two LVIS files, and the two stuff files."""
    for names in (tuple(LVIS_FILES.values()), STUFF_FILES):
        if all(name in files for name in names):
            pair = [files[name] for name in names]
            for problem in category_disagreements(*pair):
                report.problem(f"annotations/{names[1]}", problem)
            for image_id, problem in listed_twice(*pair):
                report.problem(f"annotations/{names[1]}", problem, image_id=image_id)


def _tasks(root: Path, files: dict[str, AnnotationFile], report: Report) -> Iterator[tuple[str, Task]]:
    """Yield the images of LVIS by split and id, each with all that is drawn on it."""
    missing, owners = set(), dict[str, int]()
    for split, name in LVIS_FILES.items():
        counts = report.result.splits.setdefault(split, Counter())
        images = files[name].images.values() if name in files else ()
        for image in sorted(images, key=lambda entry: entry.image_id):
            path = root / (image.file or "")
            if not path.parent.is_dir():
                if path.parent not in missing:
                    missing.add(path.parent)
                    problem = DataError("missing folder of images", found="it does not exist", hint=ORIGINAL)
                    report.problem(str(path.parent.relative_to(root)), problem)
            elif (owner := owners.setdefault(image.file or "", image.image_id)) != image.image_id:
                twice = DataError("two images share a file", found=f"images {owner} and {image.image_id}")
                report.problem(image.file or "", twice, image_id=image.image_id)
            outlines = []
            for file_name, file in files.items():
                if differing := size_disagreement(image, file):
                    report.problem(f"annotations/{file_name}", differing, image_id=image.image_id)
                    continue
                stuff = file_name in STUFF_FILES
                outlines += [
                    Outline(file_name, row.place, row.id, row.segmentation, stuff)
                    for row in file.by_image.get(image.image_id, ())
                ]
            counts["images"] += 1
            counts["pixels"] += image.height * image.width
            for key, is_stuff in (("with LVIS", False), ("with stuff", True)):
                counts[key] += any(outline.stuff is is_stuff for outline in outlines)
            if not outlines:
                counts["without annotations"] += 1
                report.note(image.file or "", "an image without annotations", f"image {image.image_id}")
            yield split, Task(image, path if path.parent.is_dir() else None, outlines)


def _report_examined(task: Task, examined: Examined, counts: Counter[str], report: Report) -> None:
    file, image_id = task.image.file or "", task.image.image_id
    if examined.image is not None:
        report.problem(file, examined.image, image_id=image_id)
    for kind, detail in examined.notes:
        report.note(file, kind, detail)
    for outline, problem in reversed(examined.outlines):
        report.problem(f"annotations/{outline.file}", problem, row=("annotations", outline.place))
    for outline in reversed(examined.hollow):
        detail = f"image {image_id}, annotation {outline.annotation_id}"
        report.note(f"annotations/{outline.file}", "an annotation that covers no pixel", detail)
    counts["pixels of LVIS"] += examined.covered[0]
    counts["pixels of stuff alone"] += examined.covered[1]
