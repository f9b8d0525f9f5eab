"""What is run on the day a GPU is at hand, tried on a CPU: files, verdicts, limits, and what it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu, targets
from benchmarks.gpu import Part, run_parts
from tests.interpreter import WHY_NOT
from tests.paths import ROOT

# Loaded by every Python that is started, the parts' too: the project's dependencies but those of `make gpu`,
# and the peers, which take long to compile. (typer and torch look for some of the others themselves.)
ONLY_WHAT_A_BARE_MACHINE_HAS = """
import sys

REFUSED = set(
    "pyarrow lvis pycocotools ray optuna ruamel mlflow dvc requests jinja2 markupsafe "
    "matplotlib pipeline stages cut_cross_entropy liger_kernel".split()
)


class Refuse:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"{name} is refused here", name=name)


sys.meta_path.insert(0, Refuse())
"""


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
def test_everything_runs_at_toy_sizes_on_a_machine_with_no_more_than_it_needs(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(ONLY_WHAT_A_BARE_MACHINE_HAS)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--toy", "--out", tmp_path / "out"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    out = {path.stem: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert done.returncode == 0, (done.stderr, out)
    assert set(out) == {"tests", "loss", "step", "verdicts"}
    assert all(text.startswith("date ") and "\ncommit " in text for text in out.values())
    assert "1 passed" in out["tests"]
    rows = {line[:34].strip(): line[34:].split() for line in out["loss"].splitlines()}
    for name in (
        "dense", "exact (tiled)", "exact of maps (tiled)", "exact (compiled)", "exact of maps (compiled)",
        "exponentials alone", "exact (fused)", "exact (fused + upsample)", "knn K=7", "sampled K=256",
    ):  # fmt: skip
        assert rows[name][1] == "ms", (name, rows[name])
        assert float(rows[name][0].replace(",", "")) > 0
    assert rows["cut_cross_entropy"] == rows["liger_kernel"] == ["not", "installed"]
    assert "P = 64, C = 5, D = 16" in out["loss"]
    for name in ("network alone", "embedding", "softmax", "dense", "search of softmax (tiled)"):
        assert f"\n{name} " in out["step"]
    judged = [line for line in out["verdicts"].splitlines() if "met: " in line.lower()]
    assert len(judged) == 2
    assert all("memory of" in line and "5 beside 3 classes" in line for line in judged)


@pytest.mark.process
def test_a_part_that_fails_or_does_not_end_leaves_its_file_and_the_others_run(tmp_path: Path) -> None:
    slow = "timeit -n 1 -r 1 \"import time; print('met: begun', flush=True); time.sleep(60)\""
    parts = [Part("slow", slow, 1), Part("wrong", "benchmarks.missing", 9)]
    late = Part("late", "benchmarks.missing", 9)
    assert run_parts(parts, tmp_path / "out", "date today", 20) == 2
    verdicts = (tmp_path / "out" / "verdicts.txt").read_text().splitlines()
    assert verdicts[:4] == ["date today", "", "slow: its time was up, 1 s, 1 s", "  met: begun"]
    assert verdicts[4].startswith("wrong: exit code 1")
    assert "met: begun" in (tmp_path / "out" / "slow.txt").read_text()
    assert run_parts([late], tmp_path / "late", "date today", 0) == 1
    assert "late: not begun, no time was left" in (tmp_path / "late" / "verdicts.txt").read_text()


def test_the_parts_fit_into_nine_minutes_one_after_the_other() -> None:
    assert sum(part.seconds for part in gpu.PARTS) <= 540
    assert gpu.PARTS[0].name == "tests"


def test_a_verdict_is_by_the_table_and_only_on_the_device_that_it_is_for() -> None:
    assert targets.verdict("fused beside the bound", 3.0, "here", "cuda") == (
        "met: fused beside the bound, here: 3 times as long, wanted at most 3"
    )
    assert targets.verdict("fused beside the bound", 3.1, "here", "cuda").startswith("NOT MET: ")
    assert targets.verdict("step of softmax beside dense", 2.9, "here", "cpu").startswith("NOT MET: ")
    assert "met" not in targets.verdict("step of softmax beside dense", 2.9, "here", "cuda").lower()
