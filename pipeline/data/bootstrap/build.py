"""Make masks, splits, statistics and a label space from a dataset on disk.

The dataset lists the images, in any layout of `pipeline.data.layouts.layout`. Its train list gives `train`
and `holdout` (held out to choose checkpoints), its val list gives `val`. An image without a labeled pixel is
left out, by name. The output has the same bytes on every machine and with any number of workers. It names no
path outside the dataset:

    label_space.json label_space.csv     the classes
    train-000.arrow ...                  masks, see `pipeline.data.store.shards`
    looked_for.npz                       the classes that were looked for in each image, in LVIS's form only
    class_statistics.csv                 images and pixels of each class in each split
    statistics.json                      the same, and sums: coverage, sources, frequency groups, never seen
    manifest.json                        how it was made, from what, what is in it and what was left out
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pipeline.data.annotations.index import RowReader
from pipeline.data.annotations.validation import ImageEntry
from pipeline.data.bootstrap.options import BootstrapOptions
from pipeline.data.bootstrap.rasterize import rasterize
from pipeline.data.bootstrap.remarks import warn_of_copies, warn_of_nothing, warn_of_scaled_values
from pipeline.data.bootstrap.statistics import as_json, class_table, label_space_table, statistics
from pipeline.data.labels.label_space import LabelSpace
from pipeline.data.layouts.duplicates import Copies, find_copies
from pipeline.data.layouts.layout import ClassMask, Layout, Region, StoredMask
from pipeline.data.layouts.opening import open_layout
from pipeline.data.store.images import open_image
from pipeline.data.store.looked_for import LookedFor
from pipeline.data.store.manifest import SPLITS, LeftOut, SplitCounts, describe, is_bootstrapped
from pipeline.data.store.orientation import read_frame
from pipeline.data.store.pixels import is_deep, rgb_pixels
from pipeline.data.store.shards import ROWS_PER_BATCH, MaskRow, compress_mask, serialize_rows, write_shard
from pipeline.runtime.errors import DataError, UsageError
from pipeline.runtime.files import atomic_folder, write_json, write_text
from pipeline.runtime.progress import Progress
from pipeline.runtime.workers import WorkerPool, ordered_map


@dataclass(frozen=True)
class BootstrapResult:
    """What bootstrapping made.

    Args:
        out: the folder.
        label_space: the classes.
        counts: by split.
        left_out: images that are in no split.
        copies: photographs that are listed more than once; not looked for without `check_images`.
    """

    out: Path
    label_space: LabelSpace
    counts: dict[str, SplitCounts]
    left_out: list[LeftOut]
    copies: list[Copies] = field(default_factory=list)


def bootstrap(
    root: Path, out: Path, options: BootstrapOptions | None = None, *, pool: WorkerPool | None = None
) -> BootstrapResult:
    """Bootstrap a dataset.

    Args:
        root: folder with images and `annotations/`.
        out: the folder to make; the output of an earlier run is replaced when the new one is whole.
        options: how to read, split and draw; None for the defaults.
        pool: processes that read and draw beside this one, see `pipeline.runtime.workers.worker_pool`.

    Raises:
        DataError: anything missing, damaged or at odds in `root`; the first in the order of splits and ids.
        UsageError: an unknown layout or class to keep, an `out` that is not ours.
    """
    options = options or BootstrapOptions()
    root, out = Path(root), Path(out)
    _require_name(out)
    with atomic_folder(out, is_bootstrapped) as folder:
        dataset = open_layout(options.layout, root, options.keep_classes, pool, options.of_layout)
        splits = dataset.splits(options.holdout_fraction, options.holdout_seed)
        _check_presence(root, dataset, splits.images)
        copies = find_copies(root, splits.images) if options.check_images else []
        warn_of_copies(copies)
        left_out = list(splits.left_out)
        counts, shards = _draw_all(root, folder, dataset, splits.images, options, pool, left_out)
        _check_any_left(root, counts, left_out)
        warn_of_scaled_values(dataset.label_space, counts)
        warn_of_nothing(root, counts)
        _write_looked_for(folder, dataset, splits.images)
        label_space = _with_frequencies(dataset, counts)
        label_space.save(folder / "label_space.json")
        write_text(folder / "label_space.csv", label_space_table(label_space))
        write_text(folder / "class_statistics.csv", class_table(label_space, counts))
        write_text(folder / "statistics.json", as_json(statistics(label_space, counts)))
        choices = _choices(options, dataset)
        if copies:
            choices["copies"] = [one._asdict() for one in copies]
        write_json(
            folder / "manifest.json", describe(label_space, choices, dataset.paths, counts, shards, left_out)
        )
    return BootstrapResult(out, label_space, counts, left_out, copies)


def _require_name(out: Path) -> None:
    """Require an output that can be made beside its place and moved there whole."""
    if out.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise UsageError(
            "the output cannot be the current folder or one above it",
            where=out,
            found=out.resolve(),
            allowed="a folder of its own, which is made whole and then takes the place of an older one",
            hint="name a folder below, such as bootstrapped",
        )


def _draw_all(
    root: Path,
    folder: Path,
    dataset: Layout,
    images: Mapping[str, list[ImageEntry]],
    options: BootstrapOptions,
    pool: WorkerPool | None,
    left_out: list[LeftOut],
) -> tuple[dict[str, SplitCounts], dict[str, list[dict[str, object]]]]:
    """Write the masks of all images to `folder`; return what each split holds and the files of each.

    Images without a labeled pixel are appended to `left_out`.
    """
    num_classes = dataset.label_space.num_classes
    counts = {split: SplitCounts.zero(num_classes) for split in SPLITS}
    shards: dict[str, list[dict[str, object]]] = {split: [] for split in SPLITS}
    draw_batch = partial(_draw_batch, root=root, options=options, num_classes=num_classes)
    batches = list(_batches(images, options.images_per_shard))
    work = ([(entry, dataset.content(entry)) for entry in batch.images] for batch in batches)
    drawn = zip(batches, ordered_map(draw_batch, work, pool, chunk=1), strict=True)
    with Progress("draw masks", sum(map(len, images.values()))) as progress:
        for (split, part), of_shard in itertools.groupby(drawn, lambda pair: pair[0].shard):
            kept = _Kept(of_shard, counts[split], left_out, progress)
            name = f"{split}-{part:03d}.arrow"
            write_shard(folder / name, kept)
            shards[split].append({"file": name, "images": kept.number})
    return counts, shards


def _write_looked_for(folder: Path, dataset: Layout, images: Mapping[str, list[ImageEntry]]) -> None:
    """Write which classes were looked for in which image, where the dataset tells."""
    entries = [entry for of_split in images.values() for entry in of_split]
    listed = {entry.image_id: dataset.looked_for(entry) for entry in entries}
    known = {image_id: class_ids for image_id, class_ids in listed.items() if class_ids is not None}
    if known:
        LookedFor.of(known).save(folder)


def _with_frequencies(dataset: Layout, counts: Mapping[str, SplitCounts]) -> LabelSpace:
    """Return the label space, with frequency groups counted here where the files have none."""
    if not dataset.counts_frequencies:
        return dataset.label_space
    images = counts["train"].images + counts["holdout"].images
    return dataset.label_space.with_frequencies(images[1:].tolist())


def _choices(options: BootstrapOptions, dataset: Layout) -> dict[str, object]:
    """Return the options that shaped the result, for the manifest."""
    choices: dict[str, object] = {
        "layout": options.layout,
        **options.of_layout.of(options.layout),
        "overlap": options.overlap,
        "keep_classes": None if options.keep_classes is None else list(options.keep_classes),
        "holdout": {"fraction": options.holdout_fraction, "seed": options.holdout_seed},
        **dataset.choices(),
    }
    if dataset.quarantine:
        choices["quarantined"] = dataset.quarantine.describe()
    return choices


class _Batch(NamedTuple):
    """Images that a worker draws together, and the file they are stored in."""

    shard: tuple[str, int]
    images: list[ImageEntry]


@dataclass
class _Drawn:
    """A drawn batch: its rows as they are stored, what they hold, and the images without a labeled pixel."""

    rows: bytes
    counts: SplitCounts
    empty: list[ImageEntry]


def _batches(images: Mapping[str, list[ImageEntry]], images_per_shard: int) -> Iterator[_Batch]:
    """Cut each split into files, and these into batches."""
    for split, entries in images.items():
        for part, start in enumerate(range(0, len(entries), images_per_shard)):
            end = min(start + images_per_shard, len(entries))
            for first in range(start, end, ROWS_PER_BATCH):
                yield _Batch((split, part), entries[first : min(first + ROWS_PER_BATCH, end)])


class _Kept:
    """Yields the rows of one file and counts them; images without a labeled pixel are recorded."""

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
    work: list[tuple[ImageEntry, list[Region] | StoredMask]],
    *,
    root: Path,
    options: BootstrapOptions,
    num_classes: int,
) -> _Drawn:
    """Draw some images; this runs in the workers."""
    drawn = _Drawn(b"", SplitCounts.zero(num_classes), [])
    rows = []
    with RowReader() as reader:
        for image, content in work:
            if options.check_images:
                _check_image(root / (image.file or ""), image)
            made = _class_mask(image, content, reader, options.overlap)
            if not made.class_ids:
                drawn.empty.append(image)
                continue
            row = MaskRow(
                image.image_id,
                image.file or "",
                image.height,
                image.width,
                compress_mask(made.mask),
                made.class_ids,
                made.pixel_counts,
            )
            drawn.counts.add(row, made.stuff_pixels)
            rows.append(row)
    if rows:
        drawn.rows = serialize_rows(rows)
    return drawn


def _class_mask(
    image: ImageEntry, content: list[Region] | StoredMask, reader: RowReader, overlap: str
) -> ClassMask:
    """Read the stored mask of an image, or rasterize its annotations."""
    if isinstance(content, StoredMask):
        return content.read(image.height, image.width)
    regions = [
        region._replace(segmentation=reader.read(region.segmentation, region.where)) for region in content
    ]
    return rasterize(regions, image.height, image.width, overlap=overlap)


def _check_image(path: Path, image: ImageEntry) -> None:
    """Check an image's size against its annotation's; pixels are decoded where their range may be unclear."""
    where = f"{path} (image {image.image_id})"
    with open_image(path, where=where) as opened:
        read_frame(opened).require((image.height, image.width), where)
        if is_deep(opened):
            rgb_pixels(opened)


def _check_presence(root: Path, dataset: Layout, images: Mapping[str, list[ImageEntry]]) -> None:
    """Raise for the first missing image, before any image is drawn."""
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
        first = dataset.missing_image(missing[0])
        raise DataError(
            first.what,
            where=first.where,
            found=f"{len(missing)} listed images do not exist; the first: {first.found}",
            allowed=first.allowed,
            hint=first.hint,
        )


def _check_any_left(root: Path, counts: Mapping[str, SplitCounts], left_out: list[LeftOut]) -> None:
    if counts["train"].num_images == 0:
        raise DataError(
            "no image to train on",
            where=root,
            found=f"{len(left_out)} listed images are without a labeled pixel",
            hint="check the annotations and data.keep_classes",
        )
