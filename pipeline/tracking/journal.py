"""Keep what is tracked in a file of JSON lines, the truth that MLflow mirrors.

An event is a dict with "time" (milliseconds since 1970) and one kind of content: "metrics" with "step",
"params", "artifact", "table", "dataset", "model" or "status". A line that a kill cut short is passed over.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_events(path: Path) -> list[dict[str, Any]]:
    """Read the complete events of a journal; none if there is no file."""
    if not path.is_file():
        return []
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        with contextlib.suppress(json.JSONDecodeError):
            events.append(json.loads(line))
    return [event for event in events if isinstance(event, dict)]


def append_events(path: Path, lines: list[str]) -> None:
    """Append lines to a journal, below a line that a kill cut short.

    Raises:
        OSError: they cannot be written, or not wholly.
    """
    complete = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("" if complete else "\n") + "".join(f"{line}\n" for line in lines))


def milliseconds() -> int:
    """Return the time as MLflow counts it."""
    return int(time.time() * 1000)


class Journal:
    """Hold a journal's events, those of earlier processes and of this one, and keep them in its file.

    What cannot be written (a full disk) stays in memory and is tried again with the next event.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events = read_events(path)
        self.failure: OSError | None = None
        self._unwritten: list[str] = []
        self._lock = threading.Lock()

    def append(self, event: Mapping[str, Any]) -> None:
        """Add an event, with the time. Never raises for the disk: `failure` says what it met."""
        timed = {"time": milliseconds(), **event}
        with self._lock:
            self.events.append(timed)
            self._unwritten.append(json.dumps(timed))
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                append_events(self.path, self._unwritten)
            except OSError as error:
                self.failure = error
            else:
                self.failure = None
                self._unwritten.clear()
