"""Warn on stderr of what is odd about a dataset and does not stop bootstrapping."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.data.labels.label_space import LabelSpace
from pipeline.data.layouts.duplicates import Copies
from pipeline.data.layouts.png_masks import SOURCE as MASKS
from pipeline.data.store.manifest import SplitCounts


def warn_of_copies(copies: Sequence[Copies]) -> None:
    """Warn of photographs that are listed more than once, one line a kind."""
    for kind in dict.fromkeys(one.kind for one in copies):
        alike = [one for one in copies if one.kind == kind]
        _warn(f"{kind}: {len(alike)}, named in manifest.json; {alike[0].describe()}")


def warn_of_scaled_values(label_space: LabelSpace, counts: Mapping[str, SplitCounts]) -> None:
    """Warn where masks hold values spread over 0..255 to be seen, and the list has these values too."""
    if label_space.sources != [MASKS]:
        return
    images = np.sum([one.images for one in counts.values()], axis=0)
    values = [value for entry in label_space.classes for value in entry.category_ids[MASKS]]
    seen = [value for value, number in zip(values, images[1:], strict=True) if number]
    step = math.gcd(*seen)
    if step > 8 and max(seen) <= 255 and len(seen) > 1 and {value // step for value in seen} <= {0, *values}:
        shown = ", ".join(map(str, seen[:4]))
        _warn(
            f"the masks hold only multiples of {step} ({shown}): if they were scaled to be seen, "
            "export the class numbers themselves"
        )


def warn_of_nothing(root: Path, counts: Mapping[str, SplitCounts]) -> None:
    """Warn of what can be drawn but not learned, or not measured."""
    seen = int((counts["train"].images[1:] > 0).sum())
    if seen < 2:
        _warn(
            f"{root}: the train images show one class only: there is nothing to learn, since unlabeled "
            "pixels are no class, and the metrics will be null; label the rest as a class of its own"
        )
    if not counts["val"].num_images:
        _warn(f"{root}: val has no image with a labeled pixel: its metrics will be null")


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
