"""Work shared among processes: results in order, the first error at its place, workers that end."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from pipeline.runtime.errors import KilosegError
from pipeline.runtime.workers import WorkerPool, ordered_map, worker_pool


@pytest.fixture(scope="module")
def pool() -> Any:
    with worker_pool(2, "pipeline.runtime.workers") as two:
        yield two


def where_it_is_done(item: int) -> tuple[int, int]:
    return item, os.getpid()


def fail_at(item: int) -> int:
    if item in (5, 11):
        raise ValueError(f"item {item}")
    return item


@pytest.mark.process
def test_results_come_in_order_from_this_process_and_others(pool: WorkerPool) -> None:
    found = list(ordered_map(where_it_is_done, range(500), pool, chunk=2))
    assert [item for item, _ in found] == list(range(500))
    assert len({process for _, process in found}) == 2
    assert os.getpid() in {process for _, process in found}


@pytest.mark.process
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_the_first_error_comes_at_its_place(pool: WorkerPool, chunk: int) -> None:
    found: list[int] = []
    with pytest.raises(ValueError, match="item 5"):
        found.extend(ordered_map(fail_at, range(20), pool, chunk=chunk))
    assert found == list(range(5 - 5 % chunk))


def die_elsewhere(parent: int) -> int:
    if os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    return 0


@pytest.mark.process
def test_a_worker_that_dies_is_one_error() -> None:
    with (
        worker_pool(2, "pipeline.runtime.workers") as two,
        pytest.raises(KilosegError, match="worker process died"),
    ):
        list(ordered_map(die_elsewhere, [os.getpid()] * 100, two, chunk=1))


@pytest.mark.process
def test_workers_import_neither_torch_nor_what_only_the_command_needs() -> None:
    with worker_pool(2, "pipeline.data.bootstrap.build") as two:
        assert two is not None
        loaded = set(two.executor.submit(loaded_modules).result())
    assert "pipeline.data.bootstrap.build" in loaded
    assert not loaded & {
        "torch",
        "torchvision",
        "timm",
        "lvis",
        "cv2",
        "matplotlib",
        "pandas",
        "mlflow",
        "ray",
    }


def loaded_modules() -> list[str]:
    import sys

    return sorted(sys.modules)
