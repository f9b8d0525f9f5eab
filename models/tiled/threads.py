"""Independent pieces of work on the CPU, shared out to threads.

torch splits each operation over its threads, which meet at its end. A loss or a search in tiles is a chain of
some thirty short operations a tile, each leaving its result in the caches of one core for another to fetch.
Threads that each take tiles of their own, one core to a thread, meet once, at the end of it all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

_ELEMENTS_WORTH_A_THREAD = 2**20  # of pixels x classes: a few milliseconds of one core
# Python's own time for a tile, some tenths of a millisecond, is spent by one thread at a time. So tiles must
# not become small, nor workers many; further threads of torch's share the workers' operations.
_LEAST_WORK_BYTES, _MOST_WORKERS = 2**22, 4
Piece = TypeVar("Piece")


def pieces_of(num_pixels: int, num_classes: int) -> int:
    """Into how many pieces, each worth a thread, comparing all pixels with all classes can be cut."""
    return -(-num_pixels * num_classes // _ELEMENTS_WORTH_A_THREAD)


def num_workers(device: torch.device, pieces: int, work_bytes: int, bytes_each: int = 0) -> int:
    """Into how many threads work in tiles is best shared out.

    Args:
        device: of the tensors; anything but a CPU takes one.
        pieces: of the work.
        work_bytes: size of the buffer that they will share.
        bytes_each: what each will hold besides; all of it may take as much as the buffer.

    Returns:
        1 to 4, at most torch's threads.
    """
    if device.type != "cpu":
        return 1
    by_memory = work_bytes // max(_LEAST_WORK_BYTES, bytes_each)
    return max(1, min(torch.get_num_threads(), _MOST_WORKERS, pieces, by_memory))


def for_each(pieces: Sequence[Piece], work: Callable[[int, Piece], None], workers: int) -> None:
    """Call `work(worker, piece)` for every piece, piece i by worker i modulo `workers`, without gradient.

    The calling thread is worker 0; each takes its share of torch's threads. Who does what does not depend on
    how fast it goes, so results that each worker sums up for itself are the same in every run. The first
    exception, an interrupt of the calling thread too, stops all of them and is raised.

    Profilers and modes that watch torch's operations see the calling thread's alone, which then does all.
    """
    watched = torch.autograd._profiler_enabled() or _get_current_dispatch_mode() is not None
    if workers == 1 or watched:
        with torch.no_grad():
            for number, piece in enumerate(pieces):
                work(number % workers, piece)
        return
    total = torch.get_num_threads()
    failures: list[BaseException] = []

    def take_turns(worker: int) -> None:
        torch.set_num_threads(max(1, total // workers))
        with torch.no_grad():
            for piece in pieces[worker::workers]:
                if failures:
                    return
                work(worker, piece)

    def help_out(worker: int) -> None:
        try:
            take_turns(worker)
        except BaseException as failure:  # raised in the calling thread below
            failures.append(failure)

    helpers = [threading.Thread(target=help_out, args=(worker,)) for worker in range(1, workers)]
    try:
        for thread in helpers:
            thread.start()
        take_turns(0)
    except BaseException as failure:
        failures.append(failure)
        raise
    finally:
        for thread in helpers:
            if thread.ident is not None:
                thread.join()
        torch.set_num_threads(total)
    if failures:
        raise failures[0]
