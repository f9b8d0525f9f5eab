"""What training and evaluation may say about a run, with no third-party import.

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
    """Receives the parameters, curves and files of one run."""

    @property
    def run_id(self) -> str | None:
        """Identity under which a later process can go on with the same run, or None."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Records settings, once, by dotted key."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Records numbers at an optimization step."""

    def log_artifact(self, path: Path) -> None:
        """Records a file."""


class NoTracker:
    """Keeps nothing."""

    run_id: str | None = None

    def log_params(self, params: Mapping[str, object]) -> None:
        """Forgets the parameters."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Forgets the metrics."""

    def log_artifact(self, path: Path) -> None:
        """Forgets the file."""


def tracking_uri(settings: Settings) -> str:
    """The store: MLFLOW_TRACKING_URI, or SQLite in the project."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{settings.project / 'mlflow.db'}"
