"""Keep a run's checkpoints: the best one, the last one to resume from, and the one before that."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoint.format import Checkpoint, load_checkpoint
from pipeline.config.schema import Settings
from pipeline.runtime.errors import DataError, KilosegError
from pipeline.runtime.locks import locked


@dataclass(frozen=True)
class RunFolder:
    """Hold at most three checkpoints, each whole; only one process may write to the folder."""

    path: Path

    @property
    def best(self) -> Path:
        """Return the path of the checkpoint chosen on the held-out part."""
        return self.path / "best.safetensors"

    @property
    def trace(self) -> Path:
        """Return the path of the trace that `train.debug: profile` leaves."""
        return self.path / "trace.json"

    def resumable(self, settings: Settings, *, header_only: bool = False) -> Checkpoint | None:
        """Load the last checkpoint of an unfinished run under these settings; if damaged, the one before."""
        for path in self._last_and_previous():
            if not path.exists():
                continue
            try:
                checkpoint = load_checkpoint(path, header_only=header_only)
            except DataError as problem:
                print(f"warning: {problem.what}: {path}: passed over", file=sys.stderr, flush=True)
                continue
            same = checkpoint.settings == settings.flat() and not checkpoint.progress["finished"]
            return checkpoint if same else None
        return None

    def save_last(self, checkpoint: Checkpoint) -> None:
        """Save what to resume from; the one before is kept until the run is finished.

        The last one makes room first, so that two of them and no third need fit onto the disk.

        Raises:
            OSError: the disk is full, say: the one before is still there.
        """
        last, previous = self._last_and_previous()
        if last.exists():
            last.replace(previous)
        checkpoint.save(last)
        if checkpoint.progress["finished"]:
            previous.unlink(missing_ok=True)

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Keep other processes from training into the folder, until the block or this process ends.

        Worker processes that are still ending do not hold it.

        Raises:
            KilosegError: another process has it.
        """
        return locked(self.path / ".training", error=self._in_use, own_process_only=True)

    def _in_use(self, process: str) -> KilosegError:
        return KilosegError(
            "another process trains into this folder",
            where=self.path,
            found=f"process {process or 'unknown'}",
            hint="wait for it or end it, then run the same command again",
        )

    def remove_leftovers(self) -> None:
        """Remove what a killed process left half-written."""
        for pattern in (".*.part", ".tmp*"):  # ours, and safetensors' own
            for path in self.path.glob(pattern):
                path.unlink(missing_ok=True)

    def _last_and_previous(self) -> tuple[Path, Path]:
        return self.path / "last.safetensors", self.path / "previous.safetensors"
