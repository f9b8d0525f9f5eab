"""The files of a prediction, each written whole or not at all.

`NAME.png` holds class ids as 16-bit gray (0 = unlabeled), `NAME.overlay.jpg` the picture with colors and
names, `NAME.rle.json` COCO's run-length masks, and `NAME.json` the classes found. The last is written last,
so that its presence says that the others are whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.runtime.errors import KilosegError
from pipeline.runtime.files import atomic_path, naming_full_disk, write_json

_KEPT = "finished pictures are kept: --skip-existing goes on after them"


def output_paths(folder: Path, name: str, *, rle: bool = False) -> dict[str, Path]:
    """Return the files of a picture by kind, in the order in which they are written.

    Args:
        folder: of all outputs.
        name: of the picture, with "/" for folders below.
        rle: with run-length masks.
    """
    kinds = {"class_map": ".png", "overlay": ".overlay.jpg", "rle": ".rle.json", "json": ".json"}
    if not rle:
        del kinds["rle"]
    return {kind: folder / f"{name}{suffix}" for kind, suffix in kinds.items()}


def write_prediction(
    paths: Mapping[str, Path],
    class_map: np.ndarray,
    overlay: Image.Image,
    record: Mapping[str, Any],
    rle: list[dict[str, Any]] | None,
) -> None:
    """Write the files of `output_paths`.

    Args:
        paths: by kind.
        class_map: (H, W) uint16.
        overlay: of the same size.
        record: for NAME.json.
        rle: for NAME.rle.json, if `paths` has it.

    Raises:
        KilosegError: the disk is full, or the folder cannot be written.
    """
    with writing_outputs(paths["class_map"]):
        with atomic_path(paths["class_map"]) as temporary:
            Image.fromarray(class_map).save(temporary, format="PNG", compress_level=3)
        with atomic_path(paths["overlay"]) as temporary:
            overlay.save(temporary, format="JPEG", quality=90)
        if "rle" in paths:
            write_json(paths["rle"], rle)
        write_json(paths["json"], record)


@contextlib.contextmanager
def writing_outputs(path: Path) -> Iterator[None]:
    """Make the folder of `path`, and name it where something cannot be written.

    Raises:
        KilosegError: the disk is full, or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming_full_disk(path, _KEPT):
            yield
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise KilosegError(
            "cannot write here", where=path.parent, found=error.strerror, hint="name another --out"
        ) from error


def coco_rle(class_map: np.ndarray, scores: Mapping[int, float], image_id: int | str) -> list[dict[str, Any]]:
    """Return one COCO result a class: run-length mask, class id and mean confidence.

    Args:
        class_map: (H, W) uint16.
        scores: of the classes to write, by class id.
        image_id: COCO's number, or the file's name where it has none.
    """
    from pycocotools import mask

    by_columns = np.asfortranarray(class_map)
    rows = []
    for class_id, score in scores.items():
        encoded = mask.encode(np.asarray(by_columns == class_id, dtype=np.uint8, order="F"))
        segmentation = {"size": list(map(int, encoded["size"])), "counts": encoded["counts"].decode("ascii")}
        rows.append(
            {
                "image_id": image_id,
                "category_id": class_id,
                "segmentation": segmentation,
                "score": round(score, 4),
            }
        )
    return rows
