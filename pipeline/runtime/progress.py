"""Show the progress of long work on stderr: a bar on a terminal, lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

_REFRESH_SECONDS = 0.5  # of the note beside a bar


class Progress:
    """Show a rich progress bar on a terminal, else one line at intervals. Use as a context manager.

    Args:
        title: what is being done.
        total: how many steps there are.
        start: how many of them were done before.
        seconds: the interval between lines when stderr is not a terminal.
    """

    def __init__(self, title: str, total: int, *, start: int = 0, seconds: float = 60.0) -> None:
        self.title, self.total, self.done, self.first, self.seconds = title, total, start, start, seconds
        self.began = self.said = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.done, note="")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif exception[0] is None:
            seconds = time.monotonic() - self.began
            print(f"{self.title}: {self.done}/{self.total} in {seconds:.0f} s", file=sys.stderr, flush=True)

    def advance(self, note: str | Callable[[], str] = "", steps: int = 1) -> None:
        """Count `steps` as done.

        Args:
            note: shown beside the count; a function is called only when it is shown.
            steps: how many.
        """
        self.done += steps
        if self._bar is not None:
            self._bar.update(self._task, advance=steps)
        now = time.monotonic()
        if now - self.said < (self.seconds if self._bar is None else _REFRESH_SECONDS):
            return
        self.said = now
        said = note if isinstance(note, str) else note()
        if self._bar is not None:
            self._bar.update(self._task, note=said)
            return
        left = (now - self.began) / max(self.done - self.first, 1) * (self.total - self.done)
        print(
            f"{self.title}: {self.done}/{self.total} {said} ({duration(left)} left)",
            file=sys.stderr,
            flush=True,
        )


def duration(seconds: float) -> str:
    """Word a duration: 59 s, 12 min, 49 h 05 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
