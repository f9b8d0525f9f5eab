"""Errors as values: what they hold crosses processes."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from pipeline.runtime.errors import DataError, KilosegError, MemoryLimitError, UsageError


@pytest.mark.parametrize("kind", [KilosegError, UsageError, DataError, MemoryLimitError])
def test_an_error_survives_the_fix_of_a_worker_process(kind: type[KilosegError]) -> None:
    problem = kind("what", where=Path("a/b"), found=[1], allowed="c", hint="d")
    copy = pickle.loads(pickle.dumps(problem))
    assert type(copy) is kind
    assert str(copy) == str(problem)
    assert copy.exit_code == problem.exit_code
