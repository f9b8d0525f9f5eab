"""Proposals are kept before they are used, and a driver that starts again knows what was tried."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.search import Searcher

from pipeline.config.load import load_settings
from pipeline.tuning.results import results_csv
from pipeline.tuning.search import SweepSearch, build_scheduler
from pipeline.tuning.space import read_space
from pipeline.tuning.sweep import Sweep, SweepPlan, TrialRecord, write_result
from pipeline.tuning.trial_run import trial_name

SPACE: dict[str, dict[str, list[Any]]] = {
    "model.embedding_dim": {"choice": [4, 8, 16]},
    "loss.temperature": {"loguniform": [0.01, 1.0]},
}


def make_sweep(
    folder: Path, trials: int = 3, objectives: tuple[str, ...] = ("val/miou",), space: Any = SPACE
) -> tuple[Sweep, SweepPlan]:
    settings = load_settings(variant="essnet").model_dump(mode="json")
    plan = SweepPlan("named", settings, space, list(objectives), trials, 0, "predicted", True, 3)
    sweep = Sweep(folder / "named")
    sweep.rewrite(plan)
    return sweep, plan


def searcher(sweep: Sweep, plan: SweepPlan) -> SweepSearch:
    return SweepSearch(sweep, plan, read_space(plan.space, plan.base()))


def finish(sweep: Sweep, number: int, score: float, outcome: str = "finished") -> dict[str, Any]:
    record = sweep.record(number)
    metrics = {"peak_memory_gib": 1.0}
    ended = TrialRecord(number, record.values, outcome, score, metrics, step=8)
    write_result(sweep.trial_folder(number), ended)
    return {"score": score, "peak_memory_gib": 1.0, "step": 8, "final": True, "outcome": outcome}


def test_a_proposal_is_on_disk_before_a_trial_gets_it_and_they_end_with_the_plan(project: Path) -> None:
    sweep, plan = make_sweep(project)
    search = searcher(sweep, plan)
    for number in range(3):
        assert search.suggest(f"ray-{number}") == {"trial": number}
        assert set(sweep.record(number).values) == set(SPACE)
    assert search.suggest("ray-3") == Searcher.FINISHED


def test_a_second_driver_takes_up_the_unfinished_and_tells_optuna_of_the_finished(project: Path) -> None:
    sweep, plan = make_sweep(project, trials=5)
    first = searcher(sweep, plan)
    for number in range(4):
        first.suggest(f"ray-{number}")
    finish(sweep, 0, 0.25)
    finish(sweep, 2, 0.0, "infeasible")
    finish(sweep, 3, 0.0, "failed")
    before = [record.values for record in sweep.records()]

    second = searcher(sweep, plan)
    told = [(trial.state.name, trial.values) for trial in second._study.trials]
    assert told == [("COMPLETE", [0.25]), ("COMPLETE", [0.0]), ("FAIL", None)]
    assert second.suggest("new-0") == {"trial": 1}
    assert second.suggest("new-1") == {"trial": 4}
    assert second.suggest("new-2") == Searcher.FINISHED
    assert [record.values for record in sweep.records()][:4] == before
    assert second._study.trials[3].params == before[1]


def test_what_a_trial_came_to_reaches_optuna(project: Path) -> None:
    sweep, plan = make_sweep(project, trials=4)
    search = searcher(sweep, plan)
    for number in range(4):
        search.suggest(f"ray-{number}")
    search.on_trial_complete("ray-0", finish(sweep, 0, 0.5))
    search.on_trial_complete("ray-1", {"score": 0.1, "step": 2, "peak_memory_gib": 1.0, "final": False})
    search.on_trial_complete("ray-2", finish(sweep, 2, 0.0, "failed"))
    search.on_trial_complete("ray-3", None, error=True)
    states = [trial.state.name for trial in search._study.trials]
    assert states == ["COMPLETE", "PRUNED", "FAIL", "FAIL"]
    assert search._study.best_value == 0.5


def test_two_objectives_make_a_study_of_two_directions(project: Path) -> None:
    sweep, plan = make_sweep(project, objectives=("val/miou", "peak_memory_gib"))
    search = searcher(sweep, plan)
    search.suggest("ray-0")
    search.suggest("ray-1")
    search.on_trial_complete("ray-0", finish(sweep, 0, 0.5))
    search.on_trial_complete("ray-1", {"score": 0.1, "step": 2, "peak_memory_gib": 0.2, "final": False})
    assert [trial.values for trial in search._study.best_trials] == [[0.5, 1.0], [0.1, 0.2]]
    again = searcher(sweep, plan)
    assert again._study.trials[0].values == [0.5, 1.0]


def test_what_did_not_fit_does_not_look_cheap(project: Path) -> None:
    sweep, plan = make_sweep(project, trials=4, objectives=("val/miou", "peak_memory_gib"))
    search = searcher(sweep, plan)
    for number, metrics in enumerate(({"predicted_memory_gib": 90.0}, {})):
        search.suggest(f"ray-{number}")
        record = sweep.record(number)
        ended = TrialRecord(number, record.values, "infeasible", 0.0, metrics)
        write_result(sweep.trial_folder(number), ended)
    again = searcher(sweep, plan)
    assert [(trial.state.name, trial.values) for trial in again._study.trials] == [
        ("COMPLETE", [0.0, 90.0]),
        ("FAIL", None),
    ]


def test_a_pure_grid_needs_no_drawing(project: Path) -> None:
    space = {"model.embedding_dim": {"grid": [4, 8]}, "loss.num_negatives": {"grid": [1, 3]}}
    sweep, plan = make_sweep(project, trials=4, space=space)
    search = searcher(sweep, plan)
    for number in range(4):
        search.suggest(f"ray-{number}")
    points = {tuple(record.values.values()) for record in sweep.records()}
    assert points == {(4, 1), (4, 3), (8, 1), (8, 3)}
    assert search._study.trials == []


def test_a_point_is_never_tried_twice_and_a_finite_space_ends(project: Path) -> None:
    space = {"model.embedding_dim": {"choice": [4, 8]}, "loss.num_negatives": {"uniform": [1, 3]}}
    sweep, plan = make_sweep(project, trials=9, space=space)
    search = searcher(sweep, plan)
    for number in range(6):
        assert search.suggest(f"ray-{number}") == {"trial": number}
        # the more the better, so that a searcher that may would come back to 8 and 3
        values = sweep.record(number).values
        score = values["model.embedding_dim"] / 10 + values["loss.num_negatives"] / 100
        search.on_trial_complete(f"ray-{number}", finish(sweep, number, score))
    points = {tuple(record.values.values()) for record in sweep.records()}
    assert points == {(dim, negatives) for dim in (4, 8) for negatives in (1, 2, 3)}
    assert search.suggest("ray-6") == Searcher.FINISHED
    assert searcher(sweep, plan).suggest("ray-7") == Searcher.FINISHED


@pytest.mark.parametrize("kinds", list(itertools.product(("choice", "grid"), repeat=2)), ids="-".join)
def test_no_training_is_tried_twice_where_a_setting_is_not_used(
    project: Path, kinds: tuple[str, str]
) -> None:
    """An exact loss has no negatives; which of their numbers its trial was given does not matter."""
    space: Any = {"loss.name": {kinds[0]: ["exact", "knn"]}, "loss.num_negatives": {kinds[1]: [1, 3, 7]}}
    sweep, plan = make_sweep(project, trials=6, space=space)
    search = searcher(sweep, plan)
    for number in range(4):
        assert search.suggest(f"ray-{number}") == {"trial": number}
        search.on_trial_complete(f"ray-{number}", finish(sweep, number, 0.5))
    assert search.suggest("ray-4") == Searcher.FINISHED
    used = [plan.used(record.values) for record in sweep.records()]
    wanted = [{"loss.name": "knn", "loss.num_negatives": count} for count in (1, 3, 7)]
    assert sorted(used, key=str) == sorted([{"loss.name": "exact"}, *wanted], key=str)
    names = {trial_name(record, plan)[5:] for record in sweep.records()}
    assert names == {"name=exact", *(f"name=knn, num_negatives={count}" for count in (1, 3, 7))}
    rows = results_csv(plan, sweep.records()).splitlines()
    assert sum(",exact,,0.5," in row for row in rows) == 1  # the number of negatives is left out


def test_an_endless_space_does_not_end_where_the_best_value_leaves_the_others_unused(project: Path) -> None:
    """The searcher would come back to softmax, which has no temperature, for ever."""
    space: Any = {"model.head": {"choice": ["embedding", "softmax"]}}
    space |= {"loss.temperature": {"loguniform": [0.01, 1.0]}}
    sweep, plan = make_sweep(project, trials=30, space=space)
    search = searcher(sweep, plan)
    for number in range(30):
        assert search.suggest(f"ray-{number}") == {"trial": number}
        score = 0.9 if sweep.record(number).values["model.head"] == "softmax" else 0.1
        search.on_trial_complete(f"ray-{number}", finish(sweep, number, score))
    heads = [record.values["model.head"] for record in sweep.records()]
    assert heads.count("softmax") == 1
    assert len({json.dumps(plan.used(record.values)) for record in sweep.records()}) == 30


def test_a_large_space_of_one_training_ends(project: Path) -> None:
    space: Any = {"model.head": {"choice": ["softmax"]}, "loss.temperature": {"uniform": [0.01, 1.0]}}
    sweep, plan = make_sweep(project, trials=3, space=space)
    search = searcher(sweep, plan)
    assert search.suggest("ray-0") == {"trial": 0}
    assert search.suggest("ray-1") == Searcher.FINISHED


def test_an_earlier_result_reaches_rays_own_rungs(project: Path) -> None:
    """`add_earlier_result` uses a private attribute of Ray: this test breaks when Ray renames it."""
    sweep, plan = make_sweep(project)
    scheduler = build_scheduler(sweep, plan)
    scheduler.add_earlier_result("earlier-0", 4, 0.25)
    (bracket,) = scheduler._brackets
    assert [recorded for _, recorded in bracket._rungs] == [{"earlier-0": 0.25}]


@pytest.mark.parametrize(("score", "decision"), [(0.01, "STOP"), (0.9, "CONTINUE")])
def test_asha_knows_the_validations_of_trials_that_ended_before(
    project: Path, score: float, decision: str
) -> None:
    sweep, plan = make_sweep(project, trials=6)
    search = searcher(sweep, plan)
    for number in range(4):
        search.suggest(f"ray-{number}")
        finish(sweep, number, 0.5)
        event = {"step": 4, "metrics": {"holdout/miou": 0.4 + 0.1 * number}}
        (sweep.trial_folder(number) / "metrics.jsonl").write_text(json.dumps(event) + "\n")
    scheduler = build_scheduler(sweep, plan)
    trial: Any = SimpleNamespace(trial_id="new", status="RUNNING")
    scheduler.on_trial_add(None, trial)
    assert scheduler.on_trial_result(None, trial, {"step": 4, "score": score}) == decision
    assert scheduler.cut == ({"new"} if decision == "STOP" else set())
