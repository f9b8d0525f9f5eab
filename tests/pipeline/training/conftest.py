"""What tests of training share: runs that nothing disturbed, each made once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.config.load import load_settings
from pipeline.training.trainer import train
from tests.pipeline.training.recording import Recorder, Undisturbed, UndisturbedRuns


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, bootstrapped_project: Path) -> UndisturbedRuns:
    """Runs by variant and overrides, to compare with: not to be changed."""
    runs: dict[str, Undisturbed] = {}

    def run(variant: str, overrides: Mapping[str, object] | None = None) -> Undisturbed:
        key = json.dumps([variant, overrides], sort_keys=True)
        if key not in runs:
            settings = load_settings(
                bootstrapped_project / "params.yaml", variant=variant, overrides=overrides
            )
            recorder, folder = Recorder(), tmp_path_factory.mktemp("undisturbed")
            runs[key] = Undisturbed(train(settings, recorder, folder=folder), recorder.losses, folder)
        return runs[key]

    return run
