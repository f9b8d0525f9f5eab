"""Read the forms that the report's files have, and say in a line what is wrong with one."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError


class Part(BaseModel):
    """Check the known keys and ignore all others."""

    model_config = ConfigDict(frozen=True, extra="ignore")


def rows_of(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file by the names of its columns."""
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def first_error(error: ValidationError) -> str:
    """Return the first thing that is wrong, after the place of it."""
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"


def reason_of(error: Exception) -> str:
    """Return what is wrong with a table."""
    return f"no column or key {error}" if isinstance(error, KeyError) else str(error)
