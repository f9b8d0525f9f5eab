"""Define what all sections of the settings share: frozen, checked groups of keys, and paths as values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict


def _as_path(value: object) -> object:
    if isinstance(value, str) and "://" in value:
        raise ValueError("must be a path, not a URL: mount the storage and give its path here")
    return Path(value).expanduser() if isinstance(value, str) and value else value


FilePath = Annotated[Path, BeforeValidator(_as_path)]


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys and values of another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
