"""Open a Hugging Face dataset for segmentation: Parquet files with a column of images and one of masks.

    **/train*.parquet or train/*.parquet           also validation, val or, where neither is there, test
    classes.csv                                    value,name, as in the layout masks; or
    id2label.json                                  {"0": "wall", ...}; 255 is unlabeled unless it is listed
    unpacked/                                      made here: the encoded images and masks as files

Training reads images one by one in random order, for which Parquet is slow. So the encoded bytes of both
columns are written to `unpacked` once, unchanged; again when the Parquet files are others. Nothing is
downloaded. Images are numbered by file and row, train first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.data.labels.label_space import LabelSpace
from pipeline.data.layouts.class_lists import read_classes, read_id2label
from pipeline.data.layouts.layout import StoredMask
from pipeline.data.layouts.paired import Pair, PairedLayout
from pipeline.data.layouts.png_masks import SOURCE, label_space_of
from pipeline.data.store.listing import list_files
from pipeline.runtime.errors import DataError
from pipeline.runtime.files import atomic_folder, write_json

SPLITS = {"train": ("train",), "val": ("validation", "val", "test")}
MASK_COLUMNS = (
    "label",
    "annotation",
    "mask",
    "segmentation",
    "labels",
    "annotations",
    "semantic_segmentation",
)
ENDINGS = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"II": ".tif", b"MM": ".tif", b"RI": ".webp", b"BM": ".bmp"}
ROWS = 16


def open_parquet(root: Path, keep_classes: Sequence[str | int] | None = None) -> PairedLayout:
    """Unpack the images and masks of a root where that is to be done, and list them.

    Args:
        root: the dataset's folder, as downloaded.
        keep_classes: names or class ids of the whole label space to keep; None for all.

    Raises:
        DataError: no Parquet files or list of classes, other columns, a row without an image or a mask.
        UsageError: an unknown class to keep.
    """
    path, label_space = _classes(root)
    label_space = label_space.subset(keep_classes)
    files = {split: _files(root, split) for split in SPLITS}
    made_from = {
        split: [[file.relative_to(root).as_posix(), file.stat().st_size] for file in of_split]
        for split, of_split in files.items()
    }
    if _record(root / "unpacked") != made_from:
        with atomic_folder(root / "unpacked", lambda folder: _record(folder) is not None) as folder:
            for split, of_split in files.items():
                _unpack(of_split, folder / split)
            write_json(folder / "unpacked.json", made_from)
    mask = partial(StoredMask, class_ids=label_space.lookup(SOURCE), listed=path.name)
    pairs: dict[str, list[Pair]] = {}
    number = 0
    for split in SPLITS:
        pairs[split] = []
        for image in sorted((root / "unpacked" / split / "images").iterdir()):
            number += 1
            stored = next((root / "unpacked" / split / "masks").glob(f"{image.stem}.*"))
            pairs[split].append(Pair(number, image.relative_to(root).as_posix(), mask(stored)))
    return PairedLayout(root, label_space, pairs, [path, *files["train"], *files["val"]])


def _classes(root: Path) -> tuple[Path, LabelSpace]:
    """Return the list of classes, and what it says."""
    path = root / "id2label.json"
    if not path.is_file():
        rows, colors = read_classes(root / "classes.csv")
        if colors:
            raise DataError(
                "a list of colors where values are wanted",
                where=root / "classes.csv",
                found="a header color,name",
                allowed="a header value,name",
                hint="list the numbers in the masks",
            )
        return root / "classes.csv", label_space_of(rows, root / "classes.csv")
    return path, label_space_of(sorted({255: "", **dict(read_id2label(path))}.items()), path)


def _files(root: Path, split: str) -> list[Path]:
    """Return the Parquet files of a split, by its first name for which there are any."""
    listed = [path for path in list_files(root, [".parquet"]) if not path.is_relative_to(root / "unpacked")]
    for name in SPLITS[split]:
        if found := [path for path in listed if path.name.startswith(name) or path.parent.name == name]:
            return found
    raise DataError(
        f"no Parquet file for {split}",
        where=root,
        found=", ".join(path.name for path in listed[:5]) or None,
        allowed=" or ".join(f"{name}*.parquet" for name in SPLITS[split]),
        hint="download the whole dataset: hf download NAME --repo-type dataset",
    )


def _record(folder: Path) -> dict[str, Any] | None:
    """Return what `unpacked` was made from; None where it is not ours or not whole."""
    try:
        record: dict[str, Any] = json.loads((folder / "unpacked.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record


def _unpack(files: Sequence[Path], folder: Path) -> None:
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number, (where, image, mask) in enumerate(row for file in files for row in _rows(file)):
        for kind, content in (("images", image), ("masks", mask)):
            data = (content or {}).get("bytes")
            if not data:
                what = f"a row without {'an image' if kind == 'images' else 'a mask'}"
                hint = (
                    "paths to files elsewhere are not followed: embed the images with datasets' push_to_hub"
                )
                raise DataError(what, where=where, hint=hint)
            ending = ENDINGS.get(data[:2], ".png")
            (folder / kind / f"{number:08d}{ending}").write_bytes(data)


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Place, image and mask of each row."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        opened = parquet.ParquetFile(file)
        names = opened.schema_arrow.names
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            "unreadable Parquet file", where=file, found=error, hint="download it again"
        ) from error
    masks = [name for name in MASK_COLUMNS if name in names]
    if "image" not in names or not masks:
        raise DataError(
            "no columns of images and masks",
            where=file,
            found=", ".join(names),
            allowed=f"image and one of {', '.join(MASK_COLUMNS)}",
            hint="rename the columns",
        )
    row = 0
    for batch in opened.iter_batches(ROWS, columns=["image", masks[0]]):
        for image, mask in zip(batch.column("image"), batch.column(masks[0]), strict=True):
            yield f"{file}, row {row}", image.as_py(), mask.as_py()
            row += 1
