"""Errors as values: what they hold crosses processes."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from pipeline.runtime.errors import DataProblem, MemoryProblem, Problem, UsageProblem


@pytest.mark.parametrize("kind", [Problem, UsageProblem, DataProblem, MemoryProblem])
def test_an_error_survives_the_way_out_of_a_worker_process(kind: type[Problem]) -> None:
    problem = kind("what", where=Path("a/b"), found=[1], allowed="c", mend="d")
    copy = pickle.loads(pickle.dumps(problem))
    assert type(copy) is kind
    assert str(copy) == str(problem)
    assert copy.exit_code == problem.exit_code
