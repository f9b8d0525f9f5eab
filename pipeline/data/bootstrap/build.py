"""From a dataset on disk to masks, splits, statistics and a label space.

The images are those that the dataset lists, in whatever layout (`pipeline.data.layouts.layout`): its train list
gives `train` and `holdout` (a part kept back for choosing checkpoints), its val list gives `val`. An image
without a single labeled pixel teaches and measures nothing: it is left out, by name. The output is the same
to the byte whatever the machine and the number of workers, and names no path outside the dataset:

    label_space.json label_space.csv     the classes
    train-000.arrow ...                  masks, see `pipeline.data.store.shards`
    class_statistics.csv                 images and pixels of each class in each split
    statistics.json                      the same, and sums: coverage, sources, frequency groups, never seen
    manifest.json                        how it was made, from what, what is in it and what was left out
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pipeline.data.annotations.index import RowReader
from pipeline.data.annotations.validation import ImageEntry
from pipeline.data.bootstrap.rasterize import check_overlap_rule, draw
from pipeline.data.bootstrap.statistics import as_json, class_table, statistics
from pipeline.data.labels.label_space import LabelSpace
from pipeline.data.layouts.layout import DEFAULT_OPTIONS, LayoutOptions, Shape, StoredMask
from pipeline.data.layouts.opening import open_layout
from pipeline.data.store.manifest import SPLITS, LeftOut, SplitCounts, describe, is_bootstrapped
from pipeline.data.store.shards import ROWS_PER_BATCH, MaskRow, compress_mask, serialize_rows, write_shard
from pipeline.runtime.errors import DataError, UsageError
from pipeline.runtime.files import atomic_folder, write_text
from pipeline.runtime.progress import Progress
from pipeline.runtime.workers import WorkerPool, ordered_map

IMAGES_PER_SHARD = 5_000


@dataclass(frozen=True)
class BootstrapResult:
    """What was made.

    Args:
        out: the folder.
        label_space: the classes.
        counts: by split.
        left_out: images that got no place.
    """

    out: Path
    label_space: LabelSpace
    counts: dict[str, SplitCounts]
    left_out: list[LeftOut]


def bootstrap(
    root: Path,
    out: Path,
    *,
    holdout_fraction: float = 0.1,
    holdout_seed: int = 0,
    overlap: str = "first",
    keep_classes: Sequence[str | int] | None = None,
    layout: str = "coco_lvis",
    options: LayoutOptions = DEFAULT_OPTIONS,
    pool: WorkerPool | None = None,
    check_images: bool = True,
    images_per_shard: int = IMAGES_PER_SHARD,
) -> BootstrapResult:
    """Bootstraps a dataset.

    Args:
        root: folder with images and `annotations/`.
        out: the folder to make; the output of an earlier run is replaced when the new one is whole.
        holdout_fraction: share of LVIS's train images to keep back, 0 <= fraction < 1. At least one is kept
            back and one left, where there are two.
        holdout_seed: which images are kept back; their ids and the seed alone decide.
        overlap: which annotation keeps a pixel claimed by several, see `pipeline.data.bootstrap.rasterize`.
        keep_classes: names or class ids of the whole label space to keep; None for all.
        layout: how the dataset lies on disk, see `pipeline.data.layouts.layout`.
        options: choices that concern a single layout.
        pool: processes that read and draw beside this one, see `pipeline.runtime.workers.worker_pool`.
        check_images: open each image for its size. Without it only its presence is checked.
        images_per_shard: the most images in one file of masks.

    Raises:
        DataError: anything missing, damaged or at odds in `root`; the first in the order of splits and ids.
        UsageError: an option out of range, an unknown class to keep, an `out` that is not ours.
    """
    check_overlap_rule(overlap)
    if not 0 <= holdout_fraction < 1:
        raise UsageError(
            "a value is out of range",
            where="data.holdout_fraction",
            found=holdout_fraction,
            allowed="0 <= fraction < 1",
        )
    root, out = Path(root), Path(out)
    with atomic_folder(out, is_bootstrapped) as folder:
        dataset = open_layout(layout, root, keep_classes, pool, options)
        splits = dataset.splits(holdout_fraction, holdout_seed)
        _check_presence(root, splits.images)
        left_out = list(splits.left_out)
        counts = {split: SplitCounts.zero(dataset.label_space.num_classes) for split in SPLITS}
        draw_some = partial(
            _draw_batch,
            root=root,
            overlap=overlap,
            check_image=check_images,
            num_classes=dataset.label_space.num_classes,
        )
        shards: dict[str, list[dict[str, object]]] = {split: [] for split in SPLITS}
        batches = list(_batches(splits.images, images_per_shard))
        work = ([(entry, dataset.content(entry)) for entry in batch.images] for batch in batches)
        drawn = zip(batches, ordered_map(draw_some, work, pool, chunk=1), strict=True)
        total = sum(map(len, splits.images.values()))
        with Progress("draw masks", total) as progress:
            for (split, part), of_shard in itertools.groupby(drawn, lambda pair: pair[0].shard):
                kept = _Kept(of_shard, counts[split], left_out, progress)
                name = f"{split}-{part:03d}.arrow"
                write_shard(folder / name, kept)
                shards[split].append({"file": name, "images": kept.number})
        _check_any_left(root, counts, left_out)
        label_space = dataset.label_space
        if dataset.counts_frequencies:
            label_space = label_space.with_frequencies(
                (counts["train"].images + counts["holdout"].images)[1:].tolist()
            )
        label_space.save(folder / "label_space.json")
        label_space.save_csv(folder / "label_space.csv")
        write_text(folder / "class_statistics.csv", class_table(label_space, counts))
        write_text(folder / "statistics.json", as_json(statistics(label_space, counts)))
        choices: dict[str, object] = {
            "layout": layout,
            **options.of(layout),
            "overlap": overlap,
            "keep_classes": None if keep_classes is None else list(keep_classes),
            "holdout": {"fraction": holdout_fraction, "seed": holdout_seed},
        }
        if dataset.quarantine:
            choices["quarantined"] = dataset.quarantine.describe()
        manifest = describe(label_space, choices, dataset.paths, counts, shards, left_out)
        write_text(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    return BootstrapResult(out, label_space, counts, left_out)


class _Batch(NamedTuple):
    """Images that a worker draws at once and that are stored together, and the file they go to."""

    shard: tuple[str, int]
    images: list[ImageEntry]


@dataclass
class _Drawn:
    """A drawn batch: its rows as they are stored, what they hold, and the images without a labeled pixel."""

    rows: bytes
    counts: SplitCounts
    empty: list[ImageEntry]


def _batches(images: Mapping[str, list[ImageEntry]], images_per_shard: int) -> Iterator[_Batch]:
    """Each split cut into files, and these into batches."""
    for split, entries in images.items():
        for part, start in enumerate(range(0, len(entries), images_per_shard)):
            end = min(start + images_per_shard, len(entries))
            for first in range(start, end, ROWS_PER_BATCH):
                yield _Batch((split, part), entries[first : min(first + ROWS_PER_BATCH, end)])


class _Kept:
    """The rows of one file, counted as they pass; images without any labeled pixel are noted."""

    def __init__(
        self,
        drawn: Iterable[tuple[_Batch, _Drawn]],
        counts: SplitCounts,
        left_out: list[LeftOut],
        progress: Progress,
    ) -> None:
        self.drawn, self.counts, self.left_out, self.progress = drawn, counts, left_out, progress
        self.number = 0

    def __iter__(self) -> Iterator[bytes]:
        for batch, drawn in self.drawn:
            self.counts.merge(drawn.counts)
            self.number += drawn.counts.num_images
            split, _ = batch.shard
            for entry in drawn.empty:
                self.left_out.append(LeftOut(entry.image_id, entry.file or "", split, "no labeled pixel"))
            if drawn.rows:
                yield drawn.rows
            self.progress.advance(steps=len(batch.images))


def _draw_batch(
    work: list[tuple[ImageEntry, list[Shape] | StoredMask]],
    *,
    root: Path,
    overlap: str,
    check_image: bool,
    num_classes: int,
) -> _Drawn:
    """Draws some images; this runs in the workers."""
    drawn = _Drawn(b"", SplitCounts.zero(num_classes), [])
    rows = []
    with RowReader() as reader:
        for image, content in work:
            if not isinstance(content, StoredMask):
                content = [
                    shape._replace(segmentation=reader.read(shape.segmentation, shape.where))
                    for shape in content
                ]
            row, stuff_pixels = _draw(image, content, root=root, overlap=overlap, check_image=check_image)
            if row.class_ids:
                drawn.counts.add(row, stuff_pixels)
                rows.append(row)
            else:
                drawn.empty.append(image)
    if rows:
        drawn.rows = serialize_rows(rows)
    return drawn


def _draw(
    image: ImageEntry, content: list[Shape] | StoredMask, *, root: Path, overlap: str, check_image: bool
) -> tuple[MaskRow, int]:
    """The row of an image, and how many of its pixels come from stuff annotations."""
    file = image.file or ""
    if check_image:
        _check_header(root / file, image)
    if isinstance(content, StoredMask):
        drawing = content.read(image.height, image.width)
    else:
        drawing = draw(content, image.height, image.width, overlap=overlap)
    mask = compress_mask(drawing.mask)
    row = MaskRow(
        image.image_id, file, image.height, image.width, mask, drawing.class_ids, drawing.pixel_counts
    )
    return row, drawing.stuff_pixels


def _check_header(path: Path, image: ImageEntry) -> None:
    """Compares the size of the stored raster, which is the one that COCO annotates whatever EXIF says."""
    from PIL import Image

    try:
        with Image.open(path) as opened:
            size = opened.size
    except Exception as error:  # Pillow raises nearly anything on damaged files
        raise DataError(
            "unreadable image",
            where=f"{path} (image {image.image_id})",
            found=error,
            hint="take the file from its source again",
        ) from error
    if size != (image.width, image.height):
        raise DataError(
            "an image of another size than its annotation",
            where=f"{path} (image {image.image_id})",
            found=f"{size[0]} x {size[1]} (width x height)",
            allowed=f"{image.width} x {image.height} as in the LVIS file",
            hint="take the original file; resized copies do not fit the annotations",
        )


def _check_presence(root: Path, images: Mapping[str, list[ImageEntry]]) -> None:
    """Raises for the first missing image, before any work is put into the others."""
    folders: dict[str, set[str]] = {}
    missing = []
    for entries in images.values():
        for entry in entries:
            folder, _, name = (entry.file or "").rpartition("/")
            if folder not in folders:
                path = root / folder
                folders[folder] = {file.name for file in path.iterdir()} if path.is_dir() else set()
            if name not in folders[folder]:
                missing.append(entry)
    if missing:
        path = root / (missing[0].file or "")
        raise DataError(
            "missing image" if path.parent.is_dir() else "missing folder of images",
            where=path if path.parent.is_dir() else path.parent,
            found=f"{len(missing)} listed images do not exist, first image {missing[0].image_id}",
            hint="unpack the archive of the images in the dataset's root: pipeline data fetch",
        )


def _check_any_left(root: Path, counts: Mapping[str, SplitCounts], left_out: list[LeftOut]) -> None:
    if counts["train"].num_images == 0:
        raise DataError(
            "no image to train on",
            where=root,
            found=f"{len(left_out)} listed images are without a labeled pixel",
            hint="check the annotations and data.keep_classes",
        )
