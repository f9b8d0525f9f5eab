"""Find the two results to compare, wherever they are."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.evaluation.image_counts import ImageCounts
from pipeline.runtime.errors import DataError, KilosegError, UsageError

ALLOWED = "VARIANT, REVISION:VARIANT, SWEEP/NUMBER, runs:/ID, or the folder of an evaluation"


@dataclass(frozen=True)
class ClassScore:
    """Hold a class of a result.

    Attributes:
        name: of the class.
        group: r, c, f or stuff.
        true_pixels: in the truth of val.
        iou: None where the class is neither in truth nor in prediction.
    """

    name: str
    group: str
    true_pixels: int
    iou: float | None


@dataclass(frozen=True)
class Result:
    """Hold one side of a comparison.

    Attributes:
        name: as the user called it.
        metrics: by name.
        classes: by class name; empty where only metrics are known.
        images: counts of every image; None where they are not known.
        settings: by dotted key.
    """

    name: str
    metrics: dict[str, float]
    classes: dict[str, ClassScore] = field(default_factory=dict)
    images: ImageCounts | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def read_result(name: str, project: Path, sweeps: Path, tracking_uri: str) -> Result:
    """Read a result.

    Args:
        name: a variant, "REVISION:VARIANT", "SWEEP/NUMBER", "runs:/ID", or an evaluation's folder.
        project: the folder of params.yaml.
        sweeps: the folder of the sweeps.
        tracking_uri: of the MLflow store.

    Raises:
        DataError: there is no such result, or it is damaged.
        UsageError: `name` is none of these.
    """
    if name.startswith("runs:/"):
        return _from_run(name, tracking_uri)
    for folder in (project / "evaluations" / name, Path(name)):
        if (folder / "record.json").is_file():
            return _from_folder(name, folder)
    sweep, _, number = name.rpartition("/")
    if number.isdecimal() and (sweeps / sweep / "sweep.json").is_file():
        return _from_trial(name, sweeps / sweep, int(number))
    revision, colon, variant = name.partition(":")
    if colon and revision and variant:
        return _from_revision(name, project, revision, variant)
    known = sorted(path.parent.name for path in (project / "evaluations").glob("*/record.json"))
    raise UsageError(
        "no such result",
        where=project,
        found=name,
        allowed=f"{ALLOWED}; evaluated variants: {', '.join(known) or 'none'}",
        hint="evaluate it first: dvc repro",
    )


def _from_folder(name: str, folder: Path) -> Result:
    try:
        record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        with (folder / "per_class.csv").open(newline="", encoding="utf-8") as file:
            classes = _classes(csv.DictReader(file))
        counts = folder / "per_image.npz"
        images = ImageCounts.load(counts) if counts.is_file() else None
        return Result(name, _numbers(record["metrics"]), classes, images, dict(record["settings"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            "an evaluation is damaged or incomplete",
            where=folder,
            found=error,
            hint="evaluate it again: dvc repro --force evaluate@VARIANT",
        ) from error


def _from_revision(name: str, project: Path, revision: str, variant: str) -> Result:
    """Read what DVC's cache has of a commit, tag or branch."""
    from dvc.api import DVCFileSystem

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / variant
        try:
            files = DVCFileSystem(str(project), rev=revision)
            files.get(f"evaluations/{variant}", str(folder), recursive=True)
        except Exception as error:  # DVC's, git's and the remote's own kinds
            raise DataError(
                "no such evaluation in this revision",
                where=f"{project} at {revision}",
                found=str(error).partition("\n")[0] or type(error).__name__,
                allowed="a commit, tag or branch whose evaluations are in DVC's cache",
                hint=f"fetch them: dvc fetch --all-commits, or git checkout {revision} and dvc repro",
            ) from error
        return _from_folder(name, folder)


def _from_trial(name: str, folder: Path, number: int) -> Result:
    """Read a trial, which keeps metrics and no classes."""
    try:
        trial = json.loads((folder / "trials" / f"{number:03d}" / "result.json").read_text(encoding="utf-8"))
        metrics = _numbers(trial["metrics"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            "no result of this trial",
            where=folder / "trials" / f"{number:03d}",
            found=error,
            hint="pipeline tune best lists the trials; pipeline tune --resume ends them",
        ) from error
    return Result(
        name, {key.removeprefix("val/"): value for key, value in metrics.items()}, {}, None, trial["values"]
    )


def _from_run(name: str, tracking_uri: str) -> Result:
    """Read a run's val metrics and, where it has one, its table of classes."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client, run_id = MlflowClient(tracking_uri), name.removeprefix("runs:/")
    try:
        run = client.get_run(run_id)
        names = {entry.path for entry in client.list_artifacts(run_id)}
        classes: dict[str, ClassScore] = {}
        if "per_class.json" in names:
            with tempfile.TemporaryDirectory() as place:
                path = Path(client.download_artifacts(run_id, "per_class.json", place))
                table = json.loads(path.read_text(encoding="utf-8"))
            rows = (dict(zip(table["columns"], row, strict=True)) for row in table["data"])
            classes = _classes(rows)
    except (MlflowException, OSError, ValueError, KeyError) as error:
        raise KilosegError(
            "no such run", where=name, found=str(error).partition("\n")[0], hint="pipeline ui lists the runs"
        ) from error
    metrics = {
        key.removeprefix("val/"): value for key, value in run.data.metrics.items() if key.startswith("val/")
    }
    return Result(name, metrics, classes, None, dict(run.data.params))


def _classes(rows: Iterable[dict[str, Any]]) -> dict[str, ClassScore]:
    return {
        str(row["name"]): ClassScore(
            str(row["name"]),
            str(row["frequency"]),
            int(row["true_pixels"]),
            None if row["iou"] in ("", None) else float(row["iou"]),
        )
        for row in rows
    }


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in metrics.items() if isinstance(value, int | float)}
