"""From a sweep's trials to one line of params.yaml."""

from __future__ import annotations

import difflib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.load import load_settings, with_overrides
from pipeline.runtime.device import resolve_threads
from pipeline.runtime.errors import DataError, UsageError
from pipeline.tuning.results import (
    apply_values,
    best_trial,
    other_settings,
    pareto_front,
    ranked,
    results_csv,
    summary,
)
from pipeline.tuning.sweep import Sweep, SweepPlan, TrialRecord, trial_settings
from tests.paths import ROOT


def trial(number: int, score: float, memory: float, outcome: str = "finished", **values: Any) -> TrialRecord:
    return TrialRecord(number, values, outcome, score, {"peak_memory_gib": memory})


def make_plan(variant: str | None = "essnet", path: Path = ROOT / "params.yaml") -> SweepPlan:
    settings = load_settings(path, variant=variant).model_dump(mode="json")
    space = {"model.embedding_dim": {"choice": [8, 32]}, "loss.num_negatives": {"choice": [1, 15]}}
    return SweepPlan("named", settings, space, ["val/miou"], 4, 0, "predicted", True, 3)


def test_the_front_holds_what_no_other_finished_trial_beats() -> None:
    records = [
        trial(0, 0.30, 1.0),
        trial(1, 0.20, 0.5),
        trial(2, 0.25, 1.0),  # beaten by 0
        trial(3, 0.20, 0.6),  # beaten by 1
        trial(4, 0.90, 0.1, "pruned"),  # does not compete
        trial(5, 0.30, 1.0),  # equal to 0: neither beats the other
    ]
    assert [record.number for record in pareto_front(records)] == [0, 1, 5]
    assert [record.number for record in ranked(records)] == [0, 5, 2, 1, 3, 4]
    assert summary(records) == "5 finished, 1 pruned"


def test_the_best_trial_has_the_highest_miou_and_of_equals_the_least_memory(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "named")
    with pytest.raises(DataError, match="no trial of this sweep has finished"):
        best_trial(sweep)
    for record in (trial(0, 0.3, 1.0), trial(1, 0.3, 0.9), trial(2, 0.4, 0.1, "pruned")):
        sweep.write(record)
    assert best_trial(sweep).number == 1
    assert best_trial(sweep, 0).number == 0
    with pytest.raises(UsageError, match="not a finished trial"):
        best_trial(sweep, 2)


def test_the_table_has_a_line_a_trial() -> None:
    values = {"model.embedding_dim": 8, "loss.num_negatives": 1}
    records = [TrialRecord(0, values, "failed", None, {}, 3, "lost"), TrialRecord(1, values, "finished", 0.5)]
    lines = results_csv(make_plan(), records).splitlines()
    assert lines[0].startswith("trial,outcome,model.embedding_dim,loss.num_negatives,miou")
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "0"]
    assert lines[2].endswith("lost")


def changed_lines(before: str, after: str) -> list[str]:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return [line for line in list(lines)[2:] if not line.startswith("@@")]


def test_applying_changes_the_swept_variant_and_no_other_line_of_our_own_params(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", path)
    before = path.read_text()
    values = {"model.embedding_dim": 32, "loss.num_negatives": 15}
    shown = apply_values(path, make_plan(), TrialRecord(0, values, "finished", 0.5))
    changed = changed_lines(before, path.read_text())
    assert changed == [
        "-    model: {embedding_dim: 64}",
        "-    loss: {name: knn, num_negatives: 7, similarity: cosine, temperature: 0.05}",
        "+    model: {embedding_dim: 32}",
        "+    loss: {name: knn, num_negatives: 15, similarity: cosine, temperature: 0.05}",
    ]
    assert all(line in shown for line in changed)
    settings = load_settings(path, variant="essnet")
    assert (settings.model.embedding_dim, settings.loss.num_negatives) == (32, 15)
    untouched = load_settings(ROOT / "params.yaml", variant="embedding").flat()
    untouched["data.root"] = str(tmp_path / "data" / "tiny")
    assert load_settings(path, variant="embedding").flat() == untouched
    assert apply_values(path, make_plan(), TrialRecord(0, values, "finished", 0.5)) == ""


def test_what_all_trials_had_is_written_too_and_what_else_differs_is_told(tmp_path: Path) -> None:
    """The number of threads and `tune.fixed`, without which the training is not the trial's."""
    path = tmp_path / "params.yaml"
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree["tune"]["fixed"] = {"train.validate_every": 110, "train.steps": 550}
    path.write_text(yaml.safe_dump(tree))
    fixed = with_overrides(load_settings(path, variant="essnet"), tree["tune"]["fixed"])
    plan = replace(make_plan(), settings=fixed.model_dump(mode="json"), threads=resolve_threads("auto") + 1)
    record = TrialRecord(0, {"loss.num_negatives": 15}, "finished", 0.5)
    swept = path.read_text()
    apply_values(path, plan, record, swept_only=True)
    assert yaml.safe_load(path.read_text())["variants"]["essnet"]["loss"]["num_negatives"] == 15
    assert other_settings(path, plan, record) == ["train.validate_every 275, in the trial 110"]
    path.write_text(swept)
    apply_values(path, plan, record)
    written = yaml.safe_load(path.read_text())["variants"]["essnet"]
    assert written["train"] == {"validate_every": 110}  # steps are those of the file already
    assert written["runtime"] == {"threads": plan.threads}
    assert other_settings(path, plan, record) == []
    settings = load_settings(path, variant="essnet")
    assert settings.flat() == trial_settings(plan, record.values).flat()
    on_gpu = replace(plan, memory_kind="cuda_allocator", threads=3)
    apply_values(path, on_gpu, record)
    assert load_settings(path, variant="essnet").runtime.threads == plan.threads


def test_a_sweep_of_the_plain_settings_changes_one_line_and_keeps_its_comment(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", path)
    before = path.read_text()
    apply_values(path, make_plan(None), TrialRecord(0, {"loss.num_negatives": 15}, "finished", 0.5))
    changed = changed_lines(before, path.read_text())
    assert [line.split("#")[0].split() for line in changed] == [
        ["-", "num_negatives:", "7"],
        ["+", "num_negatives:", "15"],
    ]
    assert all("# for knn and sampled" in line for line in changed)


def test_values_that_do_not_fit_the_file_any_more_leave_it_alone(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", path)
    plan = make_plan()
    document = yaml.safe_load(path.read_text())
    document["variants"]["essnet"] = {"train": {"scale_max": 1.0}}
    path.write_text(yaml.safe_dump(document))
    before = path.read_bytes()
    with pytest.raises(UsageError):
        apply_values(path, plan, TrialRecord(0, {"train.scale_min": 1.5}, "finished", 0.5))
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["params.yaml"]
