"""Read what the stage measure_memory wrote: the heads' memory against the classes, and every variant's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from pipeline.config.renamed import current_keys
from pipeline.report.reading import Part, first_error
from pipeline.runtime.errors import DataError


class MemoryPoint(Part):
    """Hold the peak memory of one training step at a number of classes."""

    head: str
    num_classes: Annotated[int, Field(gt=0)]
    predicted_gib: float | None = None
    measured_gib: float | None = None


class VariantPoint(Part):
    """Hold the peak memory of one training step of a variant, with its own batch and crop."""

    variant: str
    num_classes: int
    images_per_step: int
    crop_size: int
    predicted_gib: float
    measured_gib: float | None = None

    @property
    def gib(self) -> float:
        """Return the measured peak, or where there is none the predicted one."""
        return self.predicted_gib if self.measured_gib is None else self.measured_gib


class MemoryCurve(Part):
    """Hold what the stage measure_memory wrote."""

    unit: Literal["GiB"]
    rows: list[MemoryPoint]
    variants: list[VariantPoint] = Field(default=[])
    settings: dict[str, Any] = Field(default={})
    """those of the plain settings that the prediction depends on, besides batch and crop"""
    batch_size: int | None = None
    crop_size: int | None = None

    _present_names = field_validator("settings")(current_keys)


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
        found = first_error(error) if isinstance(error, ValidationError) else error
        raise DataError(
            "the memory curve is damaged",
            where=path,
            found=found,
            hint="make it again: dvc repro --force measure_memory",
        ) from error
