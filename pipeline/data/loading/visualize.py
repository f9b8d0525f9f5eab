"""Draw masks as pictures: 16-bit PNG files, overlays with class names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.loading.dataset import SegmentationDataset, read_image, require_root
from pipeline.data.loading.lettering import Label, explain_strange, write_labels
from pipeline.data.loading.palette import picture_colors
from pipeline.data.store.manifest import SPLITS
from pipeline.runtime.errors import UsageError
from pipeline.runtime.files import atomic_path
from pipeline.runtime.progress import Progress

LEAST_SIDE = 640
"""Pixels that the longer side of an overlay has at least."""
ROWS = 256
"""Of an image that are colored at once."""


def export_masks(bootstrapped: Path, folder: Path, *, split: str | None = None) -> int:
    """Write `<image_id:012d>.png` of class ids (16-bit gray, 0 = unlabeled) for each image.

    Args:
        bootstrapped: the folder made by `bootstrap`.
        folder: where to write; files of the same name are replaced one by one.
        split: train, holdout or val; None for all.

    Returns:
        The number of files.
    """
    datasets = [SegmentationDataset(bootstrapped, folder, name) for name in ([split] if split else SPLITS)]
    total = sum(map(len, datasets))
    folder.mkdir(parents=True, exist_ok=True)
    with Progress("write masks", total) as progress:
        for dataset in datasets:
            for index, image_id in enumerate(dataset.image_ids()):
                with atomic_path(folder / f"{image_id:012d}.png") as temporary:
                    Image.fromarray(dataset.class_mask(index)).save(temporary, format="PNG")
                progress.advance()
    return total


def list_images(bootstrapped: Path) -> Iterator[tuple[str, int, str]]:
    """Yield split, image id and file of each image, in the order of splits and ids."""
    for split in SPLITS:
        dataset = SegmentationDataset(bootstrapped, bootstrapped, split)
        for image_id, file in zip(dataset.image_ids(), dataset.files(), strict=True):
            yield split, image_id, file


def overlay(bootstrapped: Path, root: Path, image_id: int, *, scale: int | None = None) -> Image.Image:
    """Return the image with each class laid over it in a color of its own and named near its middle.

    Args:
        bootstrapped: the folder made by `bootstrap`.
        root: the dataset's folder with the images.
        image_id: of the image.
        scale: side of the square that each pixel becomes; None enlarges small images, to have room for names.

    Raises:
        DataError: nothing bootstrapped, no such dataset folder, or an unreadable image.
        UsageError: no split has the image.
    """
    require_root(root)
    listed: list[int] = []
    for split in SPLITS:
        dataset = SegmentationDataset(bootstrapped, root, split)
        ids = dataset.image_ids()
        if image_id in ids:
            row, mask = dataset.row(ids.index(image_id)), dataset.class_mask(ids.index(image_id))
            names = {i: dataset.label_space.classes[i - 1].name for i in row.class_ids}
            image = read_image(root / row.file, row.height, row.width)
            return _lay_over(image, mask, names, scale or max(1, -(-LEAST_SIDE // max(mask.shape))))
        listed += ids[:2]
    raise UsageError(
        "no such image",
        where=bootstrapped,
        found=image_id,
        allowed=f"an id of the splits, such as {', '.join(map(str, listed[:3]))}; "
        "what was left out is named in manifest.json",
        hint=f"pipeline data show {bootstrapped} lists them",
    )


def picture_format(path: Path) -> str:
    """Return Pillow's name for the format that a file's name ends in.

    Raises:
        UsageError: Pillow writes no such files.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind in Image.SAVE:
        return kind
    raise UsageError(
        "no such kind of picture", where=path, found=path.suffix or "no suffix", allowed=".png, .jpg"
    )


def _lay_over(image: np.ndarray, mask: np.ndarray, names: dict[int, str], scale: int) -> Image.Image:
    if scale > 1:
        image, mask = (one.repeat(scale, 0).repeat(scale, 1) for one in (image, mask))
    colors = picture_colors(names)
    table = np.zeros((max(names) + 1, 3), np.uint16)
    table[list(colors)] = list(colors.values())
    blended = image.copy()
    for first in range(0, len(mask), ROWS):
        rows = slice(first, first + ROWS)
        mixed = (image[rows] + table[mask[rows]]) // 2
        np.copyto(blended[rows], mixed.astype(np.uint8), where=mask[rows][:, :, None] > 0)
    picture = Image.fromarray(blended)
    labels = [
        Label(*_place(mask, class_id), f"{name} ({class_id})", f"class {class_id}")
        for class_id, name in names.items()
    ]
    explain_strange(write_labels(picture, labels))
    return picture


def _place(mask: np.ndarray, class_id: int) -> tuple[int, int]:
    """Return column and row of the class's pixel nearest to its middle, found on a coarser grid first."""
    for step in (max(1, max(mask.shape) // LEAST_SIDE), 1):
        rows, columns = np.nonzero(mask[step // 2 :: step, step // 2 :: step] == class_id)
        if len(rows):
            break
    # it lies on the class even where the middle does not
    nearest = int((np.abs(rows - np.median(rows)) + np.abs(columns - np.median(columns))).argmin())
    return int(columns[nearest]) * step + step // 2, int(rows[nearest]) * step + step // 2
