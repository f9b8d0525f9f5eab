"""Whatever ends a training, the next start goes on with the very losses that an undisturbed one has."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.training.recording import same_weights

SCRIPT = Path(__file__).with_name("interrupted_training.py")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="starts processes by fork")


def interrupted_training(*arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def losses_of(project: Path, number: int) -> dict[int, str]:
    lines = (project / "losses" / f"{number}.txt").read_text().splitlines()
    return {int(step): loss for step, loss in (line.split() for line in lines)}


@pytest.mark.process
def test_a_training_interrupted_ten_times_has_the_losses_of_an_undisturbed_one(project: Path) -> None:
    steps = sorted(random.Random(5).sample(range(2, 50), 10))
    names = ["SIGKILL", "SIGTERM", "SIGINT"] * 3 + ["SIGKILL"]
    done = interrupted_training(str(project), *(f"{n}@{s}" for n, s in zip(names, steps, strict=True)))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    codes = {"SIGKILL": -9, "SIGTERM": 143, "SIGINT": 130, None: 0}
    assert [item["code"] for item in told] == [codes[item["signal"]] for item in told], told
    assert not any(item.get("early") for item in told)

    undisturbed = losses_of(project, 0)
    assert sorted(undisturbed) == list(range(1, 61))
    reached, stopped = 0, {0}
    for number, name in enumerate(["start", *names], start=1):  # what came before this start
        losses = losses_of(project, number)
        assert losses == {step: undisturbed[step] for step in losses}
        first = min(losses)
        if name in ("SIGTERM", "SIGINT"):
            stopped.add(reached)
            assert first == reached + 1  # nothing is computed twice
        else:
            assert reached + 1 - 7 <= first <= reached + 1  # at most what no checkpoint held
            assert (first - 1) % 7 == 0 or first - 1 in stopped  # it goes on from the last checkpoint
        reached = max(losses)
    assert reached == 60
    for name in ("best", "last"):
        one, other = project / "whole", project / "checkpoints" / "sampled"
        assert same_weights(one / f"{name}.safetensors", other / f"{name}.safetensors")


@pytest.mark.process
def test_a_full_disk_is_told_and_leaves_a_state_to_go_on_from(project: Path) -> None:
    """On a small file system of its own, in a mount namespace that only this test's processes see."""
    folder = project / "checkpoints"
    folder.mkdir()
    mount = f'mount -t tmpfs -o size=40m none {folder} && exec "$@"'
    prefix = ("unshare", "-rm", "sh", "-c", mount, "sh")
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], check=False).returncode:
        pytest.skip("no small file system can be mounted here")
    done = interrupted_training(str(project), "full-disk", prefix=prefix)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["codes"] == [1, 0]
    assert "error: the disk is full" in done.stderr
    assert "run the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    assert "previous.safetensors" in told["left"]
    assert not any(name.startswith(".tmp") or name.endswith(".part") for name in told["left"])
    first, second = losses_of(project, 1), losses_of(project, 2)
    assert 1 < min(second) <= max(first) + 1
    assert max(second) == 60
    assert all(second[step] == first[step] for step in first.keys() & second.keys())
