"""Projects with odd names, copied, moved, or run by DVC in a copy: the store is the project's own."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
import yaml
from mlflow import MlflowClient

from pipeline.config.load import load_settings
from pipeline.config.paths import home_folder
from pipeline.config.schema import Settings
from pipeline.doctor.project import examine
from pipeline.runtime.errors import KilosegError
from pipeline.tracking.mlflow_tracker import open_run
from pipeline.tracking.tracker import own_store, sqlite_path, sqlite_uri, tracking_uri


@pytest.fixture(autouse=True)
def no_other_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def make_project(folder: Path, empty_store: Path) -> Settings:
    """A project that can track and nothing else."""
    folder.mkdir(parents=True)
    shutil.copy(empty_store, folder / "mlflow.db")
    (folder / "params.yaml").write_text(yaml.safe_dump({"data": {"root": "data"}, "variants": {"a": {}}}))
    return load_settings(folder / "params.yaml", variant="a")


def track(settings: Settings, name: str = "page.html") -> tuple[str, Path]:
    """Track a run with a file; returns its id and where MLflow says that the file lies."""
    page = settings.project / name
    page.write_text("<p>")
    with open_run(settings) as tracker:
        tracker.log_metrics({"train/loss": 1.0}, 1)
        tracker.log_artifact(page)
    return tracker.run_id, file_of(settings, tracker.run_id, name)


def file_of(settings: Settings, run_id: str, name: str) -> Path:
    """Where MLflow says that a run's file lies, which is there."""
    client = MlflowClient(tracking_uri(settings))
    assert name in {file.path for file in client.list_artifacts(run_id)}
    path = Path(url2pathname(urlsplit(client.get_run(run_id).info.artifact_uri).path)) / name
    assert path.is_file()
    return path


@pytest.mark.parametrize(
    "name",
    [
        "a%20b",
        "a?b=c",
        "a#b",
        "кошка",
        "a'b;c&d+e",
        "/".join(["x" * 60] * 6),
    ],
    ids=str,
)
def test_a_project_of_any_name_has_its_own_store(tmp_path: Path, empty_store: Path, name: str) -> None:
    settings = make_project(tmp_path / name, empty_store)
    _, page = track(settings)
    assert page.is_relative_to(settings.project / "mlartifacts")
    assert sqlite_path(tracking_uri(settings)) == settings.project / "mlflow.db"
    assert own_store(settings)
    assert [path.name for path in tmp_path.iterdir()] == [name.partition("/")[0]]
    (store,) = [finding for finding in examine(settings.file) if finding.topic == "store"]
    assert store.text == f"{settings.project / 'mlflow.db'}: 1 runs"


def test_a_path_that_is_too_long_for_sqlite_is_named(tmp_path: Path, empty_store: Path) -> None:
    settings = make_project(tmp_path / "/".join(["x" * 60] * 9), empty_store)
    with pytest.raises(KilosegError, match="longer than SQLite takes"), open_run(settings):
        pass


@pytest.mark.parametrize("moved", [False, True], ids=["copied", "moved"])
def test_a_copied_or_moved_project_writes_into_itself(tmp_path: Path, empty_store: Path, moved: bool) -> None:
    first = make_project(tmp_path / "first %41", empty_store)
    run_id, page = track(first)
    (tmp_path / "second").mkdir()
    second = tmp_path / "second" / "place"
    if moved:
        first.project.rename(second)
    else:
        shutil.copytree(first.project, second)
    before = sorted(tmp_path.glob("first*/**/*"))
    settings = load_settings(second / "params.yaml", variant="a")
    _, new = track(settings, "new.html")
    assert new.is_relative_to(second / "mlartifacts")
    assert file_of(settings, run_id, "page.html") == second / page.relative_to(first.project)
    assert sorted(tmp_path.glob("first*/**/*")) == before
    with open_run(settings, run_id=run_id) as tracker:  # a resumed training of the project before
        assert tracker.run_id == run_id


def test_the_project_under_the_name_of_a_link_stays_one_project(tmp_path: Path, empty_store: Path) -> None:
    settings = make_project(tmp_path / "real", empty_store)
    track(settings)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    linked = load_settings(tmp_path / "link" / "params.yaml", variant="a")
    _, new = track(linked, "new.html")
    assert new.is_relative_to(tmp_path / "real" / "mlartifacts")


@pytest.mark.parametrize("below", ["tmpabc", "standalone/tmpabc"])
@pytest.mark.parametrize("inside", [".", "sub/project"])
def test_dvcs_temporary_copy_tracks_in_the_project_itself(
    tmp_path: Path, empty_store: Path, below: str, inside: str
) -> None:
    root = tmp_path / "root"
    home = make_project(root / inside, empty_store)
    (root / ".dvc").mkdir()
    copy = root / ".dvc" / "tmp" / "exps" / below
    for made in (copy / ".git", copy / ".dvc", copy / inside):
        made.mkdir(parents=True, exist_ok=True)
    shutil.copy(home.file, copy / inside)
    settings = load_settings(copy / inside / "params.yaml", variant="a")
    assert settings.project == (copy / inside)
    assert home_folder(settings.project) == home.project
    _, page = track(settings)
    assert page.is_relative_to(home.project / "mlartifacts")
    assert not (copy / inside / "mlflow.db").exists()
    assert not (copy / inside / "mlartifacts").exists()


def test_data_outside_are_those_of_the_project_itself_in_dvcs_temporary_copy(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = make_project(tmp_path / "root", empty_store)
    for folder in ("outside", "root/untracked", "root/tracked"):
        (tmp_path / folder).mkdir()
    copy = home.project / ".dvc" / "tmp" / "exps" / "standalone" / "tmpabc"
    for made in (copy / ".git", copy / ".dvc", copy / "tracked"):
        made.mkdir(parents=True)
    for root, expected in {
        "../outside": tmp_path / "outside",
        "untracked": home.project / "untracked",
        "tracked": copy / "tracked",
        str(tmp_path / "outside"): tmp_path / "outside",
    }.items():
        (copy / "params.yaml").write_text(yaml.safe_dump({"data": {"root": root}}))
        assert load_settings(copy / "params.yaml").data.root == expected
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert tracking_uri(load_settings(copy / "params.yaml")) == sqlite_uri(home.project / "other.db")


def test_a_folder_that_only_looks_like_dvcs_copy_is_a_project(tmp_path: Path) -> None:
    place = tmp_path / ".dvc" / "tmp" / "exps" / "mine"
    place.mkdir(parents=True)
    assert home_folder(place) == place
