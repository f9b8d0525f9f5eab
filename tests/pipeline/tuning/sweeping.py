"""Real sweeps for tests: a small project, the `pipeline tune` command, and what it leaves.

`tune` runs the command in the process of the tests, which saves the seconds of its imports; `started` runs
it in a process of its own, for what needs signals.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.tuning.sweep import Sweep
from tests.command import pipeline_here

BIN = Path(sys.executable).parent
TUNE: dict[str, Any] = {
    "variant": "essnet",
    "space": {"model.embedding_dim": {"grid": [4, 8]}, "loss.num_negatives": {"grid": [1, 3]}},
    "trials": 4,
    "max_concurrent": 2,
}


def make_project(
    folder: Path,
    bootstrapped: Path,
    store: Path,
    *,
    tune: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
) -> Path:
    """A project that shares bootstrapped data and starts with a migrated MLflow store."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data").symlink_to(bootstrapped / "data")
    shutil.copy(store, folder / "mlflow.db")
    params = yaml.safe_load((bootstrapped / "params.yaml").read_text())
    params["tune"] = TUNE | (tune or {})
    params["train"] |= train or {}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return folder


def environment(**changes: str) -> dict[str, str]:
    """The surroundings of a command: ours first on PATH, no store but the project's."""
    known = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    known["PATH"] = f"{BIN}{os.pathsep}{known['PATH']}"
    # Ray gives way to all else, and then a sweep takes as long as the other tests let it
    return known | {"OMP_NUM_THREADS": "1", "COLUMNS": "120", "RAY_worker_niceness": "0"} | changes


def tune_here(*arguments: str, **changes: str) -> int:
    """`pipeline tune ...` in this process and folder; returns the exit code."""
    return pipeline_here("tune", *arguments, environment=environment(**changes))


def tune(
    project: Path, *arguments: str, beside: Callable[[], object] | None = None, **changes: str
) -> subprocess.CompletedProcess[str]:
    """`pipeline tune ...` in this process, to its end; `beside` runs in a thread meanwhile.

    What the command says on stderr is added to the project's tune.log at once.
    """
    log, said = project / "tune.log", io.StringIO()
    log.touch()
    before = len(log.read_text(encoding="utf-8"))
    with (
        contextlib.chdir(project),
        log.open("a", encoding="utf-8", buffering=1) as errors,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(errors),
        ThreadPoolExecutor(1) as pool,
    ):
        work = pool.submit(beside) if beside else None
        code = tune_here(*arguments, **changes)
        if work:
            work.result()
    told = log.read_text(encoding="utf-8")[before:]
    return subprocess.CompletedProcess(arguments, code, said.getvalue(), told)


@contextlib.contextmanager
def started(project: Path, *arguments: str, **changes: str) -> Iterator[subprocess.Popen[str]]:
    """`pipeline tune ...`, running; killed at the end of the block if it still does."""
    with (project / "tune.log").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [str(BIN / "pipeline"), "tune", *arguments],
            cwd=project,
            env=environment(**changes),
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
            # a shell's background job ignores Ctrl-C, and so would what it starts
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_until(true: Callable[[], Any], *, seconds: float = 300.0, what: str = "") -> Any:
    """Waits for something that counts as true, and returns it.

    Raises:
        TimeoutError: it did not come true.
    """
    end = time.monotonic() + seconds
    while not (found := true()):
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.2)
    return found


def outcomes(project: Path, name: str) -> list[str]:
    """How the trials stand, by number."""
    return [record.outcome for record in Sweep(project / "sweeps" / name).records()]


def journal_lines(project: Path, name: str) -> dict[int, int]:
    """Events that each trial has written so far."""
    paths = (project / "sweeps" / name / "trials").glob("*/metrics.jsonl")
    return {int(path.parent.name): path.read_text().count("\n") for path in paths}


def runs(uri: str, name: str) -> tuple[list[Run], list[Run]]:
    """Parent runs and child runs of a sweep."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("kiloseg")
    if experiment is None:
        return [], []
    found = client.search_runs([experiment.experiment_id], filter_string=f"tags.sweep = '{name}'")
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    return parents, [run for run in found if "mlflow.parentRunId" in run.data.tags]


def steps_of(uri: str, run: Run, metric: str) -> list[int]:
    """Steps at which a run has a metric, in the order of the store."""
    return [point.step for point in MlflowClient(uri).get_metric_history(run.info.run_id, metric)]
