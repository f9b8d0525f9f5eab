"""A sweep's settings on disk: whatever becomes of the project's place, they name this project's files.

`test_survival.py` goes on with a sweep in a copy of its project.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from pipeline.config.load import load_settings
from pipeline.config.schema import Settings
from pipeline.config.section import FilePath
from pipeline.runtime.errors import UsageError
from pipeline.tuning.plan import continue_plan, new_plan
from pipeline.tuning.portable import PATHS
from pipeline.tuning.sweep import Sweep, SweepPlan


def test_the_list_of_paths_is_that_of_the_schema() -> None:
    def paths(section: type[BaseModel], *above: str) -> set[tuple[str, ...]]:
        found: set[tuple[str, ...]] = set()
        for name, field in section.model_fields.items():
            kinds = [field.annotation, *get_args(field.annotation)]
            if Path in kinds or FilePath in kinds:
                found.add((*above, name))
            for kind in kinds:
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    found |= paths(kind, *above, name)
        return found

    assert paths(Settings) == {("project",), *PATHS}


def planned(project: Path, **tune: Any) -> tuple[Sweep, SweepPlan]:
    """A sweep on disk, of a project with a weights file of its own."""
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["tune"] = {"space": {"model.embedding_dim": {"choice": [4, 8]}}, **tune}
    params["model"]["weights"] = "weights.safetensors"
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    settings = load_settings(project / "params.yaml", variant="exact")
    plan, _ = new_plan(settings, name="s")
    sweep = Sweep(settings.tune.folder / "s")
    sweep.create(plan)
    return sweep, plan


def test_nothing_of_a_sweep_inside_the_project_names_a_place_outside(project: Path) -> None:
    sweep, plan = planned(project)
    assert str(project) not in (sweep.folder / "sweep.json").read_text()
    assert sweep.plan == plan


@pytest.mark.parametrize("old_form", [False, True])
def test_a_copy_and_a_moved_project_read_the_sweep_as_their_own(
    project: Path, tmp_path_factory: pytest.TempPathFactory, old_form: bool
) -> None:
    sweep, plan = planned(project)
    if old_form:  # absolute paths
        document = json.loads((sweep.folder / "sweep.json").read_text()) | {"settings": plan.settings}
        (sweep.folder / "sweep.json").write_text(json.dumps(document))
    copy = tmp_path_factory.mktemp("copies") / "copy"
    shutil.copytree(project, copy, symlinks=True)
    settings = Sweep(copy / "sweeps" / "s").plan.base()
    assert settings.project == copy
    assert settings.file == copy / "params.yaml"
    assert settings.data.root == copy / "data" / "tiny"
    assert settings.model.weights == copy / "weights.safetensors"
    assert settings.tune.folder == copy / "sweeps"
    continued, _ = continue_plan(Sweep(copy / "sweeps" / "s"), copy)
    assert continued.settings == Sweep(copy / "sweeps" / "s").plan.settings


def test_sweeps_outside_the_project_go_on_with_a_moved_one_and_refuse_a_copy(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    sweep, plan = planned(project, folder=str(outside / "sweeps"))
    copy = outside / "copy"
    shutil.copytree(project, copy, symlinks=True)
    with pytest.raises(UsageError, match="belongs to another project"):
        continue_plan(sweep, copy)
    (project / "params.yaml").unlink()
    continued, _ = continue_plan(sweep, copy)
    assert continued.base().project == copy
    assert continued.base().data.root == copy / "data" / "tiny"
    assert continued.base().tune.folder == outside / "sweeps"
    assert replace(continued, settings=plan.settings) == plan
