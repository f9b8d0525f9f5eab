"""Run a sweep's plan: Ray Tune runs the trials, a thread sends their numbers to MLflow.

Ray schedules, places and restarts the trials; the sweep's files remember them. Ray's own experiment state is
a pickle that lags by seconds, so a resumed sweep starts a new Ray Tune run over the files.

Ray is imported only after `connect` has set its environment variables.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pipeline.runtime.before_torch  # noqa: F401
from pipeline.tuning.cluster import Resources, allocate, connect
from pipeline.tuning.finish import end_sweep
from pipeline.tuning.live import shown
from pipeline.tuning.space import Space
from pipeline.tuning.sweep import Sweep, SweepPlan
from pipeline.tuning.watchdog import hold_sweep, watch


def run_sweep(
    plan: SweepPlan,
    space: Space,
    *,
    address: str | None = None,
    max_concurrent: int | None = None,
    gpus_per_trial: float | None = None,
    time_budget: float | None = None,
) -> Sweep:
    """Run the trials that the plan still lacks.

    Args:
        plan: a new one, or that of a sweep to go on with.
        space: the plan's.
        address: of a Ray cluster to connect to; None starts Ray on this machine for the sweep alone.
        max_concurrent: trials at once, instead of tune.max_concurrent.
        gpus_per_trial: instead of tune.gpus_per_trial.
        time_budget: seconds after which running trials are stopped; they can be resumed.

    Returns:
        The sweep, with its table and pictures written.

    Raises:
        KilosegError: the cluster or the tracking server cannot be reached; too few GPUs; already running.
    """
    settings = plan.base()
    sweep = Sweep(settings.tune.folder / plan.name)
    from pipeline.tuning.mlflow_sync import MlflowSync, check_store

    check_store(settings)
    machines = connect(address)
    try:
        resources = allocate(plan, machines, max_concurrent=max_concurrent, gpus_per_trial=gpus_per_trial)
        if plan.threads is None:
            plan = replace(plan, threads=resources.threads(settings))
        with hold_sweep(sweep.folder), watch(sweep.folder) as watchdog:
            if (sweep.folder / "sweep.json").exists():
                sweep.rewrite(plan)
            else:
                sweep.create(plan)
            sync = MlflowSync(sweep, settings)
            sync.open()
            status = "KILLED"
            try:
                with shown(sweep, plan):
                    _fit_until_done(sweep, plan, space, resources, address, time_budget)
                status = "FINISHED"
            finally:
                if end_sweep(sweep, sync, status):
                    watchdog.dismiss()
                else:
                    print(
                        "warning: not everything reached MLflow; what sends the rest: pipeline sync",
                        file=sys.stderr,
                    )
    finally:
        import ray

        ray.shutdown()
    return sweep


def _fit_until_done(
    sweep: Sweep,
    plan: SweepPlan,
    space: Space,
    resources: Resources,
    address: str | None,
    time_budget: float | None,
) -> None:
    """Run Ray Tune until the plan is done; restart it when low memory on a machine ends Ray Tune itself."""
    from pipeline.tuning.callbacks import LOW_MEMORY, note_low_memory

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

        ray.shutdown()  # ends what is left of the trials
        connect(address)


def _fit(
    sweep: Sweep, plan: SweepPlan, space: Space, resources: Resources, time_budget: float | None
) -> None:
    from ray import tune

    from pipeline.tuning.callbacks import RESTARTS, TrialRecorder
    from pipeline.tuning.search import SweepSearch, build_scheduler

    left = plan.trials - sum(record.done for record in sweep.records())
    if left <= 0:
        return
    for name in ("execution.tune_controller", "tune"):
        logging.getLogger(f"ray.tune.{name}").setLevel(
            logging.CRITICAL
        )  # TrialRecorder prints one line instead
    settings = plan.base()
    scheduler = build_scheduler(sweep, plan) if plan.pruning else None
    trainable = tune.with_resources(
        partial(_trial, folder=str(sweep.folder), runtime=resources.runtime(settings, plan.threads)),
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
            callbacks=[TrialRecorder(sweep, plan, scheduler.cut if scheduler else set())],
            verbose=0,
        ),
    )
    tuner.fit()


def _trial(config: dict[str, Any], folder: str, runtime: Mapping[str, Any]) -> None:
    """Run one trial in a worker process: Ray Tune's trainable."""
    from ray import tune

    from pipeline.tuning.trial import run_trial

    run_trial(config, folder=folder, runtime=runtime, report=tune.report)
