"""Read and write a sweep on disk: its plan and a folder per trial.

The files are the truth; Ray and MLflow only see them.

    sweeps/NAME/sweep.json              the plan: settings, space, objectives, number of trials
    sweeps/NAME/trials/007/trial.json   written by the driver: the values and the outcome
                          /result.json  written by the trial: outcome and metrics
                          /metrics.jsonl  its curves, one event per line, appended while it runs
                          /*.safetensors  its checkpoints

A trial is identified by its number, not by Ray's id. A driver that starts again therefore finds the same
trials: finished ones with their results, the others with their checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.config.load import with_overrides
from pipeline.config.renamed import current_keys, current_tree
from pipeline.config.schema import Settings
from pipeline.config.unused import used
from pipeline.runtime.errors import DataError, UsageError
from pipeline.runtime.files import write_json
from pipeline.tracking.journal import read_events
from pipeline.tuning.portable import from_disk, to_disk

FORMAT = 1
DONE = ("finished", "pruned", "infeasible", "failed")
"""Outcomes after which a trial is not run again. The other outcomes: waiting, running, stopped."""


@dataclass(frozen=True)
class SweepPlan:
    """Hold what a sweep runs. After the start only `trials`, `run_id` and, once, `threads` change.

    Attributes:
        name: of the sweep.
        settings: the settings every trial starts from; JSON of `Settings`, with absolute paths.
        space: {dotted key: {kind: values}}.
        objectives: metrics to optimize, the mIoU first.
        trials: planned number of trials.
        seed: of the search.
        memory_kind: what `peak_memory_gib` of a trial is: "cuda_allocator", or "predicted" without a GPU.
        pruning: stop trials early that are behind (ASHA).
        reduction_factor: ASHA continues one in so many trials at each rung.
        memory_budget_gib: trials predicted to need more are not trained; None: no limit.
        run_id: the parent run in MLflow.
        threads: of torch in every trial, fixed at the start: another number rounds sums otherwise, and after
            some hundred steps gives another network. None in a sweep of before it was kept.
    """

    name: str
    settings: dict[str, Any]
    space: dict[str, dict[str, list[Any]]]
    objectives: list[str]
    trials: int
    seed: int
    memory_kind: str
    pruning: bool
    reduction_factor: int
    memory_budget_gib: float | None = None
    run_id: str | None = None
    threads: int | None = None

    def base(self) -> Settings:
        """Return the settings that trials start from."""
        return Settings.model_validate(self.settings)

    def used(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values that a trial's training uses: of an exact loss no number of negatives."""
        return used(values, self.settings)


@dataclass(frozen=True)
class TrialRecord:
    """Hold one trial as its files describe it.

    Attributes:
        number: 0, 1, ...
        values: of the swept settings, by dotted key.
        outcome: waiting, running, stopped, finished, pruned, infeasible or failed.
        score: the best mIoU known: the objective's when finished, else the held-out part's.
        metrics: the results, by name.
        step: steps taken.
        error: the reason of a failure.
    """

    number: int
    values: dict[str, Any]
    outcome: str = "waiting"
    score: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    step: int = 0
    error: str | None = None

    @property
    def done(self) -> bool:
        """Tell whether the trial will not run again."""
        return self.outcome in DONE

    @property
    def memory_gib(self) -> float | None:
        """Return the peak memory in GiB, of the sweep's `memory_kind`; predicted if it did not fit."""
        return self.metrics.get("peak_memory_gib", self.metrics.get("predicted_memory_gib"))


class Sweep:
    """Read and write the folder of one sweep."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def plan(self) -> SweepPlan:
        """Read the plan from disk.

        Raises:
            DataError: the sweep does not exist or has another format.
        """
        path = self.folder / "sweep.json"
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DataError(
                "no such sweep",
                where=path,
                allowed=", ".join(sweep_names(self.folder.parent)) or "there is none yet",
                hint="name one of these, or start one: pipeline tune",
            ) from error
        if document.pop("format", None) != FORMAT:
            raise DataError("a sweep of another version of kiloseg", where=path, hint="start a new one")
        document["settings"] = from_disk(current_tree(document["settings"]), self.folder)
        document["space"] = current_keys(document["space"])
        return SweepPlan(**document)

    def create(self, plan: SweepPlan) -> None:
        """Write the plan of a new sweep.

        Raises:
            UsageError: the name is in use.
        """
        if (self.folder / "sweep.json").exists():
            raise name_in_use(self.folder)
        self.rewrite(plan)

    def rewrite(self, plan: SweepPlan) -> None:
        """Replace the plan, atomically."""
        stored = {**asdict(plan), "settings": to_disk(plan.settings, self.folder)}
        write_json(self.folder / "sweep.json", {"format": FORMAT, **stored})

    def trial_folder(self, number: int) -> Path:
        """Return the folder of trial `number`."""
        return self.folder / "trials" / f"{number:03d}"

    def records(self) -> list[TrialRecord]:
        """Read all trials proposed so far, by number."""
        paths = (self.folder / "trials").glob("*/trial.json")
        return [self.record(number) for number in sorted(int(path.parent.name) for path in paths)]

    def record(self, number: int) -> TrialRecord:
        """Read one trial; its own result.json overrides what the driver noted."""
        folder = self.trial_folder(number)
        document = json.loads((folder / "trial.json").read_text(encoding="utf-8"))
        known = TrialRecord(**{**document, "values": current_keys(document["values"])})
        result = folder / "result.json"
        if not result.is_file():
            return known
        written = json.loads(result.read_text(encoding="utf-8"))
        return replace(
            known, **{key: written[key] for key in ("outcome", "score", "metrics", "step", "error")}
        )

    def write(self, record: TrialRecord) -> None:
        """Write what the driver knows of a trial."""
        write_json(self.trial_folder(record.number) / "trial.json", asdict(record))


def write_result(folder: Path, record: TrialRecord) -> None:
    """Write a trial's outcome into its folder."""
    write_json(folder / "result.json", asdict(record))


def name_in_use(folder: Path) -> UsageError:
    """Make the error for a second sweep of the same name."""
    return UsageError(
        "a sweep of this name exists",
        where=folder,
        hint=f"go on with it: pipeline tune --resume --name {folder.name}; or choose another --name",
    )


def sweep_names(folder: Path) -> list[str]:
    """List the sweeps in `folder`, the latest last."""
    plans = sorted(folder.glob("*/sweep.json"), key=lambda path: path.stat().st_mtime)
    return [path.parent.name for path in plans]


def find_sweep(folder: Path, name: str | None) -> Sweep:
    """Find the sweep called `name`, or the latest one.

    Raises:
        DataError: there is no such sweep.
    """
    names = sweep_names(folder)
    if name is None and not names:
        raise DataError("no sweep yet", where=folder, hint="start one: pipeline tune")
    if name is not None and name not in names:
        raise DataError(
            "no such sweep", where=folder, found=name, allowed=", ".join(names) or "there is none yet"
        )
    return Sweep(folder / (name or names[-1]))


def trial_settings(plan: SweepPlan, values: Mapping[str, Any]) -> Settings:
    """Return the settings of the trial with these swept values."""
    return with_overrides(plan.base(), values)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Read the complete points of a trial's metrics.jsonl; skip a line that a kill cut short."""
    return [event for event in read_events(path) if {"step", "metrics"} <= set(event)]


def predicted_gib(place: Path) -> float | None:
    """Read the predicted peak memory of the trial in this folder, GiB; None before the prediction."""
    path = place / "predicted.json"
    return float(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
