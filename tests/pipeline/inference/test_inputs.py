"""Files, folders, globs and lists become pictures with names of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.inference.inputs import find_inputs
from pipeline.runtime.errors import DataError, UsageError


def names(found: list) -> list[str]:
    return [one.name for one in found]


def test_files_folders_globs_and_lists(photos: Path, tmp_path: Path) -> None:
    (photos / "notes.txt").write_text("no picture")
    out = tmp_path / "out"
    assert names(find_inputs([str(photos)], [], out)) == ["a", "b", "more/c"]
    assert names(find_inputs([str(photos / "*.*g")], [], out)) == ["a", "b"]
    assert names(find_inputs([str(photos / "**" / "*.webp")], [], out)) == ["c"]
    lines = [f"{photos / 'b.png'}\n", "\n", f"{photos / 'more'}\r\n"]
    assert names(find_inputs(["-"], lines, out)) == ["b", "c"]
    twice = find_inputs([str(photos / "a.jpg"), str(photos), "-"], lines, out)
    assert len(twice) == 3
    odd = photos / "notes.txt"  # named outright, it is for the reader to judge
    assert names(find_inputs([str(odd), str(tmp_path / "missing.jpg")], [], out)) == ["notes", "missing"]


def test_names_with_brackets_are_files_first(photos: Path, tmp_path: Path) -> None:
    (photos / "a.jpg").rename(photos / "a[1].jpg")
    assert names(find_inputs([str(photos / "a[1].jpg")], [], tmp_path)) == ["a[1]"]


def test_outputs_are_no_pictures_of_the_next_run(photos: Path) -> None:
    out = photos / "out"
    out.mkdir()
    (out / "a.png").touch()
    assert names(find_inputs([str(photos)], [], out)) == ["a", "b", "more/c"]
    with pytest.raises(UsageError, match=r"an output would replace a picture(.|\n)*b\.png"):
        find_inputs([str(photos)], [], photos)


def test_pictures_that_share_a_stem_keep_their_suffix(photos: Path, tmp_path: Path) -> None:
    (photos / "a.png").touch()
    assert names(find_inputs([str(photos)], [], tmp_path / "out")) == ["a.jpg", "a.png", "b", "more/c"]
    (photos / "more" / "a.jpg").touch()
    with pytest.raises(UsageError, match=r"share their outputs(.|\n)*more/a\.jpg"):
        find_inputs([str(photos / "a.jpg"), str(photos / "more" / "a.jpg")], [], tmp_path / "out")


def test_nothing_to_predict_is_an_error(tmp_path: Path) -> None:
    for arguments in ([str(tmp_path)], ["-"]):
        with pytest.raises(DataError, match="no picture"):
            find_inputs(arguments, [], tmp_path / "out")
