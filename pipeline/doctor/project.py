"""Check machine and project for `pipeline doctor`: what is there, what is missing, how to fix it.

Nothing heavy is imported (torch alone takes seconds). The store is checked by its file, or by a request with
a deadline. A check never raises: whatever it meets becomes a finding.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path

from pipeline.config.load import load_settings
from pipeline.config.paths import bootstrapped_folder, tiny_folder, unsent_folder
from pipeline.config.schema import Settings
from pipeline.data.labels.official import IMAGE_FOLDERS, LVIS_FILES, STUFF_FILES
from pipeline.doctor.software import (
    DEADLINE,
    Finding,
    Status,
    check_gpu,
    check_kernels,
    check_opencv,
    check_shared_memory,
    check_versions,
)
from pipeline.runtime.device import GIB
from pipeline.runtime.errors import KilosegError
from pipeline.runtime.secrets import hide_secrets
from pipeline.tracking.tracker import sqlite_path, tracking_uri

__all__ = ["Finding", "examine", "show"]

LAYOUT = (*(f"annotations/{name}" for name in (*LVIS_FILES.values(), *STUFF_FILES)), *IMAGE_FOLDERS)
_LOW_DISK, _NO_DISK = 5 * GIB, GIB // 2


def examine(params: Path) -> list[Finding]:
    """Check the installation, the machine and the project that `params` belongs to.

    Args:
        params: the settings file; its folder is the project.

    Returns:
        Findings in reading order. If the settings file cannot be used, that is a finding, and what depends
        on it (store, data, weights) is left out.
    """
    project = params.absolute().parent
    plain, settings, findings = _settings(params)
    cuda = any(one.runtime.device.startswith("cuda") for one in settings)
    gpu = _Background(lambda: check_gpu(wanted=cuda), "gpu")
    store = _Background(lambda: [] if plain is None else _store(plain), "store")
    findings = [
        *check_versions(),
        *check_opencv(),
        *check_kernels(),
        *check_shared_memory(settings),
        *findings,
    ]
    if plain is not None:
        findings += [*_data(plain), *_weights(settings)]
    findings += [*_repository(project), *_disk(project)]
    order = (
        "python",
        "packages",
        "opencv",
        "gpu",
        "kernels",
        "memory",
        "settings",
        "store",
        "data",
        "weights",
        "git",
        "dvc",
    )
    rank = {topic: position for position, topic in enumerate(order)}
    return sorted(
        [*findings, *gpu.wait(), *store.wait()], key=lambda finding: rank.get(finding.topic, len(order))
    )


def show(findings: Iterable[Finding]) -> None:
    """Print the findings: a table on a terminal, else plain lines that other programs can read."""
    findings = list(findings)
    if sys.stdout.isatty():
        _show_table(findings)
        return
    for finding in findings:
        print(f"{finding.status:8} {finding.topic:9} {finding.text}")
        if finding.hint is not None:
            print(f"{'':8} {'':9} fix: {finding.hint}")


def _show_table(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    styles: dict[Status, tuple[str, str]] = {
        "ok": ("✓ ok", "green"),
        "warning": ("! warning", "yellow"),
        "missing": ("✗ missing", "bold red"),
    }
    table = Table("", "topic", "found", box=None, pad_edge=False, header_style="dim")
    for finding in findings:
        text = Text(finding.text)
        if finding.hint is not None:
            text.append(f"\nfix: {finding.hint}", style="dim")
        table.add_row(Text(*styles[finding.status]), finding.topic, text)
    Console().print(table)


class _Background:
    """Run a check that may never return, in a daemon thread, which does not delay the exit."""

    def __init__(self, ask: Callable[[], list[Finding]], topic: str) -> None:
        self.findings = [
            Finding(topic, "warning", f"no answer within {DEADLINE:g} s", f"see what keeps the {topic} busy")
        ]
        self._until = time.monotonic() + DEADLINE
        self._thread = threading.Thread(target=self._run, args=(ask,), daemon=True)
        self._thread.start()

    def _run(self, ask: Callable[[], list[Finding]]) -> None:
        self.findings = ask()

    def wait(self) -> list[Finding]:
        """Return what was found by the deadline."""
        self._thread.join(max(self._until - time.monotonic(), 0.0))
        return self.findings


def _settings(params: Path) -> tuple[Settings | None, list[Settings], list[Finding]]:
    """Load the plain settings and those of every variant, with the findings about them."""
    try:
        plain = load_settings(params)
        variants = [load_settings(params, variant=name) for name in plain.variants]
    except KilosegError as problem:
        where = [part for part in (problem.where, problem.found and f"found {problem.found}") if part]
        allowed = [] if problem.allowed is None else [f"allowed: {problem.allowed}"]
        text, hint = ", ".join([problem.what, *where]), "; ".join(filter(None, [problem.hint, *allowed]))
        return None, [], [Finding("settings", "missing", text, hint or None)]
    except OSError as error:
        return None, [], [Finding("settings", "missing", f"{params}: {error.strerror}", "make it readable")]
    names = ", ".join(plain.variants)
    if not names:
        return plain, [plain], [Finding("settings", "warning", f"{params}: no variants", "name at least one")]
    return plain, variants, [Finding("settings", "ok", f"{params}: variants {names}")]


def _store(settings: Settings) -> list[Finding]:
    uri = tracking_uri(settings)
    path = sqlite_path(uri)
    if uri.startswith(("http://", "https://")):
        store = _server(uri)
    elif path is not None:
        store = _sqlite(path)
    else:
        text = f"{uri.partition(':')[0]} store from MLFLOW_TRACKING_URI, not looked into"
        store = Finding("store", "ok", text)
    waiting = len(list(unsent_folder(settings).glob("*/run.json")))
    if not waiting:
        return [store]
    text = f"values of {waiting} runs wait in {unsent_folder(settings)}, or are being sent"
    return [store, Finding("store", "warning", text, "pipeline sync")]


def _server(uri: str) -> Finding:
    shown = hide_secrets(uri).rstrip("/")
    hint = "start the server, or correct or unset MLFLOW_TRACKING_URI"
    try:
        with urllib.request.urlopen(f"{shown}/health", timeout=DEADLINE * 0.8):
            return Finding("store", "ok", f"the tracking server answers: {shown}")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return Finding("store", "ok", f"the tracking server answers and wants a login: {shown}")
        return Finding("store", "missing", f"{shown}/health answers {error.code} {error.reason}", hint)
    except (OSError, ValueError) as error:
        return Finding("store", "missing", f"no tracking server at {shown}: {error}", hint)


def _sqlite(path: Path) -> Finding:
    if not path.exists():
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not os.access(folder, os.W_OK):
            return Finding("store", "missing", f"{folder} is not writable", "make it writable for the store")
        return Finding("store", "ok", f"{path} will be made by the first run")
    if not os.access(path, os.W_OK):
        return Finding("store", "missing", f"{path} is not writable", "make it writable for the runs")
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=DEADLINE / 2)
        try:
            (runs,) = connection.execute("select count(*) from runs").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        hint = "move it away: the next run makes a new one"
        return Finding("store", "missing", f"{path} is no MLflow store: {error}", hint)
    return Finding("store", "ok", f"{path}: {runs} runs")


def _data(settings: Settings) -> list[Finding]:
    root, embedded = settings.data.root, tiny_folder(settings)
    wanted = LAYOUT if settings.data.layout == "coco_lvis" else (settings.data.annotations,)
    absent = [name for name in wanted if not _present(root / name)]
    if root == embedded and not root.exists():
        yet = Finding("data", "warning", f"{root} is not generated yet", "make repro, or dvc repro prepare")
    elif absent:
        hint = "set data.root to a folder in the layout of data.layout (docs/data.md)"
        if root == embedded:
            hint = "dvc repro --force prepare makes it again"
        yet = Finding("data", "missing", f"{root} lacks {', '.join(absent)}", hint)
    else:
        yet = Finding("data", "ok", f"{root}: annotations and images")
    folder = bootstrapped_folder(settings)
    if (folder / "manifest.json").is_file():
        return [yet, Finding("data", "ok", f"{folder}: bootstrapped")]
    return [yet, Finding("data", "warning", f"{folder} is not bootstrapped yet", "dvc repro bootstrap")]


def _present(path: Path) -> bool:
    """Tell whether a file, or a folder with something in it, is there."""
    try:
        return next(path.iterdir(), None) is not None if path.is_dir() else path.stat().st_size > 0
    except OSError:
        return False


def _weights(settings: Iterable[Settings]) -> list[Finding]:
    models = {(one.model.backbone, one.model.weights, one.model.pretrained) for one in settings}
    findings = []
    for backbone, weights, pretrained in sorted(models, key=str):
        if weights is not None and not weights.is_file():
            hint = "correct model.weights, or set it to null"
            findings.append(Finding("weights", "missing", f"{backbone}: no file {weights}", hint))
        elif weights is not None:
            size = weights.stat().st_size / 1e6
            findings.append(Finding("weights", "ok", f"{backbone}: {weights}, {size:.1f} MB"))
        elif pretrained:
            text = f"{backbone}: timm downloads them once (without a network, name a file in model.weights)"
            findings.append(Finding("weights", "ok", text))
    return findings


def _repository(project: Path) -> list[Finding]:
    findings = []
    if shutil.which("git") is None:
        text = "no git on PATH: runs carry no commit, and dvc exp does not work"
        findings.append(Finding("git", "warning", text, "install git"))
    elif not any((folder / ".git").exists() for folder in (project, *project.parents)):
        text = f"{project} is in no git repository: runs carry no commit, and dvc exp does not work"
        findings.append(Finding("git", "warning", text, "git init, and commit the project"))
    else:
        findings.append(Finding("git", "ok", "the project is in a git repository"))
    if not (project / ".dvc" / "config").is_file():
        findings.append(Finding("dvc", "missing", f"{project} is no DVC project", "dvc init"))
    elif not (project / "dvc.yaml").is_file():
        text = f"{project} has no dvc.yaml: dvc repro has nothing to do"
        findings.append(Finding("dvc", "missing", text, "git restore dvc.yaml"))
    else:
        findings.append(Finding("dvc", "ok", f"{project} is a DVC project"))
    return findings


def _disk(project: Path) -> list[Finding]:
    folder = next(path for path in (project, *project.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    text = f"{free / GIB:.1f} GiB free at {folder}"
    hint = "free some space; `dvc gc --workspace` drops old results from DVC's cache"
    if free >= _LOW_DISK:
        return [Finding("disk", "ok", text)]
    return [Finding("disk", "missing" if free < _NO_DISK else "warning", text, hint)]
