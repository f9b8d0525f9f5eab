"""Lists of files are complete: links are followed without end, and hidden names are passed over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.data.store.listing import list_files
from pipeline.runtime.errors import DataError


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")


def test_links_to_folders_and_files_are_followed_and_circles_end(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for path in (root / "b.png", root / "sub" / "a.PNG", tmp_path / "other" / "deep" / "c.png"):
        write(path)
    (root / "city").symlink_to(tmp_path / "other")
    (root / "d.png").symlink_to(tmp_path / "other" / "deep" / "c.png")
    (root / "sub" / "up").symlink_to(root)
    (tmp_path / "other" / "self").symlink_to(tmp_path / "other")
    (tmp_path / "link").symlink_to(root)
    (root / "e.png").symlink_to("e.png")  # named when it is opened
    expected = ["b.png", "city/deep/c.png", "d.png", "e.png", "sub/a.PNG"]
    for base in (root, tmp_path / "link"):
        assert [path.relative_to(base).as_posix() for path in list_files(base, [".png"])] == expected


def test_hidden_names_are_passed_over(tmp_path: Path) -> None:
    for name in ("a.png", "._a.png", ".ipynb_checkpoints/a-checkpoint.png", "sub/.cache/b.png", "sub/c.txt"):
        write(tmp_path / name)
    assert [path.name for path in list_files(tmp_path, [".png"])] == ["a.png"]
    assert [path.name for path in list_files(tmp_path)] == ["a.png", "c.txt"]
    hidden = tmp_path / ".data"
    write(hidden / "x.png")
    assert [path.name for path in list_files(hidden, [".png"])] == ["x.png"]  # asked for outright


def test_a_name_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    name = os.fsdecode(b"stra\xdfe.png")
    try:
        (tmp_path / name).write_text("x")
    except OSError:
        pytest.skip("this file system wants UTF-8")
    with pytest.raises(DataError, match=r"not UTF-8(.|\n)*stra"):
        list_files(tmp_path, [".png"])
