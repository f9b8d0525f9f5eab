"""Define the options of bootstrapping and check them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from pipeline.runtime.errors import UsageError

OverlapRule = Literal["first", "smallest"]
OVERLAP_RULES = get_args(OverlapRule)


@dataclass(frozen=True)
class BootstrapOptions:
    """How a dataset is read, split and drawn.

    Args:
        layout: how the dataset lies on disk, see `pipeline.data.layouts.layout`.
        holdout_fraction: share of the train images to hold out, 0 <= fraction < 1. At least one is held out
            and one left, where there are two.
        holdout_seed: which images are held out; their ids and the seed alone decide.
        overlap: which annotation keeps a pixel claimed by several, see `pipeline.data.bootstrap.rasterize`.
        keep_classes: names or class ids of the whole label space to keep; None for all.
        check_images: open each image for its size. Without it only its presence is checked.
        images_per_shard: the most images in one file of masks.

    Raises:
        UsageError: an option out of range.
    """

    layout: str = "coco_lvis"
    holdout_fraction: float = 0.1
    holdout_seed: int = 0
    overlap: str = "first"
    keep_classes: Sequence[str | int] | None = None
    check_images: bool = True
    images_per_shard: int = 5_000

    def __post_init__(self) -> None:
        check_overlap_rule(self.overlap)
        if not 0 <= self.holdout_fraction < 1:
            raise UsageError(
                "a value is out of range",
                where="data.holdout_fraction",
                found=self.holdout_fraction,
                allowed="0 <= fraction < 1",
            )


def check_overlap_rule(overlap: str) -> None:
    """Raise UsageError unless `overlap` is a rule that `rasterize` knows."""
    if overlap not in OVERLAP_RULES:
        raise UsageError(
            "unknown overlap rule", where="data.overlap", found=overlap, allowed=", ".join(OVERLAP_RULES)
        )
