"""What the system refuses is one message with the place and a fix; a defect of ours is none."""

from __future__ import annotations

import errno
import multiprocessing
import multiprocessing.synchronize
import os
import socket
from pathlib import Path

import pytest

from pipeline.runtime import failures
from pipeline.runtime.errors import DataError, KilosegError, UsageError
from pipeline.runtime.failures import explained
from pipeline.runtime.files import write_text
from pipeline.runtime.signals import run_command


@pytest.mark.parametrize("number", sorted(set(errno.errorcode) - {errno.ENOSPC, errno.EDQUOT}))
def test_every_error_of_the_system_names_the_path_and_the_systems_words(number: int) -> None:
    problem = explained(OSError(number, os.strerror(number), "/some/where"))
    assert problem is not None
    assert problem.exit_code == 1
    assert problem.where == "/some/where"
    assert problem.found == os.strerror(number)


def test_the_usual_ones_have_a_fix() -> None:
    for number in (errno.EACCES, errno.EROFS, errno.ENAMETOOLONG, errno.EISDIR, errno.EMFILE, errno.EMLINK):
        problem = explained(OSError(number, os.strerror(number), "x"))
        assert problem is not None
        assert problem.hint


def test_an_error_without_a_path_names_the_line_that_met_it() -> None:
    try:
        raise_in_our_code()
    except OSError as error:
        problem = explained(error)
    assert problem is not None
    assert problem.where is not None
    assert problem.where.startswith("pipeline/runtime/files.py, line ")
    assert problem.where.endswith(", in file_digest")


def raise_in_our_code() -> None:
    from pipeline.runtime.files import file_digest

    class Refusing:
        def open(self, mode: str) -> object:
            raise OSError(errno.EIO, "Input/output error")

    file_digest(Refusing())  # type: ignore[arg-type]


def test_a_file_that_cannot_be_written_is_named_as_the_user_knows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "table.csv").mkdir()
    assert run_command(lambda: write_text(tmp_path / "table.csv", "1")) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: a folder stands where a file is needed\n")
    assert f"where:   {tmp_path / 'table.csv'}\n" in said
    assert run_command(lambda: write_text(tmp_path / ("n" * 256), "1")) == 1
    assert "255 bytes" in capsys.readouterr().err


def test_a_name_of_full_length_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 125 + ".json")
    assert len(os.fsencode(path.name)) == 255
    write_text(path, "1")
    assert path.read_text() == "1"


def test_a_working_folder_that_is_gone_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "gone"
    place.mkdir()
    monkeypatch.chdir(place)
    place.rmdir()
    assert run_command(lambda: Path("params.yaml").resolve()) == 1
    said = capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert "the working folder is gone" in said


def test_a_semaphore_that_cannot_be_made_is_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(multiprocessing.synchronize._multiprocessing, "SemLock", refuse)  # type: ignore[attr-defined]
    try:
        multiprocessing.get_context("spawn").Lock()
    except OSError as error:
        problem = explained(error)
    assert problem is not None
    assert problem.where == str(failures.SHARED_MEMORY)
    assert problem.hint is not None
    assert "runtime.num_workers" in problem.hint


def test_torchs_words_for_too_little_shared_memory_are_known() -> None:
    text = "unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)"
    problem = explained(RuntimeError(text))
    assert problem is not None
    assert problem.where == "/dev/shm"


def test_the_network_is_told_from_the_disk() -> None:
    for error in (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), socket.gaierror(-2, "unknown")):
        problem = explained(error)
        assert problem is not None
        assert "network" in problem.what


def test_text_that_is_none_is_bad_data() -> None:
    for work in (lambda: "\udcff".encode(), lambda: b"\xff".decode()):
        try:
            work()
        except UnicodeError as error:
            problem = explained(error)
        assert isinstance(problem, DataError)


def test_an_image_that_the_backbone_cannot_take_is_the_users_to_change() -> None:
    from models.backbone.backbone import ImageSizeError

    problem = explained(ImageSizeError("at most 160x160"))
    assert isinstance(problem, UsageError)
    assert "160" in str(problem)


def test_a_defect_is_not_explained_away() -> None:
    assert explained(RuntimeError("a defect")) is None
    assert explained(KeyError("x")) is None
    own = KilosegError("ours")
    assert explained(own) is own


def test_a_name_that_is_no_text_can_be_printed(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: print("a\udcffb")) == 0
    assert capfd.readouterr().out == "a\\udcffb\n"
