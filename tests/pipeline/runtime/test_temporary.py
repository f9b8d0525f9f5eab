"""Folders for sockets, whose paths may not be long; held to what the kernel takes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.runtime.temporary import LONGEST_SOCKET_PATH, socket_folder
from pipeline.tuning.cluster import _LONGEST_SOCKET, _short_folder
from tests.paths import ROOT


def can_bind(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as listening:
        try:
            listening.bind(str(path))
        except OSError:
            return False
    return True


def test_the_limit_is_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert can_bind(Path("x" * LONGEST_SOCKET_PATH))
    assert not can_bind(Path("y" * (LONGEST_SOCKET_PATH + 1)))


def test_a_short_folder_is_kept_and_a_long_one_replaced(tmp_path: Path) -> None:
    below = LONGEST_SOCKET_PATH - len(str(tmp_path)) - 20
    assert socket_folder(tmp_path, below, name="ray") == tmp_path
    long = tmp_path / ("ü" * 15)  # 30 bytes
    found = socket_folder(long, below, name="ray", places=[tmp_path])
    assert found == tmp_path / f"ray-{os.getuid()}"
    assert found.stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").touch()
    assert socket_folder(long, below, name="ray", places=[long, tmp_path / "file"]) is None


def test_ray_gets_a_short_folder_by_itself_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/scratch/" + "x" * 90)
    folder = _short_folder()["_temp_dir"]
    assert len(folder + _LONGEST_SOCKET) <= LONGEST_SOCKET_PATH
    assert capfd.readouterr().err.count("TMPDIR is too long for Ray's sockets") == 1
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert _short_folder() == {}
    assert capfd.readouterr().err == ""


@pytest.mark.process
@pytest.mark.slow
def test_worker_processes_hand_over_tensors_under_a_long_tmpdir(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    code = (
        "import torch\n"
        "from pipeline.runtime.temporary import shorten_worker_sockets\n"
        "shorten_worker_sockets()\n"  # without this they fail or wait for ever
        "from torch.utils.data import DataLoader\n"
        "print(sum(int(batch.sum()) for batch in DataLoader(list(range(8)), num_workers=1)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(long)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (result.returncode, result.stdout) == (0, "28\n"), result.stderr
    assert list(long.iterdir()) == []
