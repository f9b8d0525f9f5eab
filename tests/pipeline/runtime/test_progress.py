"""Progress in a log."""

from __future__ import annotations

import pytest

from pipeline.runtime.progress import Progress


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
