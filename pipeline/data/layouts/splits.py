"""Divide images into train, holdout and val, and name those that are left out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.data.annotations.validation import ImageEntry
from pipeline.data.store.manifest import SPLITS, LeftOut


@dataclass(frozen=True)
class Splits:
    """The images of each split by ascending id, and those that are left out."""

    images: dict[str, list[ImageEntry]]
    left_out: list[LeftOut]


def divide(
    listed: Mapping[str, Iterable[ImageEntry]],
    unusable: Callable[[ImageEntry], str | None],
    holdout_fraction: float,
    holdout_seed: int,
) -> Splits:
    """Divide the images. The ids and the seed decide which are held out, not the order.

    Args:
        listed: the images of train and val.
        unusable: the reason to leave an image out, if there is one.
        holdout_fraction: share of the train images to hold out, see `held_out`.
        holdout_seed: which ones.
    """
    images: dict[str, list[ImageEntry]] = {}
    left_out = []
    for split, entries in listed.items():
        images[split] = []
        for entry in sorted(entries, key=lambda entry: entry.image_id):
            reason = unusable(entry)
            if reason is None:
                images[split].append(entry)
            else:
                left_out.append(LeftOut(entry.image_id, entry.file or "", split, reason))
    held = held_out([entry.image_id for entry in images["train"]], holdout_fraction, holdout_seed)
    images["holdout"] = [entry for entry in images["train"] if entry.image_id in held]
    images["train"] = [entry for entry in images["train"] if entry.image_id not in held]
    return Splits({split: images[split] for split in SPLITS}, left_out)


def held_out(image_ids: Sequence[int], fraction: float, seed: int) -> set[int]:
    """Return the images to hold out: those with the smallest hashes of seed and id.

    Returns:
        round(fraction * n) of the n ids; where fraction > 0 and n >= 2, at least one and at most n - 1.
    """
    if not fraction or len(image_ids) < 2:
        return set()
    number = min(max(round(fraction * len(image_ids)), 1), len(image_ids) - 1)

    def rank(image_id: int) -> bytes:
        return hashlib.sha256(f"{seed}:{image_id}".encode()).digest()

    return set(sorted(image_ids, key=rank)[:number])
