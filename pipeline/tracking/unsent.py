"""Keep what a run has logged until MLflow has it: a folder a run, which outlives the process.

    mlflow-unsent/RUN/run.json       which run, in which store; and how to make it if the store has lost it
                     /events.jsonl   what was logged, in order
                     /files/         copies of logged files

A process holds the lock of the run that it logs. The folder is removed when everything has arrived.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pipeline.config.paths import unsent_folder
from pipeline.config.schema import Settings
from pipeline.runtime.errors import KilosegError
from pipeline.runtime.files import write_json
from pipeline.runtime.locks import locked
from pipeline.runtime.secrets import hide_secrets
from pipeline.tracking.journal import Journal
from pipeline.tracking.tracker import own_store, tracking_uri

ENDED = ("FINISHED", "FAILED", "KILLED")


@dataclass(frozen=True)
class RunPlace:
    """Say which run of which store is meant.

    Attributes:
        store: its address without secrets; empty for the project's own.
        experiment: the experiment's name.
        run_id: of the run.
        name: of a run to make where the store has none of this id; None makes none.
        tags: of such a run.
    """

    store: str
    experiment: str
    run_id: str
    name: str | None = None
    tags: dict[str, str] = field(default_factory=dict)


class UnsentRun:
    """Hold the folder of one run: where it goes, its events, its files."""

    def __init__(self, folder: Path, place: RunPlace | None = None) -> None:
        self.folder = folder
        if place is None:
            place = RunPlace(**json.loads((folder / "run.json").read_text(encoding="utf-8")))
        else:
            self._write(place)
        self.place = place
        self.journal = Journal(folder / "events.jsonl")

    @property
    def ended(self) -> bool:
        """Tell whether the last status logged is one of an end."""
        statuses = [event["status"] for event in self.journal.events if "status" in event]
        return bool(statuses) and statuses[-1] in ENDED

    def moved_to(self, run_id: str) -> None:
        """Note that the store has the run under another id."""
        self.place = replace(self.place, run_id=run_id)
        self._write(self.place)

    def keep(self, path: Path, name: str) -> None:
        """Copy a file, to be logged as `name`, as it is now. Says so if the disk does not take it."""
        try:
            (self.folder / "files").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, self.folder / "files" / name)
        except OSError as error:
            print(f"warning: {path} is not logged to MLflow: {error}", file=sys.stderr, flush=True)

    def remove(self) -> None:
        """Remove the folder, and the one of all runs when it is empty."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()

    def _write(self, place: RunPlace) -> None:
        with contextlib.suppress(OSError):  # a full disk: the run goes on from memory
            write_json(self.folder / "run.json", asdict(place))


def store_name(settings: Settings) -> str:
    """Return the address of the store without secrets, empty for the project's own, which may move."""
    return "" if own_store(settings) else hide_secrets(tracking_uri(settings))


@contextlib.contextmanager
def unsent_run(settings: Settings, place: RunPlace, *, name: str | None = None) -> Iterator[UnsentRun]:
    """Hold the folder of a run for this process, with what earlier processes left in it.

    Args:
        settings: of the project.
        place: where the run goes.
        name: of the folder, instead of the run's id. If another process is at work there, or it is meant for
            another store, a number is added.
    """
    folder = unsent_folder(settings) / (name or place.run_id)
    with contextlib.ExitStack() as held:
        for number in itertools.count(2):
            with contextlib.suppress(KilosegError):
                if _store_of(folder) in (None, place.store):
                    held.enter_context(_lock(folder))
                    break
            folder = folder.with_name(f"{name or place.run_id}-{number}")
        yield UnsentRun(folder, place)


def _store_of(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / "run.json").read_text(encoding="utf-8"))["store"])
    except (OSError, ValueError, KeyError):
        return None


@contextlib.contextmanager
def abandoned_run(folder: Path) -> Iterator[UnsentRun | None]:
    """Hold a folder whose process has ended; None if one is at work there, or nothing useful is in it."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(_lock(folder))
            run = UnsentRun(folder)
        except (KilosegError, OSError, ValueError, TypeError):
            run = None
        yield run


def unsent_folders(settings: Settings) -> list[Path]:
    """List the folders of runs with something to send, the oldest first."""
    paths = unsent_folder(settings).glob("*/run.json")
    return [path.parent for path in sorted(paths, key=lambda path: path.stat().st_mtime)]


def _lock(folder: Path) -> contextlib.AbstractContextManager[None]:
    # by record locks, so that worker processes that outlive a killed training do not hold it
    return locked(folder / ".lock", own_process_only=True)
