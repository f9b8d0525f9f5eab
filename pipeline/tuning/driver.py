"""`pipeline tune` itself: everything checked first, then Ray Tune runs the trials while MLflow is kept up.

Ray schedules, places and restarts the trials; it does not remember them. Its own experiment state is a pickle
that lags by seconds, so a resumed sweep starts a fresh Ray Tune run over the sweep's files instead.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import DataProblem, MemoryProblem, Problem, UsageProblem
from pipeline.runtime import GIB, write_text
from pipeline.settings import Settings
from pipeline.tuning.cluster import join
from pipeline.tuning.space import Space, read_space
from pipeline.tuning.sweep import Plan, Sweep, TrialRecord, find_sweep, locked, name_in_use

_RESTARTS = 3  # of a trial whose process or machine dies


@dataclass(frozen=True)
class Resources:
    """One trial's share of a machine, and how many trials there are at once."""

    cpus: int
    gpus: float
    concurrent: int

    def runtime(self, settings: Settings) -> dict[str, object]:
        """The runtime settings of a trial that keeps to its share."""
        known = settings.runtime
        threads = self.cpus if known.threads == "auto" else known.threads
        workers = max(0, self.cpus - 1) if known.num_workers == "auto" else known.num_workers
        device = known.device if self.gpus else "cpu"
        return {"runtime.threads": threads, "runtime.num_workers": workers, "runtime.device": device}


def new_plan(settings: Settings, *, name: str | None = None, trials: int | None = None) -> tuple[Plan, Space]:
    """The plan of a new sweep; reads files, starts nothing.

    Args:
        settings: of the variant to sweep; its tune section counts.
        name: of the sweep; by default the date and time.
        trials: instead of tune.trials.

    Raises:
        UsageProblem: a space that is empty or wrong, a name in use or not fit for a folder.
        DataProblem: nothing bootstrapped.
        MemoryProblem: no point of the space fits the memory budget.
    """
    from pipeline.settings_file import with_overrides

    tune = settings.tune
    settings = with_overrides(settings, tune.fixed, where="tune.fixed")
    space = read_space(tune.space, settings)
    double = sorted(set(tune.fixed) & set(space.keys))
    if double:
        raise UsageProblem("a setting is both fixed and swept", where="tune", found=", ".join(double))
    name = name or time.strftime("sweep-%Y%m%d-%H%M%S")
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name.startswith("."):
        raise UsageProblem("not a name", where="--name", found=name, allowed="letters, digits, - _ .")
    if (tune.folder / name).exists():
        raise name_in_use(tune.folder / name)
    if not (settings.bootstrapped / "manifest.json").is_file():
        raise DataProblem(
            "no bootstrapped data", where=settings.bootstrapped, mend="make it: dvc repro bootstrap"
        )
    on_gpu = _uses_gpu(settings)
    plan = Plan(
        name=name,
        settings=settings.model_dump(mode="json"),
        space={key: dict(values) for key, values in tune.space.items()},
        objectives=list(tune.objectives),
        trials=int(min(trials or tune.trials, space.size)),
        seed=tune.seed,
        memory_kind="cuda_allocator" if on_gpu else "predicted",
        pruning=tune.pruning,
        reduction_factor=tune.reduction_factor,
        memory_budget_gib=tune.memory_budget_gib or (_gpu_gib() if on_gpu else None),
    )
    _check_memory(plan, space)
    return plan, space


def _uses_gpu(settings: Settings) -> bool:
    wanted = settings.tune.gpus_per_trial
    if settings.runtime.device == "cpu" or wanted == 0:
        return False
    if wanted != "auto" or settings.runtime.device.startswith("cuda"):
        return True
    import torch

    return torch.cuda.is_available()


def _gpu_gib() -> float | None:
    import torch

    if not torch.cuda.is_available():
        return None  # the GPUs are the cluster's
    return torch.cuda.get_device_properties(0).total_memory / GIB


def _check_memory(plan: Plan, space: Space) -> None:
    """Some corner of the space must fit the budget, by prediction; without a budget nothing is predicted."""
    if plan.memory_budget_gib is None or plan.base().train.batch_size == "auto":
        return  # auto: each trial divides its batch on the device it gets
    from pipeline.data.label_space import LabelSpace
    from pipeline.memory import predict_bytes
    from pipeline.tuning.trial import trial_settings

    num_classes = LabelSpace.load(plan.base().bootstrapped / "label_space.json").num_classes
    least, point = float("inf"), {}
    for corner in space.corners():
        need = predict_bytes(trial_settings(plan, corner), num_classes) / GIB
        if need < least:
            least, point = need, corner
        if need <= plan.memory_budget_gib:
            return
    raise MemoryProblem(
        "no point of the space fits the memory budget",
        where=", ".join(f"{key}={value}" for key, value in point.items()),
        found=f"{least:.2f} GiB predicted for one training step, the least of the space's corners",
        allowed=f"{plan.memory_budget_gib:.2f} GiB (tune.memory_budget_gib, or the GPU's)",
        mend="lower train.batch_size or train.crop_size, or sweep smaller values",
    )


def continue_plan(sweep: Sweep, *, extend: int = 0) -> tuple[Plan, Space]:
    """The plan of a sweep to go on with, with `extend` trials more; the settings are those of its start.

    Raises:
        UsageProblem: trials are to be added, and the space has no point left.
    """
    plan = sweep.plan
    space = read_space(plan.space, plan.base())
    if extend and plan.trials >= space.size:
        raise UsageProblem(
            "nothing left to try",
            where=sweep.folder,
            found=f"{plan.trials} trials for the {space.size:g} points of the space",
            mend="start a sweep of a larger space",
        )
    return replace(plan, trials=int(min(plan.trials + extend, space.size))), space


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
        Problem: the cluster or the tracking server cannot be reached; too few GPUs; already running.
    """
    settings = plan.base()
    sweep = Sweep(settings.tune.folder / plan.name)
    from pipeline.tuning.mirror import Mirror, check_store

    check_store(settings)
    cluster = join(address)
    try:
        resources = _resources(settings, plan, cluster, max_concurrent, gpus_per_trial)
        with locked(sweep.folder / ".lock", holder="another `pipeline tune`"):
            if (sweep.folder / "sweep.json").exists():
                sweep.rewrite(plan)
            else:
                sweep.create(plan)
            mirror = Mirror(sweep, settings)
            mirror.open()
            status = "KILLED"
            try:
                _fit(sweep, plan, space, resources, time_budget)
                status = "FINISHED"
            finally:
                _mark_stopped(sweep)
                if not mirror.close(status, _write_results(sweep)):
                    print(
                        "warning: not everything reached MLflow; what sends the rest: "
                        + resume_command(plan.name, address),
                        file=sys.stderr,
                    )
    finally:
        import ray

        ray.shutdown()
    return sweep


def resume_command(name: str, address: str | None = None) -> str:
    """What goes on with a sweep."""
    return f"pipeline tune --resume --name {name}" + (f" --address {address}" if address else "")


def _resources(
    settings: Settings,
    plan: Plan,
    cluster: Mapping[str, float],
    max_concurrent: int | None,
    gpus_per_trial: float | None,
) -> Resources:
    cpus, available = int(cluster.get("CPU", 1)), float(cluster.get("GPU", 0))
    gpus = 0.0
    if plan.memory_kind == "cuda_allocator":
        wanted = gpus_per_trial if gpus_per_trial is not None else settings.tune.gpus_per_trial
        gpus = 1.0 if wanted == "auto" else float(wanted)
        if gpus > available:
            raise Problem(
                "too few GPUs",
                where="gpus_per_trial",
                found=f"{available:g} in the cluster",
                allowed=f"at least {gpus:g}, one trial's",
                mend="lower --gpus-per-trial, start nodes with GPUs, or set runtime.device to cpu",
            )
    most = max_concurrent or settings.tune.max_concurrent
    concurrent = (int(available / gpus) if gpus else cpus) if most == "auto" else int(most)
    concurrent = max(1, min(concurrent, plan.trials))
    return Resources(max(1, cpus // concurrent), gpus, concurrent)


def _fit(sweep: Sweep, plan: Plan, space: Space, resources: Resources, time_budget: float | None) -> None:
    from ray import tune

    from pipeline.tuning.search import SweepSearch, asha

    left = plan.trials - sum(record.done for record in sweep.records())
    if left <= 0:
        return
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
            failure_config=tune.FailureConfig(max_failures=_RESTARTS),
            callbacks=[_watcher(sweep, plan, scheduler.cut if scheduler else set())],
            verbose=0,
        ),
    )
    tuner.fit()


def _trial(config: dict[str, Any], folder: str, runtime: Mapping[str, Any]) -> None:
    """Ray Tune's trainable."""
    from ray import tune

    from pipeline.tuning.trial import run_trial

    run_trial(config, folder=folder, runtime=runtime, report=tune.report)


def _watcher(sweep: Sweep, plan: Plan, cut: set[str]) -> Any:
    """A Ray Tune callback that notes in the sweep what becomes of its trials, and says it."""
    from ray import tune

    class Watcher(tune.Callback):
        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            record = sweep.record(trial.config["trial"])
            if not record.done:
                sweep.write(replace(record, outcome="running", error=None))

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            record, last = sweep.record(trial.config["trial"]), trial.last_result or {}
            if not record.done and trial.trial_id not in cut:  # the time is up
                record = replace(record, outcome="stopped")
            elif not record.done:
                record = replace(
                    record,
                    outcome="pruned",
                    score=last.get("score"),
                    step=last.get("step", 0),
                    metrics={"peak_memory_gib": last.get("peak_memory_gib", 0.0)},
                )
            sweep.write(record)
            say(record)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            record = sweep.record(trial.config["trial"])
            if not record.done:
                told = str(trial.get_error() or "").strip().splitlines()
                lost = f"its process or machine died {_RESTARTS + 1} times: {told[-1] if told else 'no word'}"
                record = replace(record, outcome="failed", error=lost)
                sweep.write(record)
            say(record)

    def say(record: TrialRecord) -> None:
        done = sum(other.done for other in sweep.records())
        values = ", ".join(f"{key} {value}" for key, value in record.values.items())
        score = "" if record.score is None else f", mIoU {100 * record.score:.2f} %"
        print(
            f"trial {record.number} ({values}): {record.outcome}{score}; {done} of {plan.trials} done",
            file=sys.stderr,
            flush=True,
        )

    return Watcher()


def _mark_stopped(sweep: Sweep) -> None:
    for record in sweep.records():
        if record.outcome == "running":
            sweep.write(replace(record, outcome="stopped"))


def _write_results(sweep: Sweep) -> list[Path]:
    """The table and the pictures of what there is so far."""
    from pipeline.tuning.charts import draw
    from pipeline.tuning.outcome import results_csv

    plan, records = sweep.plan, sweep.records()
    table = sweep.folder / "results.csv"
    write_text(table, results_csv(plan, records))
    return [table, *draw(plan, records, sweep.folder)]


__all__ = ["Resources", "continue_plan", "find_sweep", "new_plan", "resume_command", "run_sweep"]
