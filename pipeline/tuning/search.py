"""Propose the values of the next trial: Optuna behind Ray Tune's searcher, and ASHA for pruning.

A proposal is written to the sweep's files before a trial gets it. A driver that starts again tells Optuna the
results so far, repeats the unfinished proposals, and then proposes up to the planned number.

Not Optuna's `JournalStorage`: it would be a second record beside the trials' files, and a kill between two
writes would leave the two in disagreement.
"""

from __future__ import annotations

import json
import random
from collections import deque
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search import Searcher

from pipeline.tuning.space import MAX_POINTS, Space
from pipeline.tuning.sweep import Sweep, SweepPlan, TrialRecord, read_journal

_ASKS = 10
_DRAWS = 1_000


class SweepSearch(Searcher):
    """Propose trials to Ray Tune.

    Args:
        sweep: where proposals are kept.
        plan: its plan.
        space: the plan's space.
    """

    def __init__(self, sweep: Sweep, plan: SweepPlan, space: Space) -> None:
        super().__init__(metric="score", mode="max")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.sweep, self.plan, self.space = sweep, plan, space
        self._distributions = {dimension.key: dimension.distribution() for dimension in space.drawn}
        records = sweep.records()
        self._pending = deque(record.number for record in records if not record.done)
        self._next = len(records)
        self._asked: dict[str, tuple[int, optuna.Trial | None]] = {}
        self._study = optuna.create_study(
            directions=[StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE][: len(plan.objectives)],
            sampler=optuna.samplers.TPESampler(
                seed=plan.seed + len(records), constant_liar=True, n_startup_trials=max(4, plan.trials // 4)
            ),
        )
        for record in records:
            if record.done:
                self._add_to_study(record)

    def suggest(self, trial_id: str) -> Any:
        """Return the next unfinished trial, or a new one, until the plan is filled."""
        if self._pending:
            number = self._pending.popleft()
            values = self.sweep.record(number).values
            drawn = {key: values[key] for key in self._distributions}
            self._study.enqueue_trial(drawn)
            asked = self._study.ask(self._distributions) if self._distributions else None
        elif self._next < self.plan.trials:
            number, self._next = self._next, self._next + 1
            proposed = self._propose(number)
            if proposed is None:
                return Searcher.FINISHED
            values, asked = proposed
            self.sweep.write(TrialRecord(number, {key: values[key] for key in self.space.keys}))
        else:
            return Searcher.FINISHED
        self._asked[trial_id] = (number, asked)
        return {"trial": number}

    def _propose(self, number: int) -> tuple[dict[str, Any], optuna.Trial | None] | None:
        """Propose a training not tried before: the same settings and seed would give the same result."""
        tried = {self.space.training_key(record.values) for record in self.sweep.records()}
        grid = self.space.grid_point(number)
        for _ in range(_ASKS if self._distributions else 0):
            asked = self._study.ask(self._distributions)
            values = {**grid, **asked.params}
            if self.space.training_key(values) not in tried:
                return values, asked
            self._study.tell(asked, state=TrialState.FAIL)
        found = self._untried(tried, number)
        if found is None or not self._distributions:
            return None if found is None else (found, None)
        self._study.enqueue_trial({key: found[key] for key in self._distributions})
        return found, self._study.ask(self._distributions)

    def _untried(self, tried: set[str], number: int) -> dict[str, Any] | None:
        """Draw a point whose training was not tried; in a large space, look for one a thousand times."""
        space, seed = self.space, self.plan.seed + number
        if space.size > MAX_POINTS:
            study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
            for turn in range(_DRAWS):
                values = {**space.grid_point(number + turn), **study.ask(self._distributions).params}
                if space.training_key(values) not in tried:
                    return values
            return None
        for turn in range(space.grid_size):
            points = ({**space.grid_point(number + turn), **point} for point in space.drawn_points())
            if rest := [point for point in points if space.training_key(point) not in tried]:
                return random.Random(seed).choice(rest)
        return None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna how a trial ended."""
        _, asked = self._asked.pop(trial_id, (None, None))
        if asked is None:
            return
        if error or not result or result.get("outcome") == "failed":
            self._study.tell(asked, state=TrialState.FAIL)
        elif not result.get("final") and len(self.plan.objectives) == 1:
            asked.report(result["score"], result["step"])
            self._study.tell(asked, state=TrialState.PRUNED)
        else:
            self._study.tell(asked, self._objectives(result["score"], result["peak_memory_gib"]))

    def _objectives(self, score: float, memory_gib: float) -> list[float]:
        return [score, memory_gib][: len(self.plan.objectives)]

    def _add_to_study(self, record: TrialRecord) -> None:
        """Add a trial that ended in an earlier process to the Optuna study."""
        if not self._distributions:
            return
        score, pruned = record.score or 0.0, record.outcome == "pruned" and len(self.plan.objectives) == 1
        state, values = TrialState.COMPLETE, self._objectives(score, record.memory_gib or 0.0)
        if record.outcome == "failed" or (record.outcome == "infeasible" and record.memory_gib is None):
            state = TrialState.FAIL  # a guessed memory would look attractive to the sampler
        elif pruned:
            state = TrialState.PRUNED
        self._study.add_trial(
            create_trial(
                params={key: record.values[key] for key in self._distributions},
                distributions=self._distributions,
                state=state,
                values=values if state is TrialState.COMPLETE else None,
                intermediate_values={record.step: score} if pruned else {},
            )
        )

    def save(self, checkpoint_path: str) -> None:
        """Write a placeholder for Ray Tune: the sweep's files hold the state."""
        with open(checkpoint_path, "w", encoding="utf-8") as file:  # noqa: PTH123 - Ray hands a string
            json.dump({"sweep": str(self.sweep.folder)}, file)

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: see `save`."""


class AshaScheduler(AsyncHyperBandScheduler):
    """Run ASHA and remember which trials it stopped: Ray reports those as it reports finished ones."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.cut: set[str] = set()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return ASHA's decision. The final report of a trial is no rung."""
        if result.get("final"):
            return self.CONTINUE
        decision = super().on_trial_result(tune_controller, trial, result)
        if decision == self.STOP:
            self.cut.add(trial.trial_id)
        return decision

    def add_earlier_result(self, trial_id: str, step: int, score: float) -> None:
        """Add a validation of a trial that ended in an earlier process to ASHA's rungs.

        Ray has no public way: `_brackets` is private, so this is the one place that uses it.
        """
        earlier: Any = SimpleNamespace(trial_id=trial_id)
        self._brackets[0].on_result(earlier, step, score)


def build_scheduler(sweep: Sweep, plan: SweepPlan) -> AshaScheduler:
    """Build ASHA on the held-out mIoU over the steps, with the validations of trials that ended before."""
    train = plan.base().train
    scheduler = AshaScheduler(
        time_attr="step",
        metric="score",
        mode="max",
        max_t=train.steps,
        grace_period=min(train.validate_every, train.steps),
        reduction_factor=plan.reduction_factor,
    )
    for record in sweep.records():
        if not record.done:
            continue
        best = 0.0
        for event in read_journal(sweep.trial_folder(record.number) / "metrics.jsonl"):
            if "holdout/miou" in event["metrics"]:
                best = max(best, event["metrics"]["holdout/miou"])
                scheduler.add_earlier_result(f"earlier-{record.number}", event["step"], best)
    return scheduler
