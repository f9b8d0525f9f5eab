"""What the doctor finds in a project: settings, store, data, weights, git, DVC, disk."""

from __future__ import annotations

import http.server
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.doctor.project import LAYOUT, Finding, examine, show
from tests.pipeline.doctor.projects import one, topic, write_params, write_program


def fill_layout(root: Path) -> None:
    for name in LAYOUT:
        path = root / name if name.endswith(".json") else root / name / "000000000001.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


@pytest.mark.process
def test_doctor_imports_nothing_heavy_even_when_it_examines(place: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline.doctor.project import examine, show;"
        f"show(examine(Path({str(place / 'params.yaml')!r})));"
        "print('HEAVY', sorted({'torch', 'mlflow', 'ray', 'timm', 'cv2', 'numpy', 'dvc'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: {root: data/tiny}\nlosss: {}\n", "losss"),
        ("data: {root: data/tiny}\ntrain: {steps: 0}\n", "train.steps"),
        ("data: {root: data/tiny}\nvariants: {a: {loss: {name: other}}}\n", "loss.name"),
        ("data: [", "not valid YAML"),
        (None, "no settings file"),
    ],
)
def test_settings_that_cannot_be_used_are_a_finding(place: Path, text: str | None, said: str) -> None:
    (place / "params.yaml").unlink()
    if text is not None:
        (place / "params.yaml").write_text(text)
    finding = one(place, "settings")
    assert finding.status == "missing"
    assert said in finding.text
    assert finding.hint
    assert not {"data", "store"} & {found.topic for found in examine(place / "params.yaml")}


def test_a_store_that_is_not_there_yet_will_be_made(place: Path) -> None:
    finding = one(place, "store")
    assert finding.status == "ok"
    assert str(place / "mlflow.db") in finding.text
    assert not (place / "mlflow.db").exists()


def test_an_existing_store_tells_its_number_of_runs(place: Path) -> None:
    connection = sqlite3.connect(place / "mlflow.db")
    connection.execute("create table runs (run_uuid text)")
    connection.executemany("insert into runs values (?)", [("a",), ("b",), ("c",)])
    connection.commit()
    connection.close()
    assert one(place, "store").text.endswith("mlflow.db: 3 runs")


def test_a_file_that_is_no_store_is_missing(place: Path) -> None:
    (place / "mlflow.db").write_text("something else, long enough to be no database" * 100)
    finding = one(place, "store")
    assert (finding.status, "no MLflow store" in finding.text) == ("missing", True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_hold_the_store_is_missing(place: Path) -> None:
    place.chmod(0o555)
    try:
        assert one(place, "store").status == "missing"
    finally:
        place.chmod(0o755)


@pytest.fixture
def server() -> Iterator[str]:
    class Healthy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response({"/health": 200, "/private/health": 401}.get(self.path, 404))
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


def test_a_tracking_server_is_asked_for_its_health(
    place: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    assert one(place, "store").status == "ok"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.replace("//", "//me:secret@"))
    assert one(place, "store") == Finding("store", "ok", f"the tracking server answers: {server}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{server}/private")
    assert one(place, "store").status == "ok"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{server}/elsewhere")
    assert (one(place, "store").status, "404" in one(place, "store").text) == ("missing", True)


def test_a_tracking_server_that_is_not_there_is_missing_and_its_password_is_not_told(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{port}")
    finding = one(place, "store")
    assert finding.status == "missing"
    assert "MLFLOW_TRACKING_URI" in str(finding.hint)
    assert "secret" not in finding.text + str(finding.hint)


def test_the_embedded_dataset_need_not_be_generated_yet(place: Path) -> None:
    root, bootstrapped = topic(place, "data")
    assert root.status == bootstrapped.status == "warning"
    assert "dvc repro" in str(root.hint)
    assert "dvc repro" in str(bootstrapped.hint)


def test_another_dataset_must_be_there(place: Path) -> None:
    write_params(place, data={"root": "elsewhere"})
    root, _ = topic(place, "data")
    assert root.status == "missing"
    assert "annotations/lvis_v1_train.json" in root.text
    assert "data.root" in str(root.hint)


@pytest.mark.parametrize("absent", LAYOUT)
def test_each_part_of_the_layout_is_looked_for(place: Path, absent: str) -> None:
    fill_layout(place / "data" / "tiny")
    assert topic(place, "data")[0].status == "ok"
    path = place / "data" / "tiny" / absent
    (path / "000000000001.jpg" if path.is_dir() else path).unlink()  # an empty folder is no better than none
    root, _ = topic(place, "data")
    assert root.status == "missing"
    assert root.text.endswith(f"lacks {absent}")


def test_bootstrapped_data_are_found(place: Path) -> None:
    (place / "data" / "bootstrapped").mkdir(parents=True)
    (place / "data" / "bootstrapped" / "manifest.json").write_text("{}")
    assert topic(place, "data")[1].status == "ok"


def test_a_weights_file_of_any_variant_must_be_there(place: Path) -> None:
    variants = {"exact": {}, "other": {"model": {"backbone": "resnet18", "weights": "w.safetensors"}}}
    write_params(place, variants=variants)
    finding = one(place, "weights")
    assert finding.status == "missing"
    assert "model.weights" in str(finding.hint)
    (place / "w.safetensors").write_bytes(b"x" * 2_000_000)
    assert one(place, "weights").text == f"resnet18: {place / 'w.safetensors'}, 2.0 MB"


def test_git_and_dvc_are_looked_for_in_the_project(place: Path) -> None:
    assert (one(place, "git").status, one(place, "dvc").status) == ("warning", "missing")
    write_program(place, "git", "exit 0")
    assert "in no git repository" in one(place, "git").text
    (place.parent / ".git").mkdir()
    (place / ".dvc").mkdir()
    (place / ".dvc" / "config").write_text("")
    assert one(place, "git").status == "ok"
    assert "dvc.yaml" in one(place, "dvc").text
    (place / "dvc.yaml").write_text("")
    assert one(place, "dvc").status == "ok"


@pytest.mark.parametrize(("gib", "status"), [(100, "ok"), (2, "warning"), (0.1, "missing")])
def test_little_disk_space_is_told(
    place: Path, monkeypatch: pytest.MonkeyPatch, gib: float, status: str
) -> None:
    class Usage:
        free = int(gib * 1024**3)

    monkeypatch.setattr("pipeline.doctor.project.shutil.disk_usage", lambda path: Usage)
    assert one(place, "disk").status == status


def test_a_project_folder_that_does_not_exist_is_no_crash(place: Path) -> None:
    assert one(place / "nowhere", "settings").status == "missing"


FINDINGS = [Finding("gpu", "ok", "[bold]one[/bold]"), Finding("data", "missing", "gone", "bring it back")]


def test_findings_are_plain_lines_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    show(FINDINGS)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=2) for line in lines[:2]] == [
        ["ok", "gpu", "[bold]one[/bold]"],
        ["missing", "data", "gone"],
    ]
    assert lines[2].strip() == "fix: bring it back"


def test_findings_are_a_table_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    show(FINDINGS)
    out = capsys.readouterr().out
    assert "✗ missing" in out
    assert "[bold]one[/bold]" in out  # told as it is, not read as markup
    assert "fix: bring it back" in out
