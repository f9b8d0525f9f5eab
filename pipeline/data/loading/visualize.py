"""Draw masks as pictures: 16-bit PNG files, class colors, overlays with class names."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.data.loading.batch import IGNORE_INDEX
from pipeline.data.loading.dataset import SegmentationDataset, read_image
from pipeline.data.store.manifest import SPLITS
from pipeline.runtime.errors import UsageError
from pipeline.runtime.files import atomic_path
from pipeline.runtime.progress import Progress


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


def overlay(bootstrapped: Path, root: Path, image_id: int) -> Image.Image:
    """Return the image with each class laid over it in its color and named near its middle.

    Raises:
        DataError: nothing bootstrapped, or an unreadable image.
        UsageError: no split has the image.
    """
    for split in SPLITS:
        dataset = SegmentationDataset(bootstrapped, root, split)
        ids = dataset.image_ids()
        if image_id in ids:
            row, mask = dataset.row(ids.index(image_id)), dataset.class_mask(ids.index(image_id))
            names = {i: dataset.label_space.classes[i - 1].name for i in row.class_ids}
            return _lay_over(read_image(root / row.file, row.height, row.width), mask, names)
    raise UsageError(
        "no such image",
        where=bootstrapped,
        found=image_id,
        allowed="an id of the splits; what was left out is named in manifest.json",
    )


def _lay_over(image: np.ndarray, mask: np.ndarray, names: dict[int, str]) -> Image.Image:
    blended = image.astype(np.float32)
    for class_id in names:
        inside = mask == class_id
        blended[inside] = 0.5 * blended[inside] + 0.5 * np.array(class_color(class_id))
    picture = Image.fromarray(blended.astype(np.uint8))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=max(11, image.shape[0] // 36))
    for class_id, name in names.items():
        rows, columns = np.nonzero(mask == class_id)
        # the pixel nearest to the middle: it lies on the class even where the middle does not
        middle = np.abs(rows - np.median(rows)) + np.abs(columns - np.median(columns))
        nearest = int(middle.argmin())
        draw.text(
            (int(columns[nearest]), int(rows[nearest])),
            f"{name} ({class_id})",
            fill="white",
            font=font,
            anchor="mm",
            stroke_width=2,
            stroke_fill="black",
        )
    return picture


def class_color(class_id: int) -> tuple[int, int, int]:
    """Return the (red, green, blue) of a class id 1..C in every picture, 8 bits each.

    Hues follow the golden ratio, so neighboring ids look different; three lightnesses and two saturations.
    """
    train_id = class_id - 1
    hue = (train_id * 0.6180339887498949) % 1.0
    lightness, saturation = (0.42, 0.56, 0.70)[train_id % 3], (0.85, 0.55)[train_id // 3 % 2]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
    return round(red * 255), round(green * 255), round(blue * 255)


def colorize(train_ids: np.ndarray) -> np.ndarray:
    """Color (H, W) train ids as (H, W, 3) uint8; unlabeled pixels are white."""
    ids, inverse = np.unique(train_ids, return_inverse=True)
    colors = [(255, 255, 255) if one == IGNORE_INDEX else class_color(int(one) + 1) for one in ids]
    return np.array(colors, dtype=np.uint8)[inverse].reshape(*train_ids.shape, 3)
