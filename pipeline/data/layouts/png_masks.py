"""Open images beside masks that are there already, and a list of what the masks' values or colors mean.

    train*/ val*/                          the images, in subfolders as you like
    annotations/train*/ annotations/val*/  a mask for each, same name: PNG or TIFF, gray, palette or RGB
    annotations/classes.csv                value,name or color,name (#rrggbb); no name: unlabeled
    annotations/labelmap.txt               in place of it: CVAT's list of labels and colors

With `value` the masks hold class numbers, with `color` RGB colors. Class ids follow the order of the list. A
value or color that is not listed is an error: silence about it would hide a mask of another dataset. Images
have no ids here: they are numbered by name, train first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pipeline.data.labels.label_space import ClassEntry, LabelSpace
from pipeline.data.layouts.class_lists import read_classes, read_labelmap
from pipeline.data.layouts.coco import one_folder
from pipeline.data.layouts.colors import color_values
from pipeline.data.layouts.finding import plain
from pipeline.data.layouts.layout import StoredMask
from pipeline.data.layouts.paired import Pair, PairedLayout
from pipeline.data.store.listing import list_files
from pipeline.runtime.errors import DataError

SOURCE = "masks"
ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
LOSSY_ENDINGS = (".jpg", ".jpeg")
MASK_ENDINGS = (".png", ".tif", ".tiff", ".bmp", ".gif", ".webp", *LOSSY_ENDINGS)


def open_masks(root: Path, keep_classes: Sequence[str | int] | None = None) -> PairedLayout:
    """List the images and masks of a root.

    Args:
        root: the dataset's folder.
        keep_classes: names or class ids of the whole label space to keep; None for all.

    Raises:
        DataError: a missing folder or list, a list that is damaged.
        UsageError: an unknown class to keep.
    """
    path = root / "annotations" / "classes.csv"
    if not path.exists() and path.with_name("labelmap.txt").exists():
        path = path.with_name("labelmap.txt")
        rows, colors = read_labelmap(path), True
    else:
        rows, colors = read_classes(path)
    label_space = label_space_of(rows, path).subset(keep_classes)
    class_ids = label_space.lookup(SOURCE)
    mask = partial(StoredMask, class_ids=class_ids, listed=f"annotations/{path.name}")
    if colors:
        mask = partial(mask, values=partial(color_values, colors=tuple(value for value, _ in rows)))
        mask = partial(mask, class_ids={place: class_ids[value] for place, (value, _) in enumerate(rows)})
    pairs: dict[str, list[Pair]] = {}
    problems: list[DataError] = []
    number = 0
    for split in ("train", "val"):
        folder, masks = one_folder(root, split), one_folder(root / "annotations", split, "masks")
        pairs[split] = []
        for image, of_image in _images(root / folder, root / "annotations" / masks, problems):
            number += 1
            pairs[split].append(Pair(number, image.relative_to(root).as_posix(), mask(of_image)))
    return PairedLayout(root, label_space, pairs, [path], problems)


def _images(folder: Path, masks: Path, problems: list[DataError]) -> list[tuple[Path, Path]]:
    """Return the images of a folder by name, each with its mask, or the place where that should lie."""
    stored: dict[Path, list[Path]] = {}
    for path in list_files(masks, MASK_ENDINGS):
        stored.setdefault(path.relative_to(masks).with_suffix(""), []).append(path)
    alike: dict[str, list[Path]] = {}
    for key in stored:
        alike.setdefault(plain(key.as_posix()), []).append(key)
    found: dict[Path, Path] = {}
    for path in list_files(folder, ENDINGS):
        name = path.relative_to(folder)
        key = name.with_suffix("")
        if key not in stored and len(others := alike.get(plain(key.as_posix()), [])) == 1:
            key = others[0]
        mask = _one_mask(stored.get(key, [masks / name.with_suffix(".png")]), problems)
        if mask in found:
            raise DataError(
                "two images share a mask",
                where=mask,
                found=f"{found[mask].relative_to(folder)} and {name}",
                hint="give each image a name of its own, or move one away",
            )
        found[mask] = path
    if not found:
        raise DataError("a folder without images", where=folder, allowed=", ".join(ENDINGS))
    used = {mask.with_suffix("") for mask in found}
    for key, paths in stored.items():
        if masks / key not in used:
            problems.append(
                DataError(
                    "a mask without an image",
                    where=paths[0],
                    found=f"no image {key} in {folder.name}/",
                    allowed=", ".join(ENDINGS),
                    hint="put its image there, or move the mask away",
                )
            )
    return [(image, mask) for mask, image in found.items()]


def _one_mask(paths: list[Path], problems: list[DataError]) -> Path:
    """Return the mask of an image, of all with its name: the one that is not a JPEG, which has no numbers."""
    lossless = [path for path in paths if path.suffix.lower() not in LOSSY_ENDINGS]
    if len(lossless) > 1:
        names = ", ".join(path.name for path in lossless)
        problems.append(
            DataError("two masks for an image", where=lossless[0], found=names, hint="move the others away")
        )
    return (lossless or paths)[0]


def label_space_of(rows: Sequence[tuple[int, str]], path: Path) -> LabelSpace:
    """Return the classes of values and names in their order; a value without a name is unlabeled.

    Raises:
        DataError: no value has a name; `path` is where they should be.
    """
    named = [(value, name) for value, name in rows if name]
    if not named:
        raise DataError(
            "a list without a class",
            where=path,
            found=f"{len(rows)} values or colors, none of which has a name",
            hint="name those that are classes",
        )
    entries = [
        ClassEntry(class_id, name, SOURCE, "f", {SOURCE: (value,)})
        for class_id, (value, name) in enumerate(named, start=1)
    ]
    return LabelSpace(tuple(entries), {SOURCE: tuple(value for value, name in rows if not name)})
