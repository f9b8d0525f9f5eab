"""The libraries of LVIS and COCO as readers of annotation files: what ours is held against."""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path
from typing import Any


def rows_by_image(path: Path, form: str) -> dict[int, list[dict[str, Any]]]:
    """Image id -> rows of annotations as the library of the form has them."""
    if form == "lvis":
        from lvis import LVIS

        root = logging.getLogger()
        handlers, level = list(root.handlers), root.level
        try:
            return dict(LVIS(str(path)).img_ann_map)
        finally:
            root.handlers[:] = handlers  # it adds one and sets a level
            root.setLevel(level)
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        return dict(COCO(str(path)).imgToAnns)
