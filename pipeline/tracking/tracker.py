"""Define how training and evaluation log a run, with no third-party import.

Training is handed a `Tracker` and does not know where its numbers go: to MLflow in the stages
(`pipeline.tracking.mlflow_tracker`), to a sweep's trial, or nowhere in tests.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

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
    """Return the store: MLFLOW_TRACKING_URI, or SQLite in the project."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{settings.project / 'mlflow.db'}"
