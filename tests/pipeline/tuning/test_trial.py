"""A trial is the stages' training and evaluation, and goes on where it stopped."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoint.format import load_checkpoint
from pipeline.config.load import load_settings, with_overrides
from pipeline.data.store.shards import MaskShards
from pipeline.evaluation.outputs import evaluate_checkpoint
from pipeline.runtime.errors import KilosegError
from pipeline.runtime.files import write_json
from pipeline.runtime.locks import locked
from pipeline.tracking.tracker import NoTracker
from pipeline.training.trainer import train
from pipeline.tuning.sweep import Sweep, SweepPlan, TrialRecord, read_journal
from pipeline.tuning.trial import run_trial

pytestmark = pytest.mark.training
RUNTIME = {"runtime.threads": 1, "runtime.num_workers": 0, "runtime.device": "cpu"}
VALUES = {"model.embedding_dim": 4, "loss.num_negatives": 2}


@pytest.fixture
def sweep(project: Path) -> Sweep:
    return make_sweep(project)


def make_sweep(project: Path, values: dict[str, Any] | None = None, budget: float | None = None) -> Sweep:
    settings = load_settings(variant="essnet").model_dump(mode="json")
    space = {key: {"choice": [value]} for key, value in (values or VALUES).items()}
    plan = SweepPlan("named", settings, space, ["val/miou"], 1, 0, "predicted", True, 3, budget)
    sweep = Sweep(project / "sweeps" / "named")
    sweep.create(plan)
    sweep.write(TrialRecord(0, values or VALUES, "running"))
    return sweep


def go(sweep: Sweep, report: Any = None) -> list[dict[str, Any]]:
    reports: list[dict[str, Any]] = []

    def keep(values: dict[str, Any]) -> None:
        reports.append(values)
        if report is not None:
            report(values)

    run_trial({"trial": 0}, folder=str(sweep.folder), runtime=RUNTIME, report=keep)
    return reports


@pytest.fixture(scope="module")
def finished_trial(tmp_path_factory: pytest.TempPathFactory, bootstrapped_project: Path) -> Sweep:
    """A sweep whose one trial ran undisturbed, with what it reported in reports.json: not to be changed."""
    project = tmp_path_factory.mktemp("trial")
    (project / "data").symlink_to(bootstrapped_project / "data")
    shutil.copy(bootstrapped_project / "params.yaml", project)
    with contextlib.chdir(project):
        sweep = make_sweep(project)
        (project / "reports.json").write_text(json.dumps(go(sweep)))
    return sweep


@pytest.mark.training
def test_a_trial_equals_the_stages(finished_trial: Sweep, tmp_path: Path, project: Path) -> None:
    sweep = finished_trial
    reports = json.loads((sweep.folder.parents[1] / "reports.json").read_text())
    settings = with_overrides(load_settings(variant="essnet"), VALUES)
    result = train(settings, NoTracker(), folder=tmp_path / "alone")
    checkpoint = load_checkpoint(result.checkpoint)
    evaluation, _ = evaluate_checkpoint(settings, checkpoint, checkpoint.segmenter(), "val")
    record = sweep.record(0)
    assert record.outcome == "finished"
    assert {name: record.metrics[f"val/{name}"] for name in evaluation.metrics.flat()} == pytest.approx(
        {name: float(value) for name, value in evaluation.metrics.flat().items()}
    )
    assert record.score == record.metrics["val/miou"]
    assert record.metrics["peak_memory_gib"] == record.metrics["predicted_memory_gib"] > 0
    assert [(report["step"], report["final"]) for report in reports] == [(4, False), (8, True)]
    assert not (sweep.trial_folder(0) / "last.safetensors").exists()
    assert go(sweep) == reports[-1:]  # once more does nothing but say so


@pytest.mark.training
def test_a_trial_that_is_cut_off_goes_on_and_says_nothing_twice(sweep: Sweep, finished_trial: Sweep) -> None:
    def cut(values: dict[str, Any]) -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        go(sweep, cut)
    place = sweep.trial_folder(0)
    assert not sweep.record(0).done
    with (place / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "met')  # as a kill leaves it
    go(sweep)
    interrupted = sweep.record(0)
    events = read_journal(place / "metrics.jsonl")
    said = Counter((name, event["step"]) for event in events for name in event["metrics"])
    assert set(said.values()) == {1}
    assert {step for name, step in said if name == "train/loss"} == set(range(1, 9))

    undisturbed = finished_trial.record(0)
    changing = {"train_seconds"}
    assert {key: value for key, value in interrupted.metrics.items() if key not in changing} == {
        key: value for key, value in undisturbed.metrics.items() if key not in changing
    }


@pytest.mark.training
def test_a_kill_between_training_and_evaluation_trains_nothing_again(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = with_overrides(load_settings(variant="essnet"), {**VALUES, **RUNTIME})
    train(settings, NoTracker(), folder=sweep.trial_folder(0))
    write_json(sweep.trial_folder(0) / "predicted.json", 0.5)  # predicting takes seconds
    monkeypatch.setattr("pipeline.tuning.trial.train", None)  # calling it would fail
    go(sweep)
    assert sweep.record(0).outcome == "finished"


def test_a_trial_over_the_memory_budget_is_infeasible_and_not_trained(project: Path) -> None:
    sweep = make_sweep(project, budget=0.001)
    reports = go(sweep)
    record = sweep.record(0)
    assert record.outcome == "infeasible"
    assert "of 0.00 GiB" in str(record.error)
    assert [report["outcome"] for report in reports] == ["infeasible"]
    assert read_journal(sweep.trial_folder(0) / "metrics.jsonl") == []


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory. Tried 20 GiB"), MemoryError()])
def test_running_out_of_memory_is_infeasible_not_a_crash(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("pipeline.tuning.trial.train", full)
    reports = go(sweep)
    record = sweep.record(0)
    assert (record.outcome, record.score) == ("infeasible", 0.0)
    assert "out of memory" in str(record.error)
    assert reports[-1]["peak_memory_gib"] == record.metrics["predicted_memory_gib"] > 0


@pytest.mark.training
def test_a_training_that_diverges_fails_with_its_reason(project: Path) -> None:
    sweep = make_sweep(project, {"train.learning_rate": 1e30})
    write_json(sweep.trial_folder(0) / "predicted.json", 0.5)  # predicting takes seconds
    reports = go(sweep)
    record = sweep.record(0)
    assert record.outcome == "failed"
    assert "no longer finite" in str(record.error)
    assert reports[-1]["outcome"] == "failed"


@pytest.mark.training
def test_a_trial_whose_objective_is_null_fails_with_its_reason(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.evaluation import outputs

    monkeypatch.setattr(outputs, "SegmentationDataset", without_images(outputs.SegmentationDataset))
    write_json(sweep.trial_folder(0) / "predicted.json", 0.5)  # predicting takes seconds
    reports = go(sweep)
    record = sweep.record(0)
    assert (record.outcome, record.score) == ("failed", None)
    assert "val/miou" in str(record.error)
    assert "null" in str(record.error)
    assert reports[-1]["outcome"] == "failed"


def without_images(kind: Any) -> Any:
    """The dataset, with no image."""

    def opened(*arguments: Any) -> Any:
        dataset = kind(*arguments)
        dataset._rows = MaskShards([], [])
        return dataset

    return opened


def test_a_machine_without_the_shared_folder_says_so_and_makes_nothing(sweep: Sweep, tmp_path: Path) -> None:
    with pytest.raises(KilosegError, match="not on this machine"):
        go(Sweep(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


def test_two_processes_never_work_on_one_trial(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.tuning.trial._PATIENCE_SECONDS", 0.3)
    with (
        locked(sweep.trial_folder(0) / ".lock"),
        pytest.raises(KilosegError, match="another process of trial 0"),
    ):
        go(sweep)
    assert json.loads((sweep.trial_folder(0) / "trial.json").read_text())["outcome"] == "running"
