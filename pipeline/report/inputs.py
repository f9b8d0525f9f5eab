"""Read and check what evaluations wrote: records, tables of classes and pairs, calibration, class maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator

from pipeline.config.renamed import current_keys
from pipeline.evaluation.image_counts import ImageCounts
from pipeline.evaluation.picture_file import DAMAGED, Picture, read_picture
from pipeline.report.reading import Part, first_error, reason_of, rows_of
from pipeline.runtime.errors import DataError, UsageError

Read = TypeVar("Read")


class Training(Part):
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


class Record(Part):
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
    pictures: list[int] = Field(default=[])
    """ids of the images in pictures.zip, in the order in which they were drawn"""

    _present_names = field_validator("settings")(current_keys)


@dataclass(frozen=True)
class ClassResult:
    """Hold the result of one class; `iou` is None if it is neither in truth nor in prediction."""

    name: str
    frequency: str
    true_pixels: int
    predicted_pixels: int
    iou: float | None
    class_id: int = 0


@dataclass(frozen=True)
class ConfusedPair:
    """Hold a class, what it was predicted as, the pixels, and their share of the class's."""

    name: str
    predicted: str
    pixels: int
    share: float
    class_id: int = 0
    predicted_id: int = 0


@dataclass(frozen=True)
class Variant:
    """Hold one evaluated variant. What an older evaluation did not write is empty or None."""

    name: str
    folder: Path
    record: Record
    classes: list[ClassResult]
    confused: list[ConfusedPair] = field(default_factory=list)
    calibration: list[dict[str, float]] = field(default_factory=list)
    """confidence, accuracy and pixels of the bins that have some"""
    class_map: dict[int, tuple[float, float]] = field(default_factory=dict)
    """places of the class embeddings in a plane, by class id"""
    images: ImageCounts | None = None

    def picture(self, image_id: int) -> Picture:
        """Read one of the record's pictures.

        Raises:
            DataError: the file is missing or damaged.
        """
        path = self.folder / "pictures.zip"
        try:
            return read_picture(path, image_id)
        except DAMAGED as error:
            raise _damaged(path, self.name, f"image {image_id}: {error}") from error


def read_variants(evaluations: Path, names: Sequence[str]) -> list[Variant]:
    """Read the evaluated variants in the given order.

    Raises:
        DataError: a record or table is missing or damaged.
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


def read_record(folder: Path, name: str) -> Record:
    """Read the record of an evaluation.

    Raises:
        DataError: it is missing or damaged.
    """
    path = folder / "record.json"
    try:
        return Record.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        hint = f"evaluate it: dvc repro evaluate@{name}"
        raise DataError("a variant is not evaluated yet", where=path, hint=hint) from error
    except ValidationError as error:
        raise _damaged(path, name, first_error(error)) from error
    except (OSError, ValueError) as error:
        raise _damaged(path, name, error) from error


def read_variant(folder: Path, name: str) -> Variant:
    """Read an evaluation from a folder of any name.

    Raises:
        DataError: a file is missing or damaged.
    """
    record = read_record(folder, name)

    def part(file: str, read: Callable[[Path], Read], absent: Read | None = None) -> Read:
        path = folder / file
        if absent is not None and not path.exists():
            return absent
        try:
            return read(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(path, name, reason_of(error)) from error

    counts = folder / "per_image.npz"
    return Variant(
        name,
        folder,
        record,
        part("per_class.csv", lambda path: [class_result(row) for row in rows_of(path)]),
        part("confused.csv", lambda path: [_confused_pair(row) for row in rows_of(path)], []),
        part("calibration.csv", _calibration, []),
        part("class_map.csv", _class_map, {}),
        part("per_image.npz", ImageCounts.load) if counts.exists() else None,
    )


def class_result(row: Mapping[str, Any]) -> ClassResult:
    """Return a row of per_class.csv, or of its copy in MLflow, as a result.

    Raises:
        KeyError, TypeError, ValueError: another table.
    """
    iou = None if row["iou"] in ("", None) else float(row["iou"])
    pixels = int(row["true_pixels"]), int(row["predicted_pixels"])
    return ClassResult(str(row["name"]), str(row["frequency"]), *pixels, iou, int(row.get("class_id", 0)))


def _confused_pair(row: Mapping[str, str]) -> ConfusedPair:
    numbers = int(row["pixels"]), float(row["share"]), int(row["class_id"]), int(row["predicted_id"])
    return ConfusedPair(row["name"], row["predicted_name"], *numbers)


def _calibration(path: Path) -> list[dict[str, float]]:
    names = ("confidence", "accuracy", "pixels")
    return [{name: float(row[name]) for name in names} for row in rows_of(path)]


def _class_map(path: Path) -> dict[int, tuple[float, float]]:
    return {int(row["class_id"]): (float(row["x"]), float(row["y"])) for row in rows_of(path)}


def _damaged(path: Path, name: str, found: object) -> DataError:
    return DataError(
        "an evaluation is damaged or incomplete",
        where=path,
        found=found,
        hint=f"evaluate it again: dvc repro --force evaluate@{name}",
    )
