"""A sweep in MLflow as its user meets it: sent late, and shown in a real browser."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.tracking.tracker import sqlite_uri
from tests.command import pipeline_here
from tests.pipeline.tracking.stores import free_port
from tests.pipeline.tuning.sweeping import (
    BIN,
    environment,
    runs,
    steps_of,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.process, pytest.mark.training]


def answers(uri: str) -> bool:
    with contextlib.suppress(urllib.error.URLError, OSError):
        return bool(urllib.request.urlopen(f"{uri}/health", timeout=2).status == 200)
    return False


@contextlib.contextmanager
def ui_of(project: Path, log: Path) -> Iterator[str]:
    """`pipeline ui` in a project, once it answers; the address that it printed. Killed with its workers."""
    port = free_port()
    command = [str(BIN / "pipeline"), "ui", "--port", str(port)]
    with log.open("w") as said:
        process = subprocess.Popen(command, cwd=project, env=environment(), stdout=said, stderr=said)
    tree = psutil.Process(process.pid)
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}"), seconds=90, what=f"see {log}")
        assert len(tree.children(recursive=True)) <= 2, "one server, and no workers for jobs"
        yield next(line for line in log.read_text().splitlines() if line.startswith("http"))
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for part in (*tree.children(recursive=True), tree):
                with contextlib.suppress(psutil.NoSuchProcess):
                    part.kill()
        process.wait()


def test_sync_sends_a_sweep_whose_store_was_away_until_its_end(
    swept: Path,
    empty_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    project = tmp_path / "project"
    shutil.copytree(swept, project, symlinks=True)
    shutil.copy(empty_store, project / "mlflow.db")
    monkeypatch.chdir(project)
    (project / "sweeps" / "grid" / ".unsent").touch()  # what the end of the sweep leaves
    for said in ("sent: 1", "nothing waits"):
        assert pipeline_here("sync") == 0
        assert said in capfd.readouterr().out
    store = sqlite_uri(project / "mlflow.db")
    parents, children = runs(store, "grid")
    assert [run.info.status for run in parents + children] == ["FINISHED"] * (1 + len(children))
    assert len(children) >= 3
    for run in children:
        assert steps_of(store, run, "train/loss") == list(range(1, 9))


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium on PATH")
def test_a_person_can_compare_the_trials_in_the_ui(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Open the shipped view, select a sweep's trials, compare; the pages name what was swept.

    `KILOSEG_SCREENSHOTS=docs KILOSEG_SWEPT=PROJECT KILOSEG_SWEEP=NAME pytest -k compare tests/pipeline`
    makes docs/compare.png of the finished trials of a project's own sweep.
    """
    from playwright.sync_api import sync_playwright

    picture = tmp_path / "compare.png"
    own = os.environ.get("KILOSEG_SWEPT")
    project = Path(own).resolve() if own else request.getfixturevalue("swept")
    _, trials = runs(f"sqlite:///{project / 'mlflow.db'}", os.environ.get("KILOSEG_SWEEP", "grid"))
    names = [str(run.info.run_name) for run in trials if "val/miou" in run.data.metrics]
    assert len(names) >= 2
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update"]
    with ui_of(project, tmp_path / "ui.log") as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(60_000)
        page.goto(f"{address}&compareRunsMode=CHART")
        page.get_by_text("mIoU against memory").first.wait_for()
        assistant = page.locator("[data-component-id='mlflow.assistant.chat_panel.close']")
        if assistant.count():  # opens itself on the first visit, and takes a quarter of the page
            assistant.first.click()
        page.goto(address)
        page.get_by_text("Trainings of kiloseg").first.wait_for()
        for column in ("variant", "outcome", "val/miou", "peak_memory_gib"):
            page.get_by_role("columnheader", name=column, exact=True).first.wait_for()
        for name in names:
            row = page.get_by_role("row").filter(has_text=name).first
            row.get_by_role("checkbox").first.check()
        page.get_by_role("button", name="Compare", exact=True).first.click()
        page.get_by_text(f"Comparing {len(names)} Runs from 1 Experiment").first.wait_for()
        chosen = page.get_by_role("combobox")
        for metric in ("val/miou", "peak_memory_gib"):
            chosen.nth(1).click()
            page.keyboard.type(metric)
            page.get_by_role("option", name=metric, exact=True).first.wait_for(state="attached")
            page.keyboard.press("Enter")
        page.keyboard.press("Escape")
        plot = page.locator(".js-plotly-plot").first
        plot.get_by_text("peak_memory_gib").first.wait_for()
        axes = plot.inner_text()
        assert all(name in axes for name in ("loss.num_negatives", "model.embedding_dim", "val/miou"))
        page.screenshot(path=str(picture))
        browser.close()
    assert picture.stat().st_size > 20_000
    if "KILOSEG_SCREENSHOTS" in os.environ:  # the folder of the documentation's pictures
        shutil.copy(picture, Path(os.environ["KILOSEG_SCREENSHOTS"]) / "compare.png")
