"""Find the two results to compare, wherever they are."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config.schema import Settings
from pipeline.config.seeds import repeat_of
from pipeline.evaluation.image_counts import ImageCounts
from pipeline.evaluation.seeds import records_of_seeds
from pipeline.report.inputs import ClassResult, Training, class_result, read_variant
from pipeline.runtime.errors import DataError, UsageError
from pipeline.tuning.sweep import Sweep

ALLOWED = "VARIANT, REVISION:VARIANT, SWEEP/NUMBER, runs:/ID, or the folder of an evaluation"


@dataclass(frozen=True)
class Result:
    """Hold one side of a comparison.

    Attributes:
        name: as the user called it.
        metrics: by name.
        classes: by class name; empty where only metrics are known.
        images: counts of every image; None where they are not known.
        settings: by dotted key.
        machine: threads, processor and the like, by which equal trainings differ in the last digits.
        seeds: metrics of the variant's trainings with each seed, its own first; empty with one.
    """

    name: str
    metrics: dict[str, float]
    classes: dict[str, ClassResult] = field(default_factory=dict)
    images: ImageCounts | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    seeds: dict[int, dict[str, float]] = field(default_factory=dict)


def read_result(name: str, settings: Settings) -> Result:
    """Read a result.

    Args:
        name: a variant, "REVISION:VARIANT", "SWEEP/NUMBER", "runs:/ID", or an evaluation's folder.
        settings: name the project, the sweeps and the store.

    Raises:
        DataError: there is no such result, or it is damaged.
        UsageError: `name` is none of these.
        KilosegError: the store refuses or does not answer.
    """
    project, sweeps = settings.project, settings.tune.folder
    if name.startswith("runs:/"):
        return _from_run(name, settings)
    for folder in (project / "evaluations" / name, Path(name)):
        if (folder / "record.json").is_file():
            return _from_folder(name, folder)
    sweep, _, number = name.rpartition("/")
    if number.isdecimal() and (sweeps / sweep / "sweep.json").is_file():
        return _from_trial(name, Sweep(sweeps / sweep), int(number))
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
    variant = read_variant(folder, folder.name)
    records = records_of_seeds(folder.parent, folder.name)
    return Result(
        name,
        _known(variant.record.metrics),
        {one.name: one for one in variant.classes},
        variant.images,
        variant.record.settings,
        _machine(variant.record.training, variant.record.environment),
        {seed: _known(record["metrics"]) for seed, record in records.items()} if len(records) > 1 else {},
    )


def _known(metrics: Mapping[str, float | None]) -> dict[str, float]:
    return {key: float(value) for key, value in metrics.items() if value is not None}


def _machine(training: Training, environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return on what was trained; records of before do not tell all of it."""
    found = {
        "threads": training.threads,
        "processor": training.processor,
        "kernels": environment.get("kernels"),
        "torch": environment.get("torch"),
    }
    return {key: value for key, value in found.items() if value is not None}


def _from_revision(name: str, project: Path, revision: str, variant: str) -> Result:
    """Read what DVC's cache has of a commit, tag or branch."""
    from dvc.api import DVCFileSystem

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / variant
        try:
            files = DVCFileSystem(str(project), rev=revision)
            there = [str(path).rpartition("/")[2] for path in files.ls("evaluations", detail=False)]
            repeats = [one for one in there if (repeat_of(one) or ("", 0))[0] == variant]
            for one in (variant, *repeats):
                files.get(f"evaluations/{one}", str(Path(place) / one), recursive=True)
        except Exception as error:  # DVC's, git's and the remote's own kinds
            raise DataError(
                "no such evaluation in this revision",
                where=f"{project} at {revision}",
                found=str(error).partition("\n")[0] or type(error).__name__,
                allowed="a commit, tag or branch whose evaluations are in DVC's cache",
                hint=f"fetch them: dvc fetch --all-commits, or git checkout {revision} and dvc repro",
            ) from error
        return _from_folder(name, folder)


def _from_trial(name: str, sweep: Sweep, number: int) -> Result:
    """Read a trial, which keeps metrics and no classes."""
    folder = sweep.trial_folder(number)
    record = sweep.record(number) if (folder / "trial.json").is_file() else None
    if record is None or not record.metrics:
        raise DataError(
            "no result of this trial",
            where=folder,
            found="no such trial" if record is None else f"outcome {record.outcome}",
            hint="pipeline tune best lists the trials; pipeline tune --resume ends them",
        )
    metrics = {key.removeprefix("val/"): value for key, value in record.metrics.items()}
    return Result(name, metrics, settings=record.values)


def _from_run(name: str, settings: Settings) -> Result:
    """Read a run's val metrics and, where it has one, its table of classes."""
    from pipeline.tracking.mlflow_run import is_missing
    from pipeline.tracking.mlflow_store import STORE_ERRORS, explain, open_client

    client, run_id = open_client(settings), name.removeprefix("runs:/")
    classes: dict[str, ClassResult] = {}
    try:
        run = client.get_run(run_id)
        if any(entry.path == "per_class.json" for entry in client.list_artifacts(run_id)):
            with tempfile.TemporaryDirectory() as place:
                path = Path(client.download_artifacts(run_id, "per_class.json", place))
                table = json.loads(path.read_text(encoding="utf-8"))
            rows = (dict(zip(table["columns"], row, strict=True)) for row in table["data"])
            classes = {one.name: one for one in map(class_result, rows)}
    except STORE_ERRORS as error:
        if is_missing(error):
            raise DataError("no such run", where=name, hint="pipeline ui lists the runs") from error
        raise explain(settings, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError("a run whose table of classes is damaged", where=name, found=error) from error
    metrics = {
        key.removeprefix("val/"): value for key, value in run.data.metrics.items() if key.startswith("val/")
    }
    return Result(name, metrics, classes, settings=dict(run.data.params))
