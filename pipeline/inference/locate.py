"""Find the checkpoint that a name means: a file, a folder, a registered model, or the best variant."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.runtime.errors import DataError

_MLFLOW = ("models:/", "runs:/", "mlflow-artifacts:/")


@contextlib.contextmanager
def located(source: Path | str) -> Iterator[Path]:
    """Yield the checkpoint's file; what was downloaded for it is removed after the block.

    Args:
        source: a safetensors file, a folder with one, or MLflow's address of a model: "models:/NAME@ALIAS",
            "models:/NAME/VERSION", "runs:/RUN/PATH".

    Raises:
        DataError: nothing there.
    """
    if isinstance(source, str) and source.startswith(_MLFLOW):
        with tempfile.TemporaryDirectory(prefix="kiloseg-") as folder:
            yield _in_folder(_downloaded(source, folder), source)
    else:
        path = Path(source)
        yield _in_folder(path, source) if path.is_dir() else path


def best_variant(project: Path) -> Path:
    """Return the checkpoint of the variant with the best mIoU on val in `results/`.

    Raises:
        DataError: no variant was trained and evaluated.
    """
    scores: dict[Path, float] = {}
    for metrics in sorted((project / "results").glob("*/metrics.json")):
        checkpoint = project / "checkpoints" / metrics.parent.name / "best.safetensors"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            score = float(json.loads(metrics.read_text(encoding="utf-8"))["miou"])
            if checkpoint.is_file() and not math.isnan(score):
                scores[checkpoint] = score
    if not scores:
        raise DataError(
            "no trained variant",
            where=project,
            allowed="results/VARIANT/metrics.json beside checkpoints/VARIANT/best.safetensors",
            hint="train first (dvc repro), or name a checkpoint with --checkpoint",
        )
    return max(scores, key=lambda path: scores[path])


def _in_folder(folder: Path, source: Path | str) -> Path:
    """Return the best checkpoint of a run's folder, or the only safetensors file below it."""
    if folder.is_file():
        return folder
    best = folder / "best.safetensors"
    files = [best] if best.is_file() else sorted(folder.rglob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    raise DataError(
        "several checkpoints" if files else "no checkpoint",
        where=source,
        found=", ".join(str(file.relative_to(folder)) for file in files[:5]) or "no safetensors file",
        allowed="best.safetensors, or a single safetensors file",
        hint="name the file" if files else "train first: dvc repro",
    )


def _downloaded(address: str, folder: str) -> Path:
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    store = mlflow.get_tracking_uri()
    if store.startswith("sqlite:///") and not Path(store.removeprefix("sqlite:///")).is_file():
        raise DataError(  # MLflow would make an empty one
            "no MLflow store",
            where=store,
            hint="run it in the project's folder, or set MLFLOW_TRACKING_URI to the store that has the model",
        )
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=folder))
    except (mlflow.exceptions.MlflowException, OSError, ValueError) as error:
        raise DataError(
            "no such model in MLflow",
            where=f"{address} on {mlflow.get_tracking_uri()}",
            found=_first_line(error),
            hint="check the name, and that MLFLOW_TRACKING_URI names the store that has it",
        ) from error


def _first_line(error: Any) -> str:
    return str(error).strip().partition("\n")[0]
