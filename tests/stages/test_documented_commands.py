"""What README and docs print can be typed: their commands run in a project whose pipeline has run.

Left out are those that need a network, a server or a cluster, and those whose work other tests do.
"""

from __future__ import annotations

import io
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.command import pipeline_here
from tests.paths import ROOT
from tests.test_documents import DOCUMENTS, text_of

ELSEWHERE = {  # the beginning of a command: why it is not run here
    "pipeline ui": "a server",
    "pipeline demo": "a server, test_page.py",
    "pipeline data fetch": "a network",
    "pipeline tune --address": "a cluster",
    "pipeline tune": "test_tune.py runs sweeps, best and apply",
    "pipeline init": "test_init.py",
    "pipeline data check /data/ade20k": "another dataset, test_official_forms.py",
    "pipeline predict ROOT/leftImg8bit": "another dataset, Cityscapes",
    "pipeline memory --classes 1284": "half a minute each, test_predict.py",
    "pipeline export exact --format onnx": "5 seconds each, test_export.py",
    "pipeline export exact --format torch": "the same",
    "pipeline export exact --format openvino": "the same",
    "pipeline compare HEAD~1": "a commit, test_comparison.py",
    "pipeline compare sweep/": "a sweep",
    "pipeline compare runs:/": "a run of this store, test_comparison.py",
}
NEEDS = {"models:/": "a registered model", "--address": "a cluster"}


def lines_of_blocks(text: str) -> Iterator[str]:
    """The commands of the blocks of a document that are no program and no settings, without remarks."""
    for block in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block[2].splitlines() if block[1] in ("", "bash", "sh") else ():
            command = re.split(r"\s{2,}#|\s#\s", line)[0].strip()
            if re.search(r"(^|\| )pipeline ", command) and not command.startswith(
                ("pipeline/", "cd ", "kubectl")
            ):
                yield command


def commands() -> list[str]:
    found = [command for path in DOCUMENTS for command in lines_of_blocks(text_of(path))]
    return list(dict.fromkeys(found))


def left_out(command: str) -> bool:
    return command.startswith(tuple(ELSEWHERE)) or any(word in command for word in NEEDS)


COMMANDS = [command for command in commands() if not left_out(command)]


def test_the_blocks_are_found_and_every_reason_to_leave_one_out_is_used() -> None:
    assert "pipeline doctor" in COMMANDS
    assert len(COMMANDS) >= 12
    every = commands()
    for beginning in (*ELSEWHERE, *NEEDS):
        assert any(beginning in command for command in every), beginning


def test_only_variants_of_the_project_are_named() -> None:
    variants = set(yaml.safe_load((ROOT / "params.yaml").read_text())["variants"])
    for path in DOCUMENTS:
        named = re.findall(r"checkpoints/(\w+)/best|stages\.train (\w+)|repro \w+@(\w+)", text_of(path))
        assert {one for names in named for one in names if one} <= variants | {"VARIANT"}, path.name


@pytest.fixture(scope="module")
def finished(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project after `dvc repro`, with the photographs that the documents speak of."""
    folder = tmp_path_factory.mktemp("finished") / "project"
    shutil.copytree(chain, folder, symlinks=True)
    for name in ("photos/red.jpg", "photos/blue.jpg", "photos/scan.tif", "one.png", "photo.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 255, (48, 64, 3), np.uint8)).save(
            folder / name
        )
    (folder / "class_masks").mkdir()
    for name in ("red", "blue", "scan"):
        mask = np.zeros((48, 64), np.uint8)
        mask[8:40, 8:40] = 1
        Image.fromarray(mask).save(folder / "class_masks" / f"{name}.png")
    return folder


@pytest.mark.process
@pytest.mark.slow
def test_every_command_of_the_documents_runs_as_printed(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)
    root = yaml.safe_load((finished / "params.yaml").read_text())["data"]["root"]
    for command in COMMANDS:
        words = shlex.split(command)
        if "|" in words:  # what `find` prints, on standard input
            words = words[words.index("|") + 1 :]
            monkeypatch.setattr(sys, "stdin", io.StringIO("photos/scan.tif\n"))
        here = {"ROOT": root, "OUT": "bootstrapped_again", "embedding": "exact"}  # the miniature's names
        if "add" in words:
            here["masks"] = "class_masks"
        words = [here.get(word, word).replace("/embedding/", "/exact/") for word in words[1:]]
        if "--out" in words and "classes" not in words:
            shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)
        assert pipeline_here(*words) == 0, f"{command}\n{capfd.readouterr().err}"
    assert {path.suffix for path in Path("out").iterdir()} >= {".png", ".json", ".jpg"}


@pytest.mark.process
def test_the_programs_about_prediction_run_as_printed(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    text = (ROOT / "docs" / "predict.md").read_text(encoding="utf-8")
    programs = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for program in programs:
        if "urllib" not in program:  # asks a server
            exec(program.replace("checkpoints/embedding/", "checkpoints/exact/"), {})
    assert (finished / "overlay.jpg").is_file()
