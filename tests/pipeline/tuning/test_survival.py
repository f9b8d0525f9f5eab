"""A sweep under kills: of the driver, of a trial, of a machine. Real processes, real signals."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest import mock
from urllib.parse import urlsplit
from urllib.request import url2pathname

import psutil
import pytest
import yaml

from pipeline.tracking.tracker import sqlite_uri
from pipeline.tuning.cluster import Machine
from pipeline.tuning.sweep import Sweep, read_journal
from tests.pipeline.tuning.sweeping import (
    BIN,
    environment,
    journal_lines,
    make_project,
    outcomes,
    runs,
    started,
    steps_of,
    tune,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.process, pytest.mark.training]
LONG = {"steps": 60, "validate_every": 20, "checkpoint_every": 10}


@pytest.fixture
def long_project(tmp_path: Path, bootstrapped_project: Path, empty_store: Path) -> Path:
    """A space of six points, whose trials take seconds each, two at once, none pruned."""
    space = {"model.embedding_dim": {"grid": [4, 8]}, "loss.num_negatives": {"grid": [1, 3, 7]}}
    return make_project(
        tmp_path / "project",
        bootstrapped_project,
        empty_store,
        tune={"pruning": False, "space": space},
        train=LONG,
    )


def check_whole(project: Path, name: str, trials: int) -> None:
    """Each trial is there once, finished, with each number of each step once; nothing is left running."""
    store = sqlite_uri(project / "mlflow.db")
    assert outcomes(project, name) == ["finished"] * trials, (project / "tune.log").read_text()
    parents, children = runs(store, name)
    assert [run.info.status for run in parents] == ["FINISHED"]
    assert [run.info.status for run in children] == ["FINISHED"] * trials
    assert {int(run.data.tags["sweep_trial"]) for run in children} == set(range(trials))
    for run in children:
        assert steps_of(store, run, "train/loss") == list(range(1, LONG["steps"] + 1))
        assert steps_of(store, run, "best/miou") == [LONG["steps"]]
    for folder in (project / "sweeps" / name / "trials").iterdir():
        events = read_journal(folder / "metrics.jsonl")
        said = Counter((metric, event["step"]) for event in events for metric in event["metrics"])
        assert set(said.values()) == {1}


def statuses(store: str, name: str) -> list[str]:
    """Of the parent run and its children in MLflow."""
    return [run.info.status for found in runs(store, name) for run in found]


def trial_at_work(project: Path, name: str, driver: int, before: dict[int, int]) -> tuple[int, int] | None:
    """Number and process of a trial that this driver has got going and that has far to go."""
    family = {process.pid for process in psutil.Process(driver).children(recursive=True)}
    for number, lines in journal_lines(project, name).items():
        lock = (project / "sweeps" / name / "trials" / f"{number:03d}" / ".lock").read_text()
        process = int(lock or 0)  # empty while it is being written
        if process in family and before.get(number, 0) < lines < LONG["steps"] * 2 / 3:
            return number, process
    return None


def test_ctrl_c_then_kill_9_of_the_driver_then_of_a_trial_and_each_time_it_goes_on_at_last_extended_in_a_copy(
    long_project: Path, tmp_path: Path
) -> None:
    project, store = long_project, f"sqlite:///{long_project / 'mlflow.db'}"
    with started(project, "--name", "cut", "--trials", "2", "--max-concurrent", "1") as driver:
        wait_until(lambda: max(journal_lines(project, "cut").values(), default=0) > 12)
        os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
        assert driver.wait(150) == 130
    log = (project / "tune.log").read_text()
    assert "to go on: pipeline tune --resume --name cut" in log
    assert "Traceback" not in log
    proposed = [record.values for record in Sweep(project / "sweeps" / "cut").records()]
    assert set(statuses(store, "cut")) <= {"KILLED", "FINISHED"}

    with started(project, "--resume", "--name", "cut", "--max-concurrent", "1") as driver:
        wait_until(lambda: "finished" in outcomes(project, "cut"))
        wait_until(lambda: outcomes(project, "cut").count("running") > 0)
        assert "RUNNING" in statuses(store, "cut")
        family = psutil.Process(driver.pid).children(recursive=True)
        commands = {one: " ".join(one.cmdline()) for one in family}
        # what ends the runs, and Ray's worker with the trial
        writers = [one for one, said in commands.items() if "watchdog" in said or said.startswith("ray::Imp")]
        driver.kill()
        wait_until(lambda: "RUNNING" not in statuses(store, "cut"), what="what ends the runs")
    assert "KILLED" in statuses(store, "cut")
    assert writers
    _, alive = psutil.wait_procs(writers, timeout=150)
    assert not alive

    original, project = project, tmp_path / "a%20copy"
    shutil.copytree(original, project, symlinks=True)
    untouched = {path: path.stat().st_mtime_ns for path in original.rglob("*") if path.is_file()}
    folders = [path.parent for path in (project / "sweeps" / "cut" / "trials").glob("*/result.json")]
    finished = {path: path.read_bytes() for folder in folders for path in folder.glob("*.json*")}
    assert finished

    before, killed = journal_lines(project, "cut"), []

    def kill_a_trial() -> None:
        killed.append(wait_until(lambda: trial_at_work(project, "cut", os.getpid(), before), what="a trial"))
        os.kill(killed[0][1], signal.SIGKILL)

    arguments = ("--extend", "1", "--name", "cut", "--max-concurrent", "1")
    result = tune(project, *arguments, beside=kill_a_trial)
    assert result.returncode == 0, result.stderr
    ((number, trial),) = killed
    lock = project / "sweeps" / "cut" / "trials" / f"{number:03d}" / ".lock"
    assert int(lock.read_text()) != trial
    assert "It goes on from its checkpoint" in result.stderr
    check_whole(project, "cut", trials=3)
    assert {path: path.read_bytes() for path in finished} == finished
    records = Sweep(project / "sweeps" / "cut").records()
    assert [record.values for record in records][: len(proposed)] == proposed
    assert all(
        (project / "sweeps" / "cut" / "trials" / f"{number:03d}" / "best.safetensors").is_file()
        for number in range(3)
    )
    ((parent,), _) = runs(sqlite_uri(project / "mlflow.db"), "cut")
    artifacts = Path(url2pathname(urlsplit(parent.info.artifact_uri).path))
    assert artifacts.is_relative_to(project / "mlartifacts")
    assert len((artifacts / "results.csv").read_text().splitlines()) == 4
    assert {path: path.stat().st_mtime_ns for path in original.rglob("*") if path.is_file()} == untouched


def test_the_time_is_up_or_sigterm_then_the_printed_command_ends_it_and_two_drivers_refuse_each_other(
    long_project: Path,
) -> None:
    project = long_project
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["train"]["steps"] = 100_000  # whatever the machine, not done when the time is up
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    result = tune(project, "--name", "timed", "--trials", "1", "--max-concurrent", "1", "--time-budget", "2s")
    assert result.returncode == 0, result.stderr
    command = "pipeline tune --resume --name timed --max-concurrent 1"
    assert f"the time is up; to go on: {command}" in result.stdout
    assert outcomes(project, "timed") in (["stopped"], ["waiting"])  # where it had not yet begun
    plan = Sweep(project / "sweeps" / "timed").plan
    with started(project, *shlex.split(command)[2:]) as driver:
        before = journal_lines(project, "timed").get(0, 0)
        wait_until(lambda: journal_lines(project, "timed").get(0, 0) > before)
        with mock.patch("pipeline.tuning.runner.connect", return_value=[Machine(2)]):
            second = tune(project, "--resume", "--name", "timed")  # it is refused before it uses its Ray
        assert second.returncode == 1
        assert "another `pipeline tune` is at work here" in second.stderr
        assert driver.poll() is None
        driver.terminate()
        assert driver.wait(150) == 143
    assert f"stopped; to go on: {command}" in (project / "tune.log").read_text()
    assert set(statuses(f"sqlite:///{project / 'mlflow.db'}", "timed")) == {"KILLED"}
    assert Sweep(project / "sweeps" / "timed").plan == plan


def test_a_trial_that_its_machine_has_no_memory_for_is_infeasible(long_project: Path) -> None:
    """Ray ends whatever it starts, as it does where a machine runs low."""
    result = tune(long_project, "--name", "low", "--trials", "1", RAY_memory_usage_threshold="0.001")
    assert result.returncode == 0, result.stderr
    assert "It goes on from its checkpoint" in result.stderr
    assert "Traceback" not in result.stderr
    assert outcomes(long_project, "low") == ["infeasible"]
    assert statuses(f"sqlite:///{long_project / 'mlflow.db'}", "low") == ["FINISHED"] * 2


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def ray_node(folder: Path, *arguments: str, **changes: str) -> Iterator[psutil.Process]:
    """A machine of a cluster: `ray start --block`, killed with all its processes at the end."""
    command = [str(BIN / "ray"), "start", "--block", "--disable-usage-stats", *arguments]
    with (folder / "ray.log").open("a") as log:
        process = subprocess.Popen(command, env=environment(**changes), stdout=log, stderr=log)
    node = psutil.Process(process.pid)
    try:
        yield node
    finally:
        kill_node(node)
        process.wait()


def kill_node(node: psutil.Process) -> None:
    """kill -9 of everything that runs on the node, and of nothing else."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in (*node.children(recursive=True), node):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def check_only_code_was_sent(trial: psutil.Process) -> None:
    """The trial imports the packages that traveled with the sweep, and nothing else traveled."""
    paths = [Path(path) for path in trial.environ()["PYTHONPATH"].split(os.pathsep)]
    sent = [path for path in paths if "py_modules_files" in path.parts]
    assert {found.name for path in sent for found in path.iterdir()} == {"pipeline", "models"}
    files = [found for path in sent for found in path.rglob("*") if found.is_file()]
    assert {"step.py", "nearest.py"} <= {found.name for found in files}
    assert sum(found.stat().st_size for found in files) < 10 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="process trees as Linux has them")
def test_a_machine_of_the_cluster_dies_and_its_trials_go_on_elsewhere(
    long_project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Three nodes with a token: a head without a share of the work, and two that work."""
    project, port = long_project, free_port()
    place = tmp_path_factory.mktemp("r")
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-token-of-the-test-0123456789abcdef"}
    token["RAY_raylet_start_wait_time_s"] = "90"  # a busy machine takes longer than ray's own 30 s
    wrong = token | {"RAY_AUTH_TOKEN": "another-token-0123456789abcdef012345"}
    host = socket.gethostbyname(socket.gethostname())
    address = f"{host}:{port}"
    head = [
        "--head",
        f"--port={port}",
        "--num-cpus=0",
        "--include-dashboard=false",
        "--include-log-monitor=false",
        f"--node-ip-address={host}",
    ]
    worker = [f"--address={address}", "--num-cpus=1", f"--node-ip-address={host}"]
    worker.append("--include-log-monitor=false")

    def started_nodes() -> int:
        return (place / "ray.log").read_text().count("Ray runtime started")

    with ray_node(place, *head, **token):
        wait_until(lambda: started_nodes() == 1, what="the head")
        with ray_node(place, *worker, **token) as first, contextlib.ExitStack() as rest:
            refused = tune(project, "--address", address, "--name", "far", **wrong)
            assert refused.returncode == 1
            assert "RAY_AUTH_TOKEN" in refused.stderr
            wait_until(lambda: started_nodes() == 2, what="the first node")
            second = rest.enter_context(ray_node(place, *worker, **token))
            wait_until(lambda: started_nodes() == 3, what="the second node")
            with started(project, "--address", address, "--name", "far", "--trials", "2", **token) as driver:
                wait_until(lambda: journal_lines(project, "far").get(0, 0) > 12)
                trial = int((project / "sweeps" / "far" / "trials" / "000" / ".lock").read_text())
                check_only_code_was_sent(psutil.Process(trial))
                mine = {process.pid for process in first.children(recursive=True)}
                kill_node(first if trial in mine else second)
                assert driver.wait(280) == 0, (project / "tune.log").read_text()
    assert int((project / "sweeps" / "far" / "trials" / "000" / ".lock").read_text()) != trial
    check_whole(project, "far", trials=2)
