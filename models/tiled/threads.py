"""Share independent pieces of work on the CPU out to threads.

torch splits each operation over its threads and waits for the slowest. A loss or a search in tiles is a chain
of some thirty short operations a tile, and each leaves its result in another core's cache. Threads that take
whole tiles wait for each other once, at the end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch.utils import _python_dispatch

_ELEMENTS_WORTH_A_THREAD = 2**20  # of pixels x classes: a few milliseconds of one core
# Python itself takes some tenths of a millisecond per tile, one thread at a time. So tiles must not be small
# nor workers many; torch's further threads speed up the workers' operations.
_LEAST_WORK_BYTES, _MOST_WORKERS = 2**22, 4
Piece = TypeVar("Piece")


def pieces_of(num_pixels: int, num_classes: int) -> int:
    """Count the pieces, each worth a thread, that comparing all pixels with all classes can be cut into."""
    return -(-num_pixels * num_classes // _ELEMENTS_WORTH_A_THREAD)


def num_workers(device: torch.device, pieces: int, work_bytes: int, bytes_each: int = 0) -> int:
    """Choose the number of threads for work in tiles.

    Args:
        device: of the tensors; anything but a CPU takes one.
        pieces: of the work, see `pieces_of`.
        work_bytes: size of the buffer that the threads will share.
        bytes_each: what each thread will hold besides; all of them together at most as much as the buffer.

    Returns:
        1 to 4, at most torch's threads.
    """
    if device.type != "cpu":
        return 1
    by_memory = work_bytes // max(_LEAST_WORK_BYTES, bytes_each)
    return max(1, min(torch.get_num_threads(), _MOST_WORKERS, pieces, by_memory))


def for_each(pieces: Sequence[Piece], work: Callable[[int, Piece], None], workers: int) -> None:
    """Call `work(worker, piece)` for every piece, piece i by worker i modulo `workers`, without gradient.

    The calling thread is worker 0; each takes its share of torch's threads. The assignment of pieces is
    fixed, so sums that each worker keeps for itself are the same in every run. The first exception, an
    interrupt of the calling thread too, stops all of them and is raised.

    Profilers and dispatch modes see the operations of the calling thread only. While one is active, the
    calling thread does all the work.
    """
    if workers == 1 or profiler_is_active() or dispatch_mode_is_active():
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

    def run_helper(worker: int) -> None:
        try:
            take_turns(worker)
        except BaseException as failure:  # raised in the calling thread below
            failures.append(failure)

    helpers = [threading.Thread(target=run_helper, args=(worker,)) for worker in range(1, workers)]
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


def profiler_is_active() -> bool:
    """Tell whether torch.profiler or torch.autograd.profiler records this thread (private API of torch)."""
    return bool(torch.autograd._profiler_enabled())


def dispatch_mode_is_active() -> bool:
    """Tell whether a TorchDispatchMode watches this thread's operations (private API of torch)."""
    return _python_dispatch._get_current_dispatch_mode() is not None
