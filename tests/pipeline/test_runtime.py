"""Exit codes, atomic writes, interruption, progress."""

from __future__ import annotations

import errno
import functools
import os
import pickle
import signal
import stat
import time
from pathlib import Path

import pytest
import torch
import typer

from pipeline.errors import DataProblem, MemoryProblem, Problem, UsageProblem
from pipeline.runtime import (
    Interrupted,
    PeakMemory,
    Progress,
    StopRequest,
    atomic_path,
    choose_device,
    run,
    set_threads,
    write_text,
)


def raising(error: BaseException):
    def function() -> None:
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (Problem("it broke", where="here", found=1, allowed=2, mend="do that"), 1, "way out: do that"),
        (UsageProblem("no such key"), 2, "no such key"),
        (DataProblem("bad image"), 3, "bad image"),
        (MemoryProblem("too big"), 4, "too big"),
        (RuntimeError("CUDA out of memory. Tried to allocate 3 GiB"), 4, "out of memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            4,
            "out of memory",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Interrupted(signal.SIGTERM), 143, "SIGTERM"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 1, "the disk is full"),
    ],
)
def test_each_failure_has_its_code_and_one_message_without_traceback(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raising(error)) == code
    stderr = capsys.readouterr().err
    assert said in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_ended_by_a_signal_has_its_code(number: signal.Signals, code: int) -> None:
    app = typer.Typer(add_completion=False)

    @app.command()
    def wait() -> None:
        os.kill(os.getpid(), number)
        time.sleep(10)

    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the suite is a background job
    try:
        try:
            found = run(functools.partial(app, args=[]))
        except SystemExit as exit_:  # typer's own
            found = int(str(exit_.code))
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert found == code


def test_success_is_0_and_a_defect_keeps_its_traceback() -> None:
    assert run(lambda: None) == 0
    with pytest.raises(RuntimeError, match="a defect"):
        run(raising(RuntimeError("a defect")))
    with pytest.raises(FileNotFoundError):
        run(raising(FileNotFoundError(errno.ENOENT, "gone")))


@pytest.mark.parametrize("kind", [Problem, UsageProblem, DataProblem, MemoryProblem])
def test_an_error_survives_the_way_out_of_a_worker_process(kind: type[Problem]) -> None:
    problem = kind("what", where=Path("a/b"), found=[1], allowed="c", mend="d")
    copy = pickle.loads(pickle.dumps(problem))
    assert type(copy) is kind
    assert str(copy) == str(problem)
    assert copy.exit_code == problem.exit_code


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_text(path, "old")

    def fail_half_way() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("ne")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail_half_way()
    assert path.read_text() == "old"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


def test_written_files_have_the_usual_permissions(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "b").stat().st_mode)


def test_a_stop_is_answered_between_steps_and_a_second_one_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)  # ignored in a background job of a shell
    with StopRequest() as stop:
        stop.check()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_number == signal.SIGTERM
        with pytest.raises(Interrupted) as caught:
            stop.check()
        assert caught.value.exit_code == 143
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_progress_without_a_terminal_is_lines_at_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("walk", 4, seconds=0) as progress:
        for _ in range(4):
            progress.advance("well")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("walk: 1/4 well")
    assert lines[-1].startswith("walk: 4/4 in")
    with Progress("run", 2, seconds=1000) as progress:
        progress.advance(steps=2)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_devices_and_threads() -> None:
    assert choose_device("cpu").type == "cpu"
    before = torch.get_num_threads()
    try:
        assert set_threads(1) == 1 == torch.get_num_threads()
        assert set_threads("auto") >= 1
    finally:
        torch.set_num_threads(before)
    if not torch.cuda.is_available():
        assert choose_device("auto").type == "cpu"
        with pytest.raises(Problem, match="no CUDA device"):
            choose_device("cuda")


def test_peak_memory_on_the_cpu_sees_an_allocation() -> None:
    memory = PeakMemory(torch.device("cpu"))
    assert memory.kind == "process_resident"
    before = memory.gib()
    block = torch.ones(int((before + 0.3) * 2**30) // 4)
    assert memory.gib() >= before + 0.1
    del block
