"""Keep unfinished trainings under other settings, each in a folder of its own beside the one at work.

    checkpoints/VARIANT/                       the training at work, or the finished one
    checkpoints/VARIANT/unfinished-0123456789ab/  one that waits until its settings come back; the name is its
                                               identity's

A training that starts where a finished one lies works in such a folder until its first validation.
"""

from __future__ import annotations

import contextlib
import itertools
import shlex
import sys
from dataclasses import dataclass

from pipeline.checkpoint.format import Checkpoint
from pipeline.checkpoint.identity import Identity, identity_name, identity_of
from pipeline.checkpoint.run_folder import RunFolder
from pipeline.runtime.device import GIB, MIB
from pipeline.runtime.errors import KilosegError

PREFIX = "unfinished-"
_MOST_DIFFERENCES = 8


@dataclass(frozen=True)
class Started:
    """Say where a training works, and from what it goes on.

    Attributes:
        folder: to save into.
        checkpoint: to go on from; None at step 0.
    """

    folder: RunFolder
    checkpoint: Checkpoint | None


def find_unfinished(main: RunFolder, identity: Identity) -> tuple[RunFolder, Checkpoint] | None:
    """Find the unfinished training of this identity, in the folder itself or set aside.

    Returns:
        Its folder and the header of its last checkpoint; None if there is none.
    """
    for folder in (main, *_set_aside(main)):
        checkpoint = folder.latest(header_only=True)
        if checkpoint is None or checkpoint.progress["finished"]:
            continue
        if not identity.differences(checkpoint):
            return folder, checkpoint
    return None


def is_finished(folder: RunFolder, identity: Identity) -> bool:
    """Tell whether the training of this identity has ended in the folder; False where nothing can be read."""
    with contextlib.suppress(KilosegError):
        last = folder.latest(header_only=True)
        return last is not None and bool(last.progress["finished"]) and not identity.differences(last)
    return False


def start(main: RunFolder, identity: Identity, *, keep: bool = True) -> Started:
    """Find where to train, having set aside what must not be overwritten, and say so.

    Args:
        main: the variant's folder; this process holds its lock.
        identity: of the training.
        keep: set an unfinished training under other settings aside; else remove what is there.
    """
    found = find_unfinished(main, identity)
    if found is not None and found[0] == main:
        for name in {identity.name, identity_name(identity_of(found[1]))}:
            main.complete(_waiting(main, name))
        return Started(main, main.latest())
    there, aside = main.latest(header_only=True), None
    if not keep:
        for path in main.files():
            path.unlink()
        there = None
    elif there is None or not there.progress["finished"]:
        aside, there = _make_room(main, there, identity), None
    _tell_waiting(main, [aside, found[0] if found else None])
    if found is None:
        return Started(main if there is None else _waiting(main, identity.name), None)
    if there is None or found[1].progress["validation_curve"]:
        main.take(found[0])
        return Started(main, main.latest())
    return Started(found[0], found[0].latest())


def _set_aside(main: RunFolder) -> list[RunFolder]:
    return [RunFolder(path) for path in sorted(main.path.glob(f"{PREFIX}*")) if path.is_dir()]


def _waiting(main: RunFolder, name: str) -> RunFolder:
    return RunFolder(main.path / f"{PREFIX}{name}")


def _make_room(main: RunFolder, there: Checkpoint | None, identity: Identity) -> RunFolder | None:
    """Set aside what lies in the folder: an unfinished training, or files that cannot be read."""
    if not main.files():
        return None
    if there is None:
        names = (f"unreadable-{number}" for number in itertools.count(1))
        aside = next(RunFolder(main.path / name) for name in names if not (main.path / name).exists())
        main.give(aside)
        _say(f"what is in {main.path} cannot be read; it is kept in {_named(aside)}", [])
        return aside
    aside = _waiting(main, identity_name(identity_of(there)))
    main.publish()
    main.give(aside)
    differences = identity.differences(there)
    more = len(differences) - _MOST_DIFFERENCES
    _say(
        f"an unfinished training at step {there.step} had other settings; it is kept in {_named(aside)} and "
        "goes on when they come back",
        differences[:_MOST_DIFFERENCES] + ([f"and {more} more"] if more > 0 else []),
    )
    return aside


def _tell_waiting(main: RunFolder, told: list[RunFolder | None]) -> None:
    waiting = [folder for folder in _set_aside(main) if folder not in told]
    if waiting:
        many = f"{len(waiting)} unfinished training{'s wait' if len(waiting) > 1 else ' waits'}"
        command = f"rm -r {shlex.quote(str(main.path))}/{PREFIX}*"
        _say(f"{many} in {main.path}, {_size(sum(map(_bytes, waiting)))}; to delete: {command}", [])


def _named(folder: RunFolder) -> str:
    return f"{folder.path} ({_size(_bytes(folder))}; to delete: rm -r {shlex.quote(str(folder.path))})"


def _bytes(folder: RunFolder) -> int:
    """Return the space that deleting the folder frees; a file that has another name frees none."""
    found = [path.stat() for path in folder.files()]
    return sum(about.st_size for about in found if about.st_nlink == 1)


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"


def _say(text: str, lines: list[str]) -> None:
    print("\n".join([f"note: {text}", *(f"  {line}" for line in lines)]), file=sys.stderr, flush=True)
