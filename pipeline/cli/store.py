"""Let MLflow's addresses of models mean those of the project's own store."""

from __future__ import annotations

import os
from pathlib import Path


def use_project_store(project: Path) -> None:
    """Set MLFLOW_TRACKING_URI to the project's store, unless it is set or there is no such store."""
    from pipeline.tracking.tracker import sqlite_uri

    if (project / "mlflow.db").is_file():
        os.environ.setdefault("MLFLOW_TRACKING_URI", sqlite_uri(project / "mlflow.db"))
