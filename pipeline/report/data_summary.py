"""Read what the bootstrapped data tell of themselves: splits, groups, the long tail, what is never seen."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.store.manifest import read_manifest
from pipeline.report.reading import reason_of, rows_of
from pipeline.runtime.errors import DataError


@dataclass(frozen=True)
class SplitSummary:
    """Count what a split of the bootstrapped data holds."""

    name: str
    images: int
    labeled_share: float | None
    """labeled pixels among all"""
    seen: dict[str, int]
    """classes with at least one pixel, by frequency group"""
    sources: dict[str, float]
    """shares of all pixels from things, from stuff and from no annotation"""
    group_pixels: dict[str, float]
    """shares of the labeled pixels, by frequency group"""


@dataclass(frozen=True)
class DataSummary:
    """Summarize the bootstrapped data."""

    num_classes: int
    splits: list[SplitSummary]
    groups: dict[str, int]
    """classes by frequency group"""
    train_images: list[tuple[str, int]]
    """classes with the images of the train split that show them, the most frequent first"""
    left_out: int
    never_seen: dict[str, list[str]]
    """names of the classes without a pixel, by split"""


def read_data(bootstrapped: Path) -> DataSummary:
    """Read the splits, their images and the classes seen in them.

    Raises:
        DataError: a file is missing or damaged.
    """
    manifest = read_manifest(bootstrapped)
    table = bootstrapped / "class_statistics.csv"
    try:
        statistics = json.loads((bootstrapped / "statistics.json").read_text(encoding="utf-8"))
        rows = list(rows_of(table))
        frequencies = [row["frequency"] for row in rows]
        known = [one for one in ("f", "c", "r", "stuff") if one in frequencies]
        groups = {one: frequencies.count(one) for one in dict.fromkeys(known + frequencies)}
        splits = []
        for name, totals in manifest["splits"].items():
            seen = dict.fromkeys(groups, 0)
            for row in rows:
                seen[row["frequency"]] += int(row[f"{name}_images"]) > 0
            share = totals["labelled_pixels"] / totals["pixels"] if totals["pixels"] else None
            sources, by_group = _shares(statistics["splits"][name])
            splits.append(SplitSummary(name, totals["images"], share, seen, sources, by_group))
        images = sorted(((row["name"], int(row["train_images"])) for row in rows), key=lambda one: -one[1])
        never = {
            name: [str(one) for one in statistics["classes_never_seen"][name]] for name in manifest["splits"]
        }
        return DataSummary(len(rows), splits, groups, images, len(manifest["left_out"]), never)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            "the description of the bootstrapped data is damaged",
            where=bootstrapped if isinstance(error, OSError) else table,
            found=reason_of(error),
            hint="make it again: dvc repro --force bootstrap",
        ) from error


def _shares(split: dict[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the shares of the pixels by source, and of the labeled ones by frequency group."""
    pixels = {group: int(numbers["pixels"]) for group, numbers in split["groups"].items()}
    whole, labeled = int(split["pixels"]) or 1, sum(pixels.values()) or 1
    sources = {str(source): int(number) / whole for source, number in split["pixels_from"].items()}
    return sources, {group: number / labeled for group, number in pixels.items()}
