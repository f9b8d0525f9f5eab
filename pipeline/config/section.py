"""Define what all sections of the settings share: frozen, checked groups of keys, and paths as values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _as_path(value: object) -> object:
    if isinstance(value, str) and "://" in value:
        raise ValueError("must be a path, not a URL: mount the storage and give its path here")
    if not isinstance(value, str) or not value:
        return value
    try:
        return Path(value).expanduser()
    except RuntimeError as error:  # ~NAME of a user that there is not
        raise ValueError(f"a path; {error}") from error


Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
CountOrNone = Annotated[int, Field(ge=0, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Positive = Annotated[float, Field(gt=0, le=1e30)]
PositiveOrZero = Annotated[float, Field(ge=0, le=1e30)]
"""What torch, NumPy and file formats hold: numbers beyond end in overflows deep below."""

FilePath = Annotated[Path, BeforeValidator(_as_path)]


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys and values of another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
