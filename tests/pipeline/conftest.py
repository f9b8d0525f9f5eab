"""What tests of sweeps share: one real sweep to look at."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory, bootstrapped_project: Path, empty_store: Path) -> Path:
    """A project after a sweep of three of a grid's four points: not to be changed, but for more trials."""
    from tests.pipeline.tuning.sweeping import make_project, tune

    folder = tmp_path_factory.mktemp("swept") / "project"
    space = {"model.embedding_dim": {"grid": [4, 8]}, "loss.num_negatives": {"grid": [1, 3]}}
    # a second worker would take longer to start than to work
    one = {"space": space, "trials": 3, "max_concurrent": 1, "pruning": False}
    project = make_project(folder, bootstrapped_project, empty_store, tune=one)
    result = tune(project, "--name", "grid")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 finished" in result.stdout
    assert "3 of 3 done" in result.stderr
    return project
