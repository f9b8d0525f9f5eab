"""What all tests share: one thread a process, no telemetry, a migrated MLflow store to copy."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

import pipeline.runtime.before_torch  # noqa: F401
from pipeline.runtime.process import end_process
from tests.schedule import rank, unit_of

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DVC_NO_ANALYTICS"] = "true"


def pytest_configure(config: pytest.Config) -> None:
    """Hold `make test-fast` to what it says, in the processes that run tests."""
    if hasattr(config, "workerinput"):
        gc.disable()  # until the tests are collected
    runs_tests = hasattr(config, "workerinput") or not config.getoption("numprocesses", None)
    if os.environ.get("KILOSEG_FAST") and runs_tests:
        from tests.fast import guard

        guard()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest units first, so that no worker is left with one at the end."""
    items.sort(key=lambda item: rank(unit_of(item.nodeid)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave out of a worker's searches for cycles what stays to its end: modules and tests."""
    if hasattr(session.config, "workerinput"):
        gc.freeze()
        gc.set_threshold(10_000, 20, 20)  # fewer than by default, which take seconds
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End a worker at once, as its results are sent: freeing its objects takes seconds."""
    if hasattr(config, "workerinput"):
        end_process(0)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Deal out the tests by `tests/schedule.py`."""
    from tests.schedule import Schedule

    config.option.loadscopereorder = False
    return Schedule(config, log)


@pytest.fixture(scope="session", autouse=True)
def commands_end_by_system_exit() -> Iterator[None]:
    """Let a command that is called in this process end as under a debugger, not take the process with it."""
    with mock.patch("pipeline.runtime.process.is_watched", return_value=True):
        yield


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite store with MLflow's schema and no experiment: migrating one takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


PARAMS = {
    "data": {"root": "data/tiny", "annotations": "annotations", "holdout_fraction": 0.2},
    "model": {
        "backbone": "test_resnet",
        "decoder_channels": 16,
        "embedding_dim": 8,
        "batch_norm_momentum": 0.1,
    },
    "train": {
        "steps": 8,
        "batch_size": 2,
        "crop_size": 32,
        "learning_rate": 0.02,
        "validate_every": 4,
        "checkpoint_every": 2,
    },
    "evaluate": {"examples": 2},
    "runtime": {"device": "cpu", "threads": 1, "num_workers": 0},
    "variants": {
        "exact": {},
        "essnet": {"loss": {"name": "knn", "num_negatives": 3}},
        "sampled": {"loss": {"name": "sampled", "num_negatives": 16}},
        "softmax": {"model": {"head": "softmax"}},
        "dense": {"model": {"head": "softmax"}, "loss": {"name": "dense"}},
    },
}


@pytest.fixture(scope="session")
def bootstrapped_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with shrunken settings and bootstrapped data, for all tests: not to be changed."""
    from pipeline.data.bootstrap.build import bootstrap
    from pipeline.data.bootstrap.options import BootstrapOptions
    from pipeline.data.tiny.generate import generate_tiny

    folder = tmp_path_factory.mktemp("project")
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    generate_tiny(folder / "data" / "tiny", num_train=12, num_val=4)
    options = BootstrapOptions(holdout_fraction=0.2)
    bootstrap(folder / "data" / "tiny", folder / "data" / "bootstrapped", options)
    return folder


@pytest.fixture
def project(bootstrapped_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh project folder that shares the bootstrapped data and is the working directory."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "data").symlink_to(bootstrapped_project / "data")
    shutil.copy(bootstrapped_project / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
