"""A trial's share of the machines: its processors and GPUs, and how many trials there are at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import Problem, UsageProblem
from pipeline.settings import Settings
from pipeline.tuning.cluster import Machine
from pipeline.tuning.sweep import Plan


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


def share(
    plan: Plan,
    machines: Sequence[Machine],
    *,
    max_concurrent: int | None = None,
    gpus_per_trial: float | None = None,
) -> Resources:
    """The largest equal shares with which the trials at once still fit the machines, each on one of them.

    Args:
        plan: of the sweep; what is not given here is its tune section's.
        machines: of the cluster.
        max_concurrent: trials at once.
        gpus_per_trial: GPUs of a trial, where the sweep is one on GPUs.

    Raises:
        UsageProblem: GPUs for a sweep that was planned without.
        Problem: no machine has the GPUs of one trial.
    """
    tune = plan.base().tune
    gpus = 0.0
    if gpus_per_trial and plan.memory_kind != "cuda_allocator":
        raise UsageProblem(
            "GPUs for a sweep that uses none",
            where="--gpus-per-trial",
            found=f"{gpus_per_trial:g}, and runtime.device {plan.base().runtime.device}",
            mend="start a sweep with runtime.device auto or cuda, or leave the option out",
        )
    if plan.memory_kind == "cuda_allocator":
        wanted = gpus_per_trial if gpus_per_trial is not None else tune.gpus_per_trial
        gpus = 1.0 if wanted == "auto" else float(wanted)
        most = max((machine.gpus for machine in machines), default=0.0)
        if gpus > most:
            raise Problem(
                "too few GPUs",
                where="gpus_per_trial",
                found=f"{most:g} in a machine of the cluster at most",
                allowed=f"at least {gpus:g}, one trial's",
                mend="lower --gpus-per-trial, start nodes with GPUs, or set runtime.device to cpu",
            )
    limit = max_concurrent or tune.max_concurrent
    concurrent = _room(machines, 1, gpus) if limit == "auto" else int(limit)
    concurrent = max(1, min(concurrent, plan.trials))
    for cpus in range(max((machine.cpus for machine in machines), default=0), 1, -1):
        if _room(machines, cpus, gpus) >= concurrent:
            return Resources(cpus, gpus, concurrent)
    return Resources(1, gpus, concurrent)


def _room(machines: Sequence[Machine], cpus: int, gpus: float) -> int:
    """How many trials with so many processors and GPUs fit at once."""
    return sum(
        min(machine.cpus // cpus, int(machine.gpus / gpus)) if gpus else machine.cpus // cpus
        for machine in machines
    )
