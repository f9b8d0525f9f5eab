"""What commands about checkpoints share: which one is meant, and whose MLflow store."""

from __future__ import annotations

import os
from pathlib import Path


def names_a_checkpoint(source: str) -> bool:
    """Tell whether a source names a file, a folder or a model in MLflow, rather than a variant."""
    return ":/" in source or "/" in source or source.endswith(".safetensors") or Path(source).exists()


def use_project_store(project: Path) -> None:
    """Set MLFLOW_TRACKING_URI to the project's store, unless it is set or there is no such store."""
    from pipeline.tracking.tracker import sqlite_uri

    if (project / "mlflow.db").is_file():
        os.environ.setdefault("MLFLOW_TRACKING_URI", sqlite_uri(project / "mlflow.db"))
