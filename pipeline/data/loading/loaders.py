"""Load batches for training and evaluation; the number of worker processes changes nothing in them."""

from __future__ import annotations

import multiprocessing.queues
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from pipeline.data.loading.batch import Batch, Sample
from pipeline.data.loading.sampler import Draw, ShuffledBatches, sample_seed
from pipeline.runtime.device import resolve_num_workers
from pipeline.runtime.errors import DataError, KilosegError
from pipeline.runtime.failures import explained, shared_memory_failed
from pipeline.runtime.temporary import shorten_worker_sockets


class Transform(Protocol):
    """A random change of one sample, decided by the generator alone."""

    def __call__(self, image: Tensor, target: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Change (3, H, W) uint8 and (H, W) int64 alike; all samples come out in one size."""
        ...


class Samples(Protocol):
    """What the loaders need of a dataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def train_loader(
    dataset: Samples,
    transform: Transform,
    *,
    batch_size: int,
    num_steps: int,
    seed: int,
    start_step: int = 0,
    num_workers: int | Literal["auto"] = "auto",
    factors: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Load the batches of steps start_step..num_steps - 1.

    They depend on the dataset, the transform, the batch size, the seed and the repeat factors, not on the
    workers nor on where the run was resumed.

    Raises:
        DataError: the dataset is empty; and, when a batch is fetched, whatever KilosegError reading it met.
    """
    if len(dataset) == 0:
        raise DataError(
            "there is no image to train on",
            found="an empty train split",
            hint="check data.root and data.holdout_fraction, then bootstrap again",
        )
    batches = ShuffledBatches(
        len(dataset),
        batch_size=batch_size,
        num_steps=num_steps,
        seed=seed,
        start_step=start_step,
        factors=factors,
    )
    return _fetch(_Augmented(dataset, transform, seed), batches, num_workers)


def evaluation_loader(
    dataset: Samples, *, num_workers: int | Literal["auto"] = "auto", limit: int | None = None
) -> Iterator[Batch]:
    """Load every image once, whole and alone (sizes differ), in the dataset's order.

    Args:
        dataset: the split.
        num_workers: processes besides this one.
        limit: only the first images.

    Raises:
        KilosegError: when a batch is fetched, whatever reading it met.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    return _fetch(_Plain(dataset), [[Draw(0, index)] for index in range(count)], num_workers)


class _Plain(Dataset[Sample | KilosegError]):
    """Read samples. An error that has a message for users is returned as a value.

    torch would rebuild it from its text, and fail.
    """

    def __init__(self, dataset: Samples) -> None:
        self.dataset = dataset

    def __getitem__(self, draw: Draw) -> Sample | KilosegError:
        try:
            return self.read(draw)
        except Exception as error:
            problem = explained(error)
            if problem is None:
                raise
            return problem

    def read(self, draw: Draw) -> Sample:
        """Return one sample."""
        return self.dataset[draw.image]


class _Augmented(_Plain):
    """Read samples and transform each with a generator of its own."""

    def __init__(self, dataset: Samples, transform: Transform, seed: int) -> None:
        super().__init__(dataset)
        self.transform, self.seed = transform, seed

    def read(self, draw: Draw) -> Sample:
        """Return one sample, transformed as seed, epoch and index decide."""
        sample = self.dataset[draw.image]
        generator = torch.Generator().manual_seed(sample_seed(self.seed, draw))
        image, target = self.transform(sample.image, sample.target, generator)
        return Sample(image, target, sample.image_id)


def _fetch(
    samples: _Plain, batches: Iterable[list[Draw]], num_workers: int | Literal["auto"]
) -> Iterator[Batch]:
    shorten_worker_sockets()
    loader = DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=resolve_num_workers(num_workers),
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # torch draws a base seed: not from the global generator
    )
    return _raising(loader)


def _raising(loader: Iterable[Batch | KilosegError]) -> Iterator[Batch]:
    """Yield the batches; raise what a process met in the user's terms.

    Raises:
        KilosegError: of reading, of shared memory that ran out, or of a process that ended.
    """
    try:
        for item in loader:
            if isinstance(item, KilosegError):
                raise item
            yield item
    except (RuntimeError, OSError) as error:
        problem = explained(error)
        if problem is None and "DataLoader worker" in str(error):
            problem = _worker_ended(error)
        if problem is None:
            raise
        raise problem from error


def _worker_ended(error: Exception) -> KilosegError:
    return KilosegError(
        "a process that reads images ended",
        where="runtime.num_workers",
        found=str(error).partition("\n")[0],
        hint="lower runtime.num_workers: the machine may have run out of memory; 0 reads in this process",
    )


def _collate(samples: list[Sample | KilosegError]) -> Batch | KilosegError:
    read: list[Sample] = []
    for sample in samples:
        if isinstance(sample, KilosegError):
            return sample
        read.append(sample)
    batch = Batch(
        torch.stack([sample.image for sample in read]),
        torch.stack([sample.target for sample in read]),
        tuple(sample.image_id for sample in read),
    )
    return batch if get_worker_info() is None else _shared(batch)


def _shared(batch: Batch) -> Batch | KilosegError:
    """Move a worker's batch into shared memory.

    torch would do so in a thread of the worker, where an error loses the batch and the training waits for it
    for ever.
    """
    try:
        batch.images.share_memory_()
        batch.target.share_memory_()
    except (RuntimeError, OSError) as error:
        return shared_memory_failed(error)
    return batch


def _start_worker(worker: int) -> None:
    """Limit a worker to one thread, and take it out of the process group that a stop signal reaches.

    The parent saves its state and then ends the workers. Ignoring SIGTERM instead would make a parent that
    exits with a loader half-way wait for ever, as that is the signal by which it ends them. Where the parent
    is gone, they notice and end within seconds.
    """
    torch.set_num_threads(1)
    if hasattr(os, "setsid"):
        os.setsid()
    # a batch that cannot be sent must end the worker: its parent would wait for it for ever
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]


def _end_worker(error: Exception, batch: object) -> None:
    print(f"a batch could not be sent: {error}", file=sys.stderr, flush=True)
    os._exit(1)
