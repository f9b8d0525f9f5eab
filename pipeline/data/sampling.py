"""In which order training sees the images: a function of seed and position, so any step can be resumed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class Draw(NamedTuple):
    """One sample of the endless stream: which image, in which pass over the data."""

    epoch: int
    image: int


class ShuffledBatches:
    """The batches of steps start_step..num_steps - 1 of an endless stream of shuffled epochs.

    Batches run across the ends of epochs, so none is short and a dataset may be smaller than a batch. The
    order of an epoch depends on the seed and its number alone.

    Args:
        num_samples: images in the dataset, at least 1.
        batch_size: samples in each batch.
        num_steps: the step after the last.
        seed: 0 or more.
        start_step: the first step to yield.
    """

    def __init__(
        self, num_samples: int, *, batch_size: int, num_steps: int, seed: int, start_step: int = 0
    ) -> None:
        if num_samples < 1 or batch_size < 1 or start_step < 0:
            raise ValueError(
                f"need num_samples >= 1, batch_size >= 1 and start_step >= 0, "
                f"got {num_samples}, {batch_size} and {start_step}"
            )
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.start_step, self.num_steps = start_step, num_steps

    def __len__(self) -> int:
        return max(0, self.num_steps - self.start_step)

    def __iter__(self) -> Iterator[list[Draw]]:
        stream = self._stream(self.start_step * self.batch_size)
        for _ in range(len(self)):
            yield [next(stream) for _ in range(self.batch_size)]

    def _stream(self, position: int) -> Iterator[Draw]:
        epoch, start = divmod(position, self.num_samples)
        while True:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.num_samples)
            for index in order[start:]:
                yield Draw(epoch, int(index))
            epoch, start = epoch + 1, 0


def sample_seed(seed: int, draw: Draw) -> int:
    """A 63-bit seed for one sample's augmentation, mixed from the run's seed, the epoch and the index."""
    state = np.random.SeedSequence([seed, draw.epoch, draw.image]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
