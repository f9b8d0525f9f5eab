"""One process holds a lock; whoever comes next waits or is refused, and a dead process holds nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.runtime.errors import KilosegError, UsageError
from pipeline.runtime.locks import locked


@contextmanager
def another_process(path: Path, own_process_only: bool, *, fork: bool = False) -> Iterator[subprocess.Popen]:
    """A process that holds the lock until it is killed, or one that has gone and left a fork behind."""
    code = """
import os, sys; from pathlib import Path; from pipeline.runtime.locks import locked
with locked(Path(sys.argv[1]), own_process_only=sys.argv[2] == "True"):
    if sys.argv[3] == "True" and os.fork():
        os._exit(0)
    print("held", flush=True); sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(path), str(own_process_only), str(fork)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.process
@pytest.mark.parametrize("own_process_only", [False, True])
def test_a_lock_excludes_another_process_until_it_dies(tmp_path: Path, own_process_only: bool) -> None:
    path = tmp_path / "new" / "lock"
    with another_process(path, own_process_only) as other:
        with (
            pytest.raises(UsageError, match=f"^by {other.pid}$"),
            locked(path, own_process_only=own_process_only, error=lambda held: UsageError(f"by {held}")),
        ):
            pytest.fail("two at once")
        other.kill()
        with locked(path, own_process_only=own_process_only, wait_seconds=60):
            assert path.read_text() == str(os.getpid())


def test_the_usual_refusal_names_the_holder_and_the_place(tmp_path: Path) -> None:
    with locked(tmp_path / "lock"):
        with (
            pytest.raises(KilosegError, match="the other tune is at work here") as caught,
            locked(tmp_path / "lock", holder="the other tune"),
        ):
            pytest.fail("two at once")
        assert caught.value.where == str(tmp_path)
    with locked(tmp_path / "lock"):
        pass  # it is free again


@pytest.mark.process
@pytest.mark.parametrize("own_process_only", [False, True])
def test_a_lock_of_the_own_process_is_not_held_by_forks(tmp_path: Path, own_process_only: bool) -> None:
    path = tmp_path / "lock"
    with another_process(path, own_process_only, fork=True) as parent:
        parent.wait()
        if own_process_only:
            with locked(path, own_process_only=True):
                pass
        else:
            with pytest.raises(KilosegError, match="at work"), locked(path):
                pytest.fail("the child held it")


def test_a_locked_folder_may_be_renamed_by_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with locked(path, folder=True):
        path.rename(tmp_path / "done")
        with locked(path, folder=True):  # another folder by now
            assert path.is_dir()
    assert (tmp_path / "done").is_dir()
