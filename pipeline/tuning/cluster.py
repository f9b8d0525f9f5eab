"""Connect to Ray and give each trial an equal share of the machines.

Ray is a cluster that runs already, or one on this machine for the sweep alone.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.schema import Settings
from pipeline.runtime.errors import KilosegError, UsageError
from pipeline.runtime.temporary import LONGEST_SOCKET_PATH, socket_folder
from pipeline.tuning.sweep import SweepPlan

_QUIET = {  # before ray is imported
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # we handle Ctrl-C: end the runs, print how to resume
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_prestart_worker_first_driver": "0",  # else an idle process a core, which no trial uses
}
_LONGEST_SOCKET = "/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store.1"
_ANSWER_SECONDS = 10.0
_CONNECT_SECONDS = 120.0
_TRY_CODE = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')"


@dataclass(frozen=True)
class Machine:
    """Count what a machine of the cluster has for trials."""

    cpus: int
    gpus: float = 0.0


def connect(address: str | None) -> list[Machine]:
    """Connect to Ray.

    Args:
        address: of a running cluster (HOST:PORT or auto); None starts Ray on this machine.

    Returns:
        The machines that are alive now.

    Raises:
        UsageError: the address is one of Ray's remote client, which cannot run a driver.
        KilosegError: nothing answers there, or the token is refused.
    """
    if address is not None and "://" in address:
        raise UsageError(
            "not an address to join",
            where="--address",
            found=address,
            allowed="HOST:PORT of the head, or auto",
            hint="run `pipeline tune` on a machine in the cluster's network that has the shared folder",
        )
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        options |= {"address": "local", "include_dashboard": False, **_short_folder()}
    else:
        _try_in_another_process(address)
        options |= {"address": address, "runtime_env": {"py_modules": _own_packages()}}
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _no_answer(address or "this machine", str(error)) from error
    signal.signal(signal.SIGTERM, on_sigterm)  # Ray's handler aborts the process and leaves MLflow runs open
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Machine(int(node.get("CPU", 0)), float(node.get("GPU", 0))) for node in alive]


def _short_folder() -> dict[str, str]:
    """Return the option for another folder than TMPDIR where that is too long for Ray's sockets.

    Raises:
        KilosegError: there is none.
    """
    usual = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")
    found = socket_folder(usual / "ray", len(_LONGEST_SOCKET), name="ray")
    if found is None:
        raise KilosegError(
            "no folder is short enough for Ray's sockets",
            where=usual,
            found=f"{len(os.fsencode(usual))} bytes in RAY_TMPDIR or TMPDIR",
            allowed=f"at most {LONGEST_SOCKET_PATH - len(_LONGEST_SOCKET) - len('/ray')} bytes",
            hint="set RAY_TMPDIR to a short folder",
        )
    if found == usual / "ray":
        return {}
    print(f"TMPDIR is too long for Ray's sockets; Ray's own files go to {found}", file=sys.stderr, flush=True)
    return {"_temp_dir": str(found)}


def _try_in_another_process(address: str) -> None:
    """Connect from a child process first: on failure Ray's core may abort the process."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise _no_answer(address, str(error)) from error
    command = [sys.executable, "-c", _TRY_CODE, address]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, timeout=_CONNECT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise _no_answer(address, f"nothing within {_CONNECT_SECONDS:.0f} seconds") from error
    if tried.returncode:
        raise _no_answer(address, tried.stderr or f"exit code {tried.returncode}")


def _no_answer(address: str, reason: str) -> KilosegError:
    return KilosegError(
        "the Ray cluster does not answer",
        where=address,
        found=reason.strip().splitlines()[-1] if reason.strip() else "no reason given",
        hint="check the address and that the cluster runs (`ray status`); a cluster with tokens needs "
        "RAY_AUTH_MODE=token and its RAY_AUTH_TOKEN or token file here too",
    )


def _own_packages() -> list[str]:
    """Return the folders of our packages, which Ray sends to the cluster. Data is never sent."""
    found = []
    for name in ("pipeline", "models"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        found.append(str(Path(next(iter(spec.submodule_search_locations))).resolve()))
    return found


@dataclass(frozen=True)
class Resources:
    """Hold one trial's share of a machine and how many trials run at once."""

    cpus: int
    gpus: float
    concurrent: int

    def threads(self, settings: Settings) -> int:
        """Return torch's threads in a trial with these settings."""
        return self.cpus if settings.runtime.threads == "auto" else settings.runtime.threads

    def runtime(self, settings: Settings, threads: int | None = None) -> dict[str, object]:
        """Return the runtime settings of a trial, by dotted key, which keep it to its share.

        Args:
            settings: of the sweep.
            threads: the sweep's number, where its first trials had another share.
        """
        known, threads = settings.runtime, threads or self.threads(settings)
        workers = max(0, self.cpus - 1) if known.num_workers == "auto" else known.num_workers
        device = known.device if self.gpus else "cpu"
        return {"runtime.threads": threads, "runtime.num_workers": workers, "runtime.device": device}


def allocate(
    plan: SweepPlan,
    machines: Sequence[Machine],
    *,
    max_concurrent: int | None = None,
    gpus_per_trial: float | None = None,
) -> Resources:
    """Give each trial the largest equal share with which all concurrent trials fit the machines.

    A trial runs on one machine.

    Args:
        plan: of the sweep; its tune section gives what is not given here.
        machines: of the cluster.
        max_concurrent: trials at once.
        gpus_per_trial: GPUs of a trial, if the sweep uses GPUs.

    Raises:
        UsageError: GPUs were given for a sweep planned without them.
        KilosegError: no machine has the GPUs of one trial.
    """
    tune = plan.base().tune
    gpus = 0.0
    if gpus_per_trial and plan.memory_kind != "cuda_allocator":
        raise UsageError(
            "GPUs for a sweep that uses none",
            where="--gpus-per-trial",
            found=f"{gpus_per_trial:g}, and runtime.device {plan.base().runtime.device}",
            hint="start a sweep with runtime.device auto or cuda, or leave the option out",
        )
    if plan.memory_kind == "cuda_allocator":
        wanted = gpus_per_trial if gpus_per_trial is not None else tune.gpus_per_trial
        gpus = 1.0 if wanted == "auto" else float(wanted)
        most = max((machine.gpus for machine in machines), default=0.0)
        if gpus > most:
            raise KilosegError(
                "too few GPUs",
                where="gpus_per_trial",
                found=f"{most:g} in a machine of the cluster at most",
                allowed=f"at least {gpus:g}, one trial's",
                hint="lower --gpus-per-trial, start nodes with GPUs, or set runtime.device to cpu",
            )
    limit = max_concurrent or tune.max_concurrent
    concurrent = _room(machines, 1, gpus) if limit == "auto" else int(limit)
    concurrent = max(1, min(concurrent, plan.trials))
    for cpus in range(max((machine.cpus for machine in machines), default=0), 1, -1):
        if _room(machines, cpus, gpus) >= concurrent:
            return Resources(cpus, gpus, concurrent)
    return Resources(1, gpus, concurrent)


def _room(machines: Sequence[Machine], cpus: int, gpus: float) -> int:
    """Count the trials with so many CPUs and GPUs that fit at once."""
    return sum(
        min(machine.cpus // cpus, int(machine.gpus / gpus)) if gpus else machine.cpus // cpus
        for machine in machines
    )
