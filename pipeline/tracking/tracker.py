"""Define how training and evaluation log a run, with no third-party import.

Training is handed a `Tracker` and does not know where its numbers go: to MLflow in the stages
(`pipeline.tracking.mlflow_tracker`), to a sweep's trial, or nowhere in tests.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from pipeline.config.paths import home_folder, store_file
from pipeline.config.schema import Settings


class Tracker(Protocol):
    """Receive the parameters, curves and files of one run."""

    @property
    def run_id(self) -> str | None:
        """Return the id under which a later process can continue the run, or None."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log settings by dotted key, once."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log numbers at an optimization step."""

    def log_artifact(self, path: Path) -> None:
        """Log a file."""


class NoTracker:
    """Log nothing."""

    run_id: str | None = None

    def log_params(self, params: Mapping[str, object]) -> None:
        """Ignore the parameters."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Ignore the metrics."""

    def log_artifact(self, path: Path) -> None:
        """Ignore the file."""


def tracking_uri(settings: Settings) -> str:
    """Return the store: MLFLOW_TRACKING_URI, or SQLite in the project.

    A relative SQLite path is the project's too where DVC runs the stage in a temporary copy of it.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if not given:
        return sqlite_uri(store_file(settings))
    home, relative = home_folder(settings.project), sqlite_path(given)
    if home == settings.project or relative is None or relative.is_absolute():
        return given
    return sqlite_uri(home / relative)


def own_store(settings: Settings) -> bool:
    """Tell whether the runs go into the project's own store."""
    path = sqlite_path(tracking_uri(settings))
    return path is not None and path.absolute() == store_file(settings)


def sqlite_uri(path: Path) -> str:
    """Return the address of an SQLite store, whatever characters its path has."""
    from sqlalchemy import URL  # takes a tenth of a second

    return URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)


def sqlite_path(uri: str) -> Path | None:
    """Return the path of an SQLite store; None for other stores."""
    if not uri.startswith("sqlite"):
        return None
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        database = make_url(uri).database
    except (ArgumentError, ValueError):
        return None
    return Path(database) if database else None
