"""Order the training images as a function of seed and position, so that any step can be resumed.

Plain epochs show every image once, as the paper does. With repeat factors (LVIS, Gupta et al., CVPR 2019,
appendix B.2) an epoch shows images of rare classes several times.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np


class Draw(NamedTuple):
    """One sample of the endless stream: the image, the epoch, and how often the epoch showed it before."""

    epoch: int
    image: int
    repeat: int = 0


def repeat_factors(presence: Iterable[np.ndarray], num_classes: int, threshold: float) -> np.ndarray:
    """Return LVIS's repeat factors: how often an epoch shows each image, on average.

    A class seen in the share f of the images has the factor max(1, sqrt(threshold / f)), an image the largest
    of its classes'.

    Args:
        presence: of each image, the train ids in it.
        num_classes: C.
        threshold: t; classes rarer than this share of the images are repeated. LVIS takes 0.001.

    Returns:
        (images,) float64, at least 1.

    Raises:
        ValueError: a threshold outside 0..1.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; allowed: 0 < threshold <= 1")
    present = list(presence)
    images_of = np.zeros(num_classes)
    for train_ids in present:
        images_of[train_ids] += 1
    share = np.maximum(images_of, 1) / max(len(present), 1)
    of_class = np.maximum(1.0, np.sqrt(threshold / share))
    return np.array([of_class[train_ids].max(initial=1.0) for train_ids in present])


class ShuffledBatches:
    """The batches of steps start_step..num_steps - 1 of an endless stream of shuffled epochs.

    Batches run across the ends of epochs, so none is short and a dataset may be smaller than a batch. The
    order of an epoch depends on the seed and its number alone. With repeat factors, so does its length: the
    fraction of a factor is a chance, drawn anew in every epoch.

    Args:
        num_samples: images in the dataset, at least 1.
        batch_size: samples in each batch.
        num_steps: the step after the last.
        seed: 0 or more.
        start_step: the first step to yield.
        factors: (num_samples,) how often an epoch shows each image, on average; None for once.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        batch_size: int,
        num_steps: int,
        seed: int,
        start_step: int = 0,
        factors: np.ndarray | None = None,
    ) -> None:
        if num_samples < 1 or batch_size < 1 or start_step < 0:
            raise ValueError(
                f"need num_samples >= 1, batch_size >= 1 and start_step >= 0, "
                f"got {num_samples}, {batch_size} and {start_step}"
            )
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.start_step, self.num_steps = start_step, num_steps
        if factors is not None and (factors.shape != (num_samples,) or not (factors >= 1).all()):
            raise ValueError(f"need a factor of at least 1 for each of {num_samples} samples")
        self.factors = factors

    def __len__(self) -> int:
        return max(0, self.num_steps - self.start_step)

    def __iter__(self) -> Iterator[list[Draw]]:
        stream = self._stream(self.start_step * self.batch_size)
        for _ in range(len(self)):
            yield [next(stream) for _ in range(self.batch_size)]

    def _stream(self, position: int) -> Iterator[Draw]:
        epoch, start = divmod(position, self.num_samples) if self.factors is None else (0, position)
        while True:
            order, repeats = self._epoch(epoch)
            for image, repeat in zip(order[start:].tolist(), repeats[start:].tolist(), strict=True):
                yield Draw(epoch, image, repeat)
            epoch, start = epoch + 1, max(0, start - len(order))

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the images of an epoch in order, and how often the epoch showed each before."""
        rng = np.random.default_rng([self.seed, epoch])
        if self.factors is None:
            return rng.permutation(self.num_samples), np.zeros(self.num_samples, dtype=np.int64)
        whole = np.floor(self.factors)
        times = (whole + (rng.random(self.num_samples) < self.factors - whole)).astype(np.int64)
        images = np.repeat(np.arange(self.num_samples), times)
        repeats = np.arange(len(images)) - np.repeat(np.cumsum(times) - times, times)
        order = rng.permutation(len(images))
        return images[order], repeats[order]


def sample_seed(seed: int, draw: Draw) -> int:
    """Return a 63-bit seed for one sample's augmentation, mixed from the run's seed and the draw."""
    state = np.random.SeedSequence([seed, *(draw if draw.repeat else draw[:2])]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
