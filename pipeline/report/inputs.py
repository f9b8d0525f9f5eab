"""Read and check the files that the report is made of: records, per-class tables, data, memory."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline.config.renamed import current_keys
from pipeline.data.store.manifest import read_manifest
from pipeline.runtime.errors import DataError, UsageError

LARGEST_SIDE = 640
"""Pixels; larger pictures are shrunk, so that the page stays light enough to send."""


class _Part(BaseModel):
    """Check the known keys and ignore all others."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Training(_Part):
    """Describe how a variant was trained."""

    steps: int
    seconds: float
    best_step: int | None = None
    best_holdout_miou: float | None = None
    peak_memory_kind: str
    device: str
    threads: int | None = None
    """of torch on the CPU, and its processor; None in records of before"""
    processor: str | None = None
    loss_curve: list[tuple[float, float]]
    validation_curve: list[tuple[float, float | None, float | None]]


class LegendEntry(_Part):
    """Pair a class with its color in the pictures."""

    name: str
    color: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]


class Example(_Part):
    """Name one image with its truth and prediction: paths relative to the variant's folder."""

    image_id: int
    image: str
    truth: str
    prediction: str
    legend: list[LegendEntry] = []


class Record(_Part):
    """Hold what the stage evaluate wrote about a variant."""

    format: Literal[1]
    variant: str
    metrics: dict[str, float | None]
    settings: dict[str, Any]
    training: Training
    environment: dict[str, Any]
    num_classes: int
    parameters: int
    seed_of: str | None = None
    """the variant of which this is the training with another seed"""
    run_id: str | None = None
    examples: list[Example] = []

    _present_names = field_validator("settings")(current_keys)


@dataclass(frozen=True)
class ClassResult:
    """Hold the result of one class; `iou` is None if it is neither in truth nor in prediction."""

    name: str
    frequency: str
    true_pixels: int
    predicted_pixels: int
    iou: float | None


@dataclass(frozen=True)
class ConfusedPair:
    """Hold a class, what it was predicted as, the pixels, and their share of the class's."""

    name: str
    predicted: str
    pixels: int
    share: float


@dataclass(frozen=True)
class Variant:
    """Hold one evaluated variant."""

    name: str
    folder: Path
    record: Record
    classes: list[ClassResult]
    confused: list[ConfusedPair]
    """the most confused pairs; empty for an evaluation that did not count them"""

    def picture(self, name: str) -> str:
        """Return an example picture as a data URI.

        Raises:
            DataError: the file is missing or unreadable.
        """
        path = self.folder / name
        try:
            return _data_uri(path)
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise _damaged(path, self.name, error) from error


class MemoryPoint(_Part):
    """Hold the peak memory of one training step at a number of classes."""

    head: str
    num_classes: Annotated[int, Field(gt=0)]
    predicted_gib: float | None = None
    measured_gib: float | None = None


class MemoryCurve(_Part):
    """Hold what the stage measure_memory wrote."""

    unit: Literal["GiB"]
    rows: list[MemoryPoint]
    settings: dict[str, Any] = {}
    """those of the plain settings that the prediction depends on, besides batch and crop"""
    batch_size: int | None = None
    crop_size: int | None = None

    _present_names = field_validator("settings")(current_keys)


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
    train_images: list[int]
    """images of the train split that show each class, the most frequent first"""
    left_out: int
    never_seen: dict[str, list[str]]
    """names of the classes without a pixel, by split"""


def read_variants(evaluations: Path, names: Sequence[str]) -> list[Variant]:
    """Read the evaluated variants in the given order.

    Raises:
        DataError: a record, table or picture is missing or damaged.
        UsageError: no variant is named.
    """
    if not names:
        raise UsageError(
            "no variants to compare", where="params.yaml: variants", hint="name at least one there"
        )
    variants = [read_variant(evaluations / name, name) for name in names]
    for one in variants:
        if one.record.variant != one.name:
            found = f"the record of variant {one.record.variant!r}"
            raise _damaged(one.folder / "record.json", one.name, found)
    return variants


def read_variant(folder: Path, name: str) -> Variant:
    """Read an evaluation from a folder of any name.

    Raises:
        DataError: a file is missing or damaged.
    """
    path = folder / "record.json"
    try:
        record = Record.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError("a variant is not evaluated yet", where=path, hint=_fix(name)) from error
    except ValidationError as error:
        raise _damaged(path, name, _first_error(error)) from error
    except (OSError, ValueError) as error:
        raise _damaged(path, name, error) from error
    pairs = folder / "confused.csv"
    table = folder / "per_class.csv"
    try:
        confused = [
            ConfusedPair(row["name"], row["predicted_name"], int(row["pixels"]), float(row["share"]))
            for row in (_rows(pairs) if pairs.exists() else ())
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(pairs, name, _reason(error)) from error
    try:
        classes = [class_result(row) for row in _rows(table)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(table, name, _reason(error)) from error
    return Variant(name, folder, record, classes, confused)


def class_result(row: Mapping[str, Any]) -> ClassResult:
    """Return a row of per_class.csv, or of its copy in MLflow, as a result.

    Raises:
        KeyError, TypeError, ValueError: another table.
    """
    iou = None if row["iou"] in ("", None) else float(row["iou"])
    return ClassResult(
        str(row["name"]), str(row["frequency"]), int(row["true_pixels"]), int(row["predicted_pixels"]), iou
    )


def read_data(bootstrapped: Path) -> DataSummary:
    """Read the splits, their images and the classes seen in them.

    Raises:
        DataError: a file is missing or damaged.
    """
    manifest = read_manifest(bootstrapped)
    table = bootstrapped / "class_statistics.csv"
    try:
        statistics = json.loads((bootstrapped / "statistics.json").read_text(encoding="utf-8"))
        rows = list(_rows(table))
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
        images = sorted((int(row["train_images"]) for row in rows), reverse=True)
        never = {
            name: [str(one) for one in statistics["classes_never_seen"][name]] for name in manifest["splits"]
        }
        return DataSummary(len(rows), splits, groups, images, len(manifest["left_out"]), never)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            "the description of the bootstrapped data is damaged",
            where=bootstrapped if isinstance(error, OSError) else table,
            found=_reason(error),
            hint="make it again: dvc repro --force bootstrap",
        ) from error


def _shares(split: dict[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the shares of the pixels by source, and of the labeled ones by frequency group."""
    pixels = {group: int(numbers["pixels"]) for group, numbers in split["groups"].items()}
    whole, labeled = int(split["pixels"]) or 1, sum(pixels.values()) or 1
    sources = {str(source): int(number) / whole for source, number in split["pixels_from"].items()}
    return sources, {group: number / labeled for group, number in pixels.items()}


def read_memory(results: Path) -> MemoryCurve | None:
    """Read the memory curve; None if the stage measure_memory has not run.

    Raises:
        DataError: the file is damaged.
    """
    path = results / "memory.json"
    try:
        return MemoryCurve.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        found = _first_error(error) if isinstance(error, ValidationError) else error
        raise DataError(
            "the memory curve is damaged",
            where=path,
            found=found,
            hint="make it again: dvc repro --force measure_memory",
        ) from error


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def _data_uri(path: Path) -> str:
    data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        kind = picture.format or "PNG"
        if max(picture.size) > LARGEST_SIDE:
            # masks must not be blended, photographs should be
            resample = Image.Resampling.NEAREST if kind == "PNG" else Image.Resampling.LANCZOS
            factor = LARGEST_SIDE / max(picture.size)
            size = [max(round(side * factor), 1) for side in picture.size]
            buffer = io.BytesIO()
            picture.resize((size[0], size[1]), resample).save(buffer, kind)
            data = buffer.getvalue()
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"


def _fix(name: str) -> str:
    return f"evaluate it: dvc repro evaluate@{name}"


def _damaged(path: Path, name: str, found: object) -> DataError:
    return DataError(
        "an evaluation is damaged or incomplete",
        where=path,
        found=found,
        hint=f"evaluate it again: dvc repro --force evaluate@{name}",
    )


def _first_error(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"


def _reason(error: Exception) -> str:
    return f"no column or key {error}" if isinstance(error, KeyError) else str(error)
