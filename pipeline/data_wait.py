"""How long a training waits for its data: measured in every run, as nobody sees it otherwise."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator

from pipeline.data.loaders import Batch
from pipeline.train_state import TrainState


class DataWait:
    """Takes the time that the loop over the steps waits for batches, and all the time it takes.

    On a GPU, which still computes while the next batch is awaited, this is the most that waiting can cost.

    Args:
        state: its `waiting_seconds` and `stepping_seconds` grow.
    """

    def __init__(self, state: TrainState) -> None:
        self.state, self._aside = state, 0.0

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches. The wait for the first is left out: worker processes start before it."""
        iterator = iter(batches)
        batch, began = next(iterator, None), time.perf_counter()
        while batch is not None:
            self._aside = 0.0
            yield batch
            asked = time.perf_counter()
            batch = next(iterator, None)
            got = time.perf_counter()
            self.state.waiting_seconds += got - asked
            self.state.stepping_seconds += got - began - self._aside
            began = got

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What is done in the block, a validation say, is no part of the loop's time."""
        began = time.perf_counter()
        yield
        self._aside += time.perf_counter() - began
