"""Bootstrapping that is killed, doubled or out of space: the same command then ends as if nothing had."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.data.bootstrap import build as library
from pipeline.data.bootstrap.build import bootstrap
from pipeline.data.bootstrap.options import BootstrapOptions
from pipeline.runtime.errors import KilosegError
from tests.paths import ROOT
from tests.pipeline.data.small_dataset import box, typical, whole

SERVER = Path(__file__).with_name("bootstrap_server.py")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = typical(tmp_path_factory.mktemp("killed") / "root")
    for image_id in range(101, 113):
        data.add(image_id, lvis=[(1, box(1, 1, 5, 5))], stuff=[(94, whole())])
    return data.write()


@pytest.fixture(scope="module")
def undisturbed(root: Path) -> dict[str, bytes]:
    bootstrap(root, root.parent / "undisturbed", BootstrapOptions(images_per_shard=6))
    return contents(root.parent / "undisturbed")


class Commands:
    """Runs of one command, as forked children of a process that has imported everything."""

    def __init__(self, root: Path, out: Path) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT)])}
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER), str(root), str(out)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        assert self._line() == "ready"

    def start(self, signal_at: int = 0) -> int:
        assert self.process.stdin
        self.process.stdin.write(f"{signal_at}\n")
        self.process.stdin.flush()
        return int(self._line())

    def status(self) -> int:
        return int(self._line())

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "made" / "out"


@pytest.fixture
def commands(root: Path, out: Path) -> Iterator[Commands]:
    running = Commands(root, out)
    yield running
    running.process.kill()
    running.process.communicate()


@pytest.mark.process
def test_killed_at_random_moments_it_then_ends_byte_identical(
    commands: Commands, out: Path, undisturbed: dict[str, bytes]
) -> None:
    """Half of the kills meet a finished output, which must stay whole."""
    began = time.monotonic()
    commands.start()
    assert commands.status() == 0
    seconds = time.monotonic() - began
    draw, killed = random.Random(4), 0
    for moment in range(8):
        if moment % 2:
            shutil.rmtree(out.parent)
        child = commands.start()
        time.sleep(draw.uniform(0, seconds))
        with contextlib.suppress(ProcessLookupError):  # it was through
            os.kill(child, signal.SIGKILL)
        killed += commands.status() == -signal.SIGKILL
        if out.exists():
            assert contents(out) == undisturbed
        commands.start()
        assert commands.status() == 0
        assert contents(out) == undisturbed
        assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert killed


@pytest.mark.process
def test_killed_before_each_change_of_a_name_it_then_ends_byte_identical(
    commands: Commands, out: Path, undisturbed: dict[str, bytes]
) -> None:
    """Every window between two renames, with an older output in its place: the ones a clock seldom meets."""
    commands.start()
    assert commands.status() == 0
    for number in range(1, 100):
        commands.start(number)
        if commands.status() == 0:
            break
        aside = out.with_name(".out.replaced")
        assert undisturbed in [contents(place) for place in (out, aside) if place.exists()]
        commands.start()
        assert commands.status() == 0
        assert contents(out) == undisturbed
        assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert 5 < number < 99


@pytest.mark.process
def test_two_at_once_refuse_each_other_and_a_dead_one_holds_nothing(
    commands: Commands, root: Path, out: Path, undisturbed: dict[str, bytes]
) -> None:
    child = commands.start(-6)
    while "T (stopped)" not in Path(f"/proc/{child}/status").read_text():
        assert not out.exists()
    assert (out.with_name(".out.partial") / "train-000.arrow").exists()
    with pytest.raises(KilosegError, match="another run") as caught:
        bootstrap(root, out, BootstrapOptions(images_per_shard=6))
    assert caught.value.exit_code == 2
    assert not out.exists()
    os.kill(child, signal.SIGKILL)
    assert commands.status() == -signal.SIGKILL
    bootstrap(root, out, BootstrapOptions(images_per_shard=6))
    assert contents(out) == undisturbed


@pytest.mark.process
def test_workers_end_with_a_command_that_is_killed(
    root: Path, out: Path, undisturbed: dict[str, bytes]
) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline.data.bootstrap.build import bootstrap\n"
        "from pipeline.data.bootstrap.options import BootstrapOptions\n"
        "from pipeline.runtime.workers import worker_pool\n"
        "if __name__ == '__main__':\n"
        "    with worker_pool(3, 'pipeline.data.bootstrap.build') as pool:\n"
        "        options = BootstrapOptions(images_per_shard=6)\n"
        "        bootstrap(Path(sys.argv[1]), Path(sys.argv[2]), options, pool=pool)\n"
    )
    script = out.parent / "command.py"
    script.parent.mkdir(parents=True)
    script.write_text(code)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(script), str(root), str(out)], stderr=subprocess.DEVNULL, env=environment
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("the system does not tell a process's children")
    workers: set[str] = set()
    while process.poll() is None and len(workers) < 3:  # with the process that keeps track of resources
        workers |= set(children.read_text().split())
        time.sleep(0.002)
    process.kill()
    process.wait()
    for _ in range(500):
        left = [pid for pid in workers if Path(f"/proc/{pid}").exists()]
        if not left:
            break
        time.sleep(0.02)
    assert not left
    script.unlink()
    bootstrap(root, out, BootstrapOptions(images_per_shard=6))
    assert contents(out) == undisturbed


@pytest.fixture
def little_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "little"
    place.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=80k", "tmpfs", str(place)], capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting is not permitted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.process
def test_a_real_disk_that_runs_full_is_one_error(
    root: Path, little_disk: Path, undisturbed: dict[str, bytes]
) -> None:
    ballast = little_disk / "ballast"
    ballast.write_bytes(bytes(70_000))
    out = little_disk / "out"
    with pytest.raises(KilosegError, match="the disk is full") as caught:
        bootstrap(root, out, BootstrapOptions(images_per_shard=6))
    assert caught.value.where == str(out)
    assert "0.000 GiB free" in str(caught.value)
    assert [path.name for path in little_disk.iterdir()] == ["ballast"]
    subprocess.run(["mount", "-o", "remount,size=10m", str(little_disk)], check=True)
    bootstrap(root, out, BootstrapOptions(images_per_shard=6))
    assert contents(out) == undisturbed


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_earlier_output_alone(
    root: Path, out: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    bootstrap(root, out, BootstrapOptions(images_per_shard=6))

    def full(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(library, "write_shard", full)
        with pytest.raises(KilosegError, match="the disk is full") as caught:
            bootstrap(root, out, BootstrapOptions(overlap="smallest"))
    assert caught.value.exit_code == 1
    assert contents(out) == undisturbed
    assert [path.name for path in out.parent.iterdir()] == ["out"]
