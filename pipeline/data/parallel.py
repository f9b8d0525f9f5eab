"""The same work on many items in several processes, with the results in the items' order."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from pipeline.errors import Problem
from pipeline.runtime import keep_freed_memory

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK = 32
"""Items a worker gets at once: enough that handing them over does not count."""
CHUNKS_AHEAD = 32


@contextlib.contextmanager
def worker_pool(num_workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes for `ordered_map`, ended with the block; none for 0 or 1, which work in this process."""
    if num_workers <= 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker)
    for _ in range(num_workers):  # the processes start, and import, while this one reads
        pool.submit(int)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def ordered_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    pool: ProcessPoolExecutor | None,
    *,
    chunk: int = CHUNK,
) -> Iterator[Result]:
    """Yields `function(item)` of each item in order.

    Items are taken only a few chunks ahead of the results, so that neither pile up in memory.

    Args:
        function: picklable; what it raises is raised here, at the place of the first such chunk.
        items: picklable.
        pool: of `worker_pool`.
        chunk: items a worker gets at once.

    Raises:
        Problem: a worker died.
    """
    if pool is None:
        yield from map(function, items)
        return
    pending: deque[Future[list[Result]]] = deque()
    try:
        for some in _batched(items, chunk):
            pending.append(pool.submit(_map_chunk, function, some))
            if len(pending) > CHUNKS_AHEAD:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    except BrokenProcessPool as error:
        raise Problem(
            "a worker process died",
            found=error,
            mend="if the memory ran out, use fewer workers, or 0 to work in one process; a script of yours "
            "must start its work under `if __name__ == '__main__':`",
        ) from error


def _map_chunk(function: Callable[[Item], Result], some: tuple[Item, ...]) -> list[Result]:
    return [function(item) for item in some]


def _batched(items: Iterable[Item], size: int) -> Iterator[tuple[Item, ...]]:
    """Chunks of the items, as itertools.batched makes them from Python 3.12 on."""
    iterator = iter(items)
    while some := tuple(itertools.islice(iterator, size)):
        yield some


def _start_worker() -> None:
    keep_freed_memory()  # else the arrays of each image are made of fresh pages
    _follow_parent()


def _follow_parent() -> None:
    """Leaves Ctrl-C to the parent, and ends the worker when the parent is killed, which nothing else does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
