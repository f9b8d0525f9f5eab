"""Keep a training's checkpoints: the best one, the last one to resume from, and the one before that.

`chosen` is the best checkpoint of the training, `best` the same file under the name that DVC tracks (a hard
link, which takes no space). DVC removes `best` before it runs a stage again; from `chosen` it comes back.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoint.format import Checkpoint, load_checkpoint
from pipeline.checkpoint.identity import Identity
from pipeline.runtime.errors import DataError, KilosegError
from pipeline.runtime.files import atomic_path
from pipeline.runtime.locks import locked


@dataclass(frozen=True)
class RunFolder:
    """Hold the checkpoints of one training, each whole; only one process may write to the folder."""

    path: Path

    @property
    def best(self) -> Path:
        """Return the path of the checkpoint chosen on the held-out part."""
        return self.path / "best.safetensors"

    @property
    def chosen(self) -> Path:
        """Return the path of the training's own copy of that."""
        return self.path / "chosen.safetensors"

    @property
    def last(self) -> Path:
        """Return the path of the checkpoint to resume from."""
        return self.path / "last.safetensors"

    @property
    def previous(self) -> Path:
        """Return the path of the checkpoint before the last one."""
        return self.path / "previous.safetensors"

    @property
    def trace(self) -> Path:
        """Return the path of the trace that `train.debug: profile` leaves."""
        return self.path / "trace.json"

    def latest(self, *, header_only: bool = False) -> Checkpoint | None:
        """Load the last checkpoint; if it is damaged or missing, the one before; None without either."""
        for path in (self.last, self.previous):
            if not path.exists():
                continue
            try:
                return load_checkpoint(path, header_only=header_only)
            except DataError as problem:
                _warn_passed_over(path, problem.what)
        return None

    def save_last(self, checkpoint: Checkpoint) -> None:
        """Save what to resume from; the one before is kept until the run is finished.

        The last one makes room first, so that two of them and no third need fit onto the disk.

        Raises:
            OSError: the disk is full, say: the one before is still there.
        """
        if self.last.exists():
            self.last.replace(self.previous)
        checkpoint.save(self.last)
        if checkpoint.progress["finished"]:
            self.previous.unlink(missing_ok=True)

    def publish(self) -> None:
        """Make `best` the chosen checkpoint, if there is one."""
        if self.chosen.exists():
            _link(self.chosen, self.best)

    def recover_chosen(self, step: int, identity: Identity) -> bool:
        """Tell whether the chosen checkpoint, of this step, is there; take `best` for it where it is that."""
        for path in (self.chosen, self.best):
            with contextlib.suppress(DataError):
                checkpoint = load_checkpoint(path, header_only=True)
                if checkpoint.step != step or identity.differences(checkpoint):
                    continue
                if path == self.best:  # which DVC may have linked to its cache
                    with atomic_path(self.chosen) as temporary:
                        shutil.copyfile(path, temporary)
                return True
        return False

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

    def files(self) -> list[Path]:
        """Return what there is of the training; `best` may be another's."""
        return [path for path in (self.last, self.previous, self.chosen) if path.exists()]

    def take(self, other: RunFolder) -> None:
        """Move another folder's training here, in place of what is here.

        What there is to resume from comes first: killed between two renames, `complete` does the rest.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for stale in (self.previous, self.chosen):  # of a finished training
            stale.unlink(missing_ok=True)
        for source in (other.last, other.previous):
            if source.exists():
                source.replace(self.last)
                break
        self.complete(other)

    def complete(self, other: RunFolder) -> None:
        """Move here what another folder holds of this training after a kill in `take` or `give`."""
        for path in other.files():
            if not (self.path / path.name).exists():
                path.replace(self.path / path.name)
        other.remove_leftovers()
        with contextlib.suppress(OSError):  # not there, or somebody put other things there
            other.path.rmdir()

    def give(self, other: RunFolder) -> None:
        """Move this folder's training to another; what there is to resume from goes last."""
        other.path.mkdir(parents=True, exist_ok=True)
        for path in reversed(self.files()):
            path.replace(other.path / path.name)


@functools.cache
def _warn_passed_over(path: Path, what: str) -> None:
    """Warn once, however often the file is tried."""
    print(f"warning: {what}: {path}: passed over", file=sys.stderr, flush=True)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, atomically; where the file system has no hard links, copy it."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(target)  # nothing happens where both are one file already
    temporary.unlink(missing_ok=True)
