"""Links beside DVC's temporary copies lead to where a relative path outside leads from the project."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.config.load import load_settings
from pipeline.config.outside_data import link_outside_data


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A DVC project that its data lie beside."""
    folder = tmp_path / "a" / "b" / "project"
    (folder / ".dvc").mkdir(parents=True)
    return folder


def linked(project: Path, root: str) -> list[Path]:
    (project / "params.yaml").write_text(yaml.safe_dump({"data": {"root": root}}))
    return link_outside_data(load_settings(project / "params.yaml"))


@pytest.mark.parametrize("root", ["../data/set", "../../data", "../../../data/set"])
def test_the_path_leads_to_the_same_place_from_both_kinds_of_copy(project: Path, root: str) -> None:
    target = (project / root).resolve()
    target.mkdir(parents=True)
    for _ in range(2):  # the links may be there
        links = linked(project, root)
        assert all(not link.readlink().is_absolute() for link in links)
        for copy in (".dvc/tmp/exps/standalone/tmpx", ".dvc/tmp/exps/tmpx"):
            (project / copy).mkdir(parents=True, exist_ok=True)
            assert (project / copy / root).resolve() == target
    assert {path.name for path in project.iterdir()} == {".dvc", "params.yaml"}


def test_nothing_is_linked_inside_the_project_or_over_something_else(project: Path) -> None:
    assert linked(project, "data") == []
    assert linked(project, "../" * 5 + "tmp") == []  # would lie in the project's own folders
    assert {path.name for path in project.iterdir()} == {".dvc", "params.yaml"}
    taken = project / ".dvc" / "tmp" / "exps" / "standalone"
    taken.mkdir(parents=True)
    (project.parent / "standalone").mkdir()
    assert taken not in linked(project, "../standalone")
    assert taken.is_dir()
    assert not taken.is_symlink()
