"""`pipeline classes`: what it prints, writes and refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.checkpoint.format import load_checkpoint
from tests.command import pipeline_here
from tests.pipeline.inference.checkpoints import NUM_CLASSES, label_space, saved


def test_list_remove_and_rename(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = str(saved(tmp_path))
    names = label_space().names
    assert pipeline_here("classes", "list", "--checkpoint", source) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == NUM_CLASSES
    assert lines[2] == f"3\t{names[2]}\tlvis\tf"
    fewer, other = tmp_path / "fewer.safetensors", tmp_path / "other.safetensors"
    arguments = ["--checkpoint", source, "--out", str(fewer)]
    assert pipeline_here("classes", "remove", names[2], "1", *arguments) == 0
    assert load_checkpoint(fewer).label_space.names == [names[1], *names[3:]]
    assert pipeline_here("classes", "rename", "2", "x", "--checkpoint", source, "--out", str(other)) == 0
    assert load_checkpoint(other).label_space.names == [names[0], "x", *names[2:]]


def test_mistakes_are_one_message_and_write_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = str(saved(tmp_path))
    out = tmp_path / "out.safetensors"
    for arguments, code, said in (
        (["remove", "zzzz", "--checkpoint", source, "--out", str(out)], 2, "no such class"),
        (["remove", "1", "--checkpoint", source, "--out", source], 2, "will not overwrite"),
        (["rename", "1", "a,b", "--checkpoint", source, "--out", str(out)], 2, "not a name"),
        (["list", "--checkpoint", str(out)], 3, "no checkpoint"),
        (["add", "x", "--images", "no", "--masks", "no", "--out", str(out)], 3, "no picture with a mask"),
    ):
        assert pipeline_here("classes", *arguments) == code
        message = capfd.readouterr().err
        assert said in message
        assert "Traceback" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["best.safetensors"]
