"""Running a plan: Ray Tune runs the trials while MLflow is kept up.

Ray schedules, places and restarts the trials; it does not remember them. Its own experiment state is a pickle
that lags by seconds, so a resumed sweep starts a fresh Ray Tune run over the sweep's files instead.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.tuning.callbacks import LOW_MEMORY, RESTARTS, note_low_memory
from pipeline.tuning.cluster import Resources, join, share
from pipeline.tuning.finish import _end
from pipeline.tuning.space import Space
from pipeline.tuning.sweep import Plan, Sweep
from pipeline.tuning.watchdog import driving, survived

if TYPE_CHECKING:
    pass


def run_sweep(
    plan: Plan,
    space: Space,
    *,
    address: str | None = None,
    max_concurrent: int | None = None,
    gpus_per_trial: float | None = None,
    time_budget: float | None = None,
) -> Sweep:
    """Runs what the plan still lacks.

    Args:
        plan: a new one, or that of a sweep to go on with.
        space: the plan's.
        address: of a Ray cluster to join; None starts one on this machine for the sweep alone.
        max_concurrent: trials at once, instead of tune.max_concurrent.
        gpus_per_trial: instead of tune.gpus_per_trial.
        time_budget: seconds after which running trials are stopped (and can be resumed).

    Returns:
        The sweep, with its table and pictures written.

    Raises:
        KilosegError: the cluster or the tracking server cannot be reached; too few GPUs; already running.
    """
    settings = plan.base()
    sweep = Sweep(settings.tune.folder / plan.name)
    from pipeline.tuning.mlflow_sync import Mirror, check_store

    check_store(settings)
    machines = join(address)
    try:
        resources = share(plan, machines, max_concurrent=max_concurrent, gpus_per_trial=gpus_per_trial)
        with driving(sweep.folder), survived(sweep.folder) as survivor:
            if (sweep.folder / "sweep.json").exists():
                sweep.rewrite(plan)
            else:
                sweep.create(plan)
            mirror = Mirror(sweep, settings)
            mirror.open()
            status = "KILLED"
            try:
                _fit_to_the_end(sweep, plan, space, resources, address, time_budget)
                status = "FINISHED"
            finally:
                if _end(sweep, mirror, status):
                    survivor.dismiss()
                else:
                    print(
                        "warning: not everything reached MLflow; what sends the rest: "
                        f"pipeline tune --resume --name {plan.name}",
                        file=sys.stderr,
                    )
    finally:
        import ray

        ray.shutdown()
    return sweep


def _fit_to_the_end(
    sweep: Sweep,
    plan: Plan,
    space: Space,
    resources: Resources,
    address: str | None,
    time_budget: float | None,
) -> None:
    """Ray Tune until the plan is done; where a lack of memory ends Ray Tune itself, it is started again."""
    end = None if time_budget is None else time.monotonic() + time_budget
    deaths: Counter[int] = Counter()
    while end is None or time.monotonic() < end:
        try:
            _fit(sweep, plan, space, resources, None if end is None else end - time.monotonic())
            return
        except RuntimeError as error:
            if LOW_MEMORY not in str(error):
                raise
            note_low_memory(sweep, plan, str(error), deaths)
        import ray

        ray.shutdown()  # with all that is left of the trials
        join(address)


def _fit(sweep: Sweep, plan: Plan, space: Space, resources: Resources, time_budget: float | None) -> None:
    from ray import tune

    from pipeline.tuning.callbacks import Watcher
    from pipeline.tuning.search import SweepSearch, asha

    left = plan.trials - sum(record.done for record in sweep.records())
    if left <= 0:
        return
    for name in ("execution.tune_controller", "tune"):
        logging.getLogger(f"ray.tune.{name}").setLevel(logging.CRITICAL)  # the watcher says it, in a line
    settings = plan.base()
    scheduler = asha(sweep, plan) if plan.pruning else None
    trainable = tune.with_resources(
        partial(_trial, folder=str(sweep.folder), runtime=resources.runtime(settings)),
        {"cpu": resources.cpus, "gpu": resources.gpus},
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=SweepSearch(sweep, plan, space),
            scheduler=scheduler,
            num_samples=left,
            max_concurrent_trials=resources.concurrent,
            time_budget_s=time_budget,
            reuse_actors=True,  # importing torch takes longer than a small trial
        ),
        run_config=tune.RunConfig(
            name=f"ray-{time.strftime('%Y%m%d-%H%M%S')}",
            storage_path=str(sweep.folder),
            failure_config=tune.FailureConfig(max_failures=RESTARTS),
            callbacks=[Watcher(sweep, plan, scheduler.cut if scheduler else set())],
            verbose=0,
        ),
    )
    tuner.fit()


def _trial(config: dict[str, Any], folder: str, runtime: Mapping[str, Any]) -> None:
    """Ray Tune's trainable."""
    from ray import tune

    from pipeline.tuning.trial import run_trial

    run_trial(config, folder=folder, runtime=runtime, report=tune.report)
