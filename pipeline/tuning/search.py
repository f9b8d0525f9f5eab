"""Which values come next: Optuna behind Ray Tune's searcher, with the sweep's files as its memory.

A proposal is written to the sweep before a trial sees it. A driver that starts again takes the unfinished
proposals up first, tells Optuna how the finished ones ended, and goes on proposing up to the planned number:
so a resumed or extended sweep knows what it knew.
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search import Searcher

from pipeline.tuning.space import Space
from pipeline.tuning.sweep import Plan, Sweep, TrialRecord, read_journal

_ASKS = 10
_MOST_POINTS = 100_000


class SweepSearch(Searcher):
    """Ray Tune's view of a sweep's proposals.

    Args:
        sweep: where they are kept.
        plan: its plan.
        space: the plan's space.
    """

    def __init__(self, sweep: Sweep, plan: Plan, space: Space) -> None:
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
                self._remember(record)

    def suggest(self, trial_id: str) -> Any:
        """The next unfinished trial, or a new one, until the plan is filled."""
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
        """A point not tried before: the same settings and seeds would only give the same result again."""
        grid, tried = self.space.grid_point(number), {_key(record.values) for record in self.sweep.records()}
        if not self._distributions:
            return grid, None
        for _ in range(_ASKS):
            asked = self._study.ask(self._distributions)
            values = {**grid, **asked.params}
            if _key(values) not in tried:
                return values, asked
            self._study.tell(asked, state=TrialState.FAIL)
        if self.space.size > _MOST_POINTS:
            return None
        rest = [point for point in self.space.drawn_points() if _key({**grid, **point}) not in tried]
        if not rest:
            return None
        point = random.Random(self.plan.seed + number).choice(rest)
        self._study.enqueue_trial(point)
        return {**grid, **point}, self._study.ask(self._distributions)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tells Optuna how a trial ended."""
        _, asked = self._asked.pop(trial_id, (None, None))
        if asked is None:
            return
        if error or not result or result.get("outcome") == "failed":
            self._study.tell(asked, state=TrialState.FAIL)
        elif not result.get("final") and len(self.plan.objectives) == 1:
            asked.report(result["score"], result["step"])
            self._study.tell(asked, state=TrialState.PRUNED)
        else:
            self._study.tell(asked, self._goals(result["score"], result["peak_memory_gib"]))

    def _goals(self, score: float, memory_gib: float) -> list[float]:
        return [score, memory_gib][: len(self.plan.objectives)]

    def _remember(self, record: TrialRecord) -> None:
        """Adds a trial of an earlier process to the study."""
        if not self._distributions:
            return
        score, pruned = record.score or 0.0, record.outcome == "pruned" and len(self.plan.objectives) == 1
        state, goals = TrialState.COMPLETE, self._goals(score, record.memory_gib or 0.0)
        if record.outcome == "failed" or (record.outcome == "infeasible" and record.memory_gib is None):
            state = TrialState.FAIL  # a made-up memory would be an inviting one
        elif pruned:
            state = TrialState.PRUNED
        self._study.add_trial(
            create_trial(
                params={key: record.values[key] for key in self._distributions},
                distributions=self._distributions,
                state=state,
                values=goals if state is TrialState.COMPLETE else None,
                intermediate_values={record.step: score} if pruned else {},
            )
        )

    def save(self, checkpoint_path: str) -> None:
        """Writes a placeholder: the sweep's files are the searcher's memory."""
        with open(checkpoint_path, "w", encoding="utf-8") as file:  # noqa: PTH123 - Ray hands a string
            json.dump({"sweep": str(self.sweep.folder)}, file)

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to do: see `save`."""


def _key(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, default=str)


class Pruning(AsyncHyperBandScheduler):
    """ASHA that remembers which trials it cut: Ray ends those as it ends finished ones."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.cut: set[str] = set()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """ASHA's decision; the last report of a trial is no rung."""
        if result.get("final"):
            return self.CONTINUE
        decision = super().on_trial_result(tune_controller, trial, result)
        if decision == self.STOP:
            self.cut.add(trial.trial_id)
        return decision


def asha(sweep: Sweep, plan: Plan) -> Pruning:
    """ASHA on the held-out mIoU over the steps, knowing the validations of trials that ended before."""
    train = plan.base().train
    scheduler = Pruning(
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
        earlier: Any = SimpleNamespace(trial_id=f"earlier-{record.number}")
        for event in read_journal(sweep.trial_folder(record.number) / "metrics.jsonl"):
            if "holdout/miou" in event["metrics"]:
                best = max(best, event["metrics"]["holdout/miou"])
                scheduler._brackets[0].on_result(earlier, event["step"], best)
    return scheduler
