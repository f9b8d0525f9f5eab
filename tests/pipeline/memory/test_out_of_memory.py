"""A step that does not fit ends with code 4 and the batch that would."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.load import load_settings

LIMITED = """
import resource
import pipeline.runtime.before_torch
import torch
from pathlib import Path
from pipeline.memory.out_of_memory import explained_memory
from pipeline.runtime.process import run_process
from pipeline.config.load import load_settings
from pipeline.tracking.tracker import NoTracker
from pipeline.training.trainer import train

torch.ones(1, requires_grad=True).sum().backward()  # starts autograd's threads, which need address space
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
settings = load_settings(variant="dense", overrides={"train.batch_size": 8, "train.crop_size": 192})

def main():
    with explained_memory(settings):
        train(settings, NoTracker())

run_process(main)
"""


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the address space")
def test_an_allocation_that_fails_is_explained_and_ends_with_code_4(bootstrapped_project: Path) -> None:
    assert load_settings(bootstrapped_project / "params.yaml", variant="dense").loss.name == "dense"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], cwd=bootstrapped_project, capture_output=True, text=True, check=False
    )
    assert done.returncode == 4, done.stderr
    message = done.stderr[done.stderr.index("error: out of memory") :]
    assert "Traceback" not in message
    assert "batch_size 8, accumulation_steps 1, crop_size 192" in message
    assert "predicted need" in message
    division = re.search(
        r"set train.accumulation_steps to (\d+): still 8 images a step, (\d+) at a time", message
    )
    assert division, message
    assert int(division[1]) * int(division[2]) >= 8
    assert re.search(r"or set train.batch_size to \d+ \(predicted", message), message
