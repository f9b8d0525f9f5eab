"""A file or folder is written whole or not at all; the text formats."""

from __future__ import annotations

import csv
import errno
import json
import stat
from pathlib import Path

import pytest

from pipeline.runtime.errors import KilosegError, UsageError
from pipeline.runtime.files import (
    atomic_folder,
    atomic_path,
    csv_text,
    file_digest,
    read_csv,
    write_json,
    write_text,
)


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


def test_a_folder_appears_whole_and_replaces_only_ours(tmp_path: Path) -> None:
    path = tmp_path / "out"

    def is_ours(folder: Path) -> bool:
        return (folder / "ours").exists()

    def fill(name: str, *, error: BaseException | None = None) -> None:
        with atomic_folder(path, is_ours) as folder:
            (folder / name).touch()
            if error is not None:
                raise error

    fill("ours")
    (tmp_path / ".out.partial").mkdir()  # of a killed run
    (tmp_path / ".out.partial" / "half").touch()
    with pytest.raises(KilosegError, match=r"disk is full(.|\n)*GiB free") as caught:
        fill("new", error=OSError(errno.ENOSPC, "No space left on device"))
    assert str(path) in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert [entry.name for entry in path.iterdir()] == ["ours"]
    fill("foreign")
    assert [entry.name for entry in path.iterdir()] == ["foreign"]
    with pytest.raises(UsageError, match="did not make"):
        fill("ours")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("present", [True, False])
def test_a_folder_that_is_a_link_stays_one(tmp_path: Path, present: bool) -> None:
    elsewhere = tmp_path / "other disk" / "masks"
    if present:
        elsewhere.mkdir(parents=True)
    link = tmp_path / "bootstrapped"
    link.symlink_to(elsewhere)
    for content in ("first", "second"):
        with atomic_folder(link, lambda folder: (folder / "file").is_file()) as folder:
            (folder / "file").write_text(content)
        assert link.is_symlink()
        assert (elsewhere / "file").read_text() == content
    assert list(elsewhere.parent.iterdir()) == [elsewhere]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bootstrapped", "other disk"]


def test_of_two_writers_of_a_folder_the_second_is_refused(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out", lambda _: True) as folder:
        (folder / "first").touch()
        with pytest.raises(UsageError, match="another run"), atomic_folder(tmp_path / "out", lambda _: True):
            pytest.fail("two at once")
        assert (folder / "first").exists()
    assert (tmp_path / "out" / "first").exists()


def test_a_folder_moved_aside_by_a_killed_run_comes_back(tmp_path: Path) -> None:
    (tmp_path / ".out.replaced").mkdir()
    (tmp_path / ".out.replaced" / "old").touch()

    def fail() -> None:
        with atomic_folder(tmp_path / "out", lambda _: True):
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "old").exists()


def test_texts_are_read_back(tmp_path: Path) -> None:
    rows = [[1, "a, b"], [2.5, ""]]
    text = csv_text(["x", "y"], rows)
    assert list(csv.reader(text.splitlines())) == [["x", "y"], ["1", "a, b"], ["2.5", ""]]
    assert "\r" not in text
    write_text(tmp_path / "a.csv", csv_text(["step", "loss"], [[1, 0.1], [2, 1 / 3]]))
    assert read_csv(tmp_path / "a.csv") == [[1, 0.1], [2, 1 / 3]]
    write_json(tmp_path / "a.json", {"b": [1], "a": None}, sort_keys=True)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"a": None, "b": [1]}
    assert text.index('"a"') < text.index('"b"')
    assert text.endswith("}\n")


def test_the_digest_is_sha_256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # the example of FIPS 180-4
    assert file_digest(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
