"""Map a function over many items in several processes, with the results in the items' order."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Generic, TypeVar

from pipeline.runtime.device import keep_freed_memory
from pipeline.runtime.errors import KilosegError

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK = 32
"""Items a worker gets at once, so that sending them costs little."""
CHUNKS_AHEAD = 32
"""Chunks taken from the items before the first one's results are due."""
CHUNKS_IN_HAND = 2
"""Chunks submitted per worker: one running, one queued."""


@dataclass(frozen=True)
class WorkerPool:
    """Processes that work beside this one, and their number."""

    executor: ProcessPoolExecutor
    number: int


@contextlib.contextmanager
def worker_pool(num_workers: int, module: str) -> Iterator[WorkerPool | None]:
    """Start processes for `ordered_map`, ended with the block; none for 0 or 1: this process works alone.

    Args:
        num_workers: how many work. This process is one of them: it works where it would wait.
        module: what the others import as they start.
    """
    keep_freed_memory()  # else the arrays of each image are made of fresh pages
    if num_workers <= 1:
        yield None
        return
    others = num_workers - 1
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(others, mp_context=context, initializer=_start_worker)
    with _one_thread_for_products():
        for _ in range(others):
            executor.submit(_import, module)
        try:
            yield WorkerPool(executor, others)
        finally:
            executor.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _one_thread_for_products() -> Iterator[None]:
    """Keep NumPy, imported in the block here or in a process that starts, from starting BLAS threads.

    No matrix products are computed, and starting the threads costs each process a tenth of a second.
    """
    name = "OPENBLAS_NUM_THREADS"
    before = os.environ.get(name)
    os.environ.setdefault(name, "1")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)


def ordered_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    pool: WorkerPool | None,
    *,
    chunk: int = CHUNK,
) -> Iterator[Result]:
    """Yield `function(item)` of each item in order.

    Items are taken only a few chunks ahead of the results, so that neither pile up in memory.

    Args:
        function: picklable; its exceptions are raised here, at the place of the first chunk that has one.
        items: picklable.
        pool: of `worker_pool`.
        chunk: items a worker gets at once.

    Raises:
        KilosegError: a worker died.
    """
    if pool is None:
        yield from map(function, items)
        return
    pending: deque[_Chunk[Item, Result]] = deque()
    try:
        for some in _batched(items, chunk):
            pending.append(_Chunk(some))
            if len(pending) > CHUNKS_AHEAD:
                yield from _first(pending, function, pool)
        while pending:
            yield from _first(pending, function, pool)
    except BrokenProcessPool as error:
        raise KilosegError(
            "a worker process died",
            found=error,
            hint="if the memory ran out, use fewer workers, or 0 to work in one process; a script of yours "
            "must start its work under `if __name__ == '__main__':`",
        ) from error


@dataclass
class _Chunk(Generic[Item, Result]):
    """Items that are processed together; the future is None until a process has been given them."""

    items: tuple[Item, ...]
    future: Future[list[Result]] | None = None


def _first(
    pending: deque[_Chunk[Item, Result]], function: Callable[[Item], Result], pool: WorkerPool
) -> list[Result]:
    """Return the results of the first chunk; until they are there, this process works on later chunks."""
    while True:
        # keep every worker supplied: one chunk running and one queued each
        in_hand = sum(one.future is not None and not one.future.done() for one in pending)
        left = [one for one in pending if one.future is None]
        hand_out = max(pool.number * CHUNKS_IN_HAND - in_hand, 0)
        for one in left[:hand_out]:
            one.future = pool.executor.submit(_map_chunk, function, one.items)
        # this process takes the first chunk that no worker was given
        own = next(iter(left[hand_out:]), None)
        first = pending[0].future
        # return the first results if they are there, or wait for them if there is nothing else to do
        if first is not None and (own is None or first.done()):
            pending.popleft()
            return first.result()
        assert own is not None  # the first, or one that comes while another process has the first
        own.future = Future()
        try:
            own.future.set_result(_map_chunk(function, own.items))
        except Exception as error:  # raised at its place, as if it came from another process
            own.future.set_exception(error)


def _map_chunk(function: Callable[[Item], Result], some: tuple[Item, ...]) -> list[Result]:
    return [function(item) for item in some]


def _batched(items: Iterable[Item], size: int) -> Iterator[tuple[Item, ...]]:
    """Yield chunks of the items, as itertools.batched does from Python 3.12 on."""
    iterator = iter(items)
    while some := tuple(itertools.islice(iterator, size)):
        yield some


def _import(module: str) -> None:
    importlib.import_module(module)


def _start_worker() -> None:
    keep_freed_memory()
    _follow_parent()


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent, and end the worker when the parent is killed, which nothing else does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
