"""Batches depend on the seed and the step alone, and a bad image is told in one clear error."""

import errno
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass

import pytest
import torch

from pipeline.data.loading.batch import Batch, Sample
from pipeline.data.loading.loaders import evaluation_loader, train_loader
from pipeline.data.loading.sampler import Draw, ShuffledBatches, sample_seed
from pipeline.data.loading.transforms import TrainTransform
from pipeline.runtime.device import resolve_num_workers
from pipeline.runtime.errors import DataError, KilosegError


@dataclass
class Numbered:
    """Images that carry their number; asking for the broken one is the user's problem."""

    count: int
    broken: int | None = None
    bug: int | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if index == self.broken:
            raise DataError("unreadable JPEG", where=f"{index}.jpg", found="noise", hint="fetch it again")
        if index == self.bug:
            raise ZeroDivisionError("our own mistake")
        shape = (20 + index, 30)
        return Sample(
            torch.full((3, *shape), index, dtype=torch.uint8), torch.full(shape, index), 1000 + index
        )


def whole(image, target, generator):
    """A transform that keeps only a corner, and records what its generator gives."""
    noise = torch.randint(0, 1000, (4, 4), generator=generator)
    return image[:, :4, :4], target[:4, :4] * 0 + noise


def batches(start=0, stop=12, workers=0, seed=5, count=7, transform=whole):
    return list(
        train_loader(
            Numbered(count),
            transform,
            batch_size=3,
            num_steps=stop,
            seed=seed,
            start_step=start,
            num_workers=workers,
        )
    )


def assert_same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.target, b.target)
        assert a.image_ids == b.image_ids


def test_the_stream_shows_every_image_once_an_epoch_in_ever_new_order():
    draws = [draw for batch in ShuffledBatches(7, batch_size=3, num_steps=14, seed=1) for draw in batch]
    assert len(draws) == 42
    for epoch in range(6):
        part = draws[7 * epoch : 7 * epoch + 7]
        assert {draw.epoch for draw in part} == {epoch}
        assert sorted(draw.image for draw in part) == list(range(7))
    orders = {tuple(draw.image for draw in draws[7 * epoch : 7 * epoch + 7]) for epoch in range(6)}
    assert len(orders) > 3


def test_every_place_in_the_order_is_as_likely_for_every_image():
    first = Counter(
        next(iter(ShuffledBatches(4, batch_size=1, num_steps=1, seed=s)))[0].image for s in range(400)
    )
    assert all(60 < first[index] < 140 for index in range(4))


@pytest.mark.parametrize("start", [0, 1, 2, 5, 11, 12, 20])
def test_a_stream_started_in_the_middle_is_the_rest_of_the_whole_one(start):
    everything = list(ShuffledBatches(7, batch_size=3, num_steps=12, seed=2))
    rest = ShuffledBatches(7, batch_size=3, num_steps=12, seed=2, start_step=start)
    assert list(rest) == everything[start:]
    assert len(rest) == len(everything[start:])


def test_a_dataset_smaller_than_a_batch_fills_it_from_several_epochs():
    (batch,) = ShuffledBatches(2, batch_size=5, num_steps=1, seed=0)
    assert [draw.epoch for draw in batch] == [0, 0, 1, 1, 2]


def test_sample_seeds_differ_between_epochs_images_and_runs():
    seeds = {
        sample_seed(run, Draw(epoch, index)) for run in range(5) for epoch in range(20) for index in range(50)
    }
    assert len(seeds) == 5000
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.process
@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_the_same_whatever_the_number_of_workers(workers):
    assert_same(batches(workers=workers), batches(workers=0))


def test_resumed_batches_equal_the_uninterrupted_ones_augmentation_included():
    transform = TrainTransform(16)
    assert_same(batches(start=5, transform=transform), batches(transform=transform)[5:])


def test_another_seed_gives_another_order_and_other_augmentation():
    one, other = batches(seed=5), batches(seed=6)
    assert [batch.image_ids for batch in one] != [batch.image_ids for batch in other]
    assert not torch.equal(one[0].target, other[0].target)


def test_an_image_is_augmented_anew_in_every_epoch():
    seen = [tuple(target.flatten().tolist()) for batch in batches(count=1, stop=4) for target in batch.target]
    assert len(set(seen)) == len(seen) == 12


def test_loading_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    batches()
    assert torch.equal(torch.rand(3), expected)


def test_training_batches_are_bytes_and_ids():
    batch = batches(stop=1)[0]
    assert (batch.images.dtype, tuple(batch.images.shape)) == (torch.uint8, (3, 3, 4, 4))
    assert (batch.target.dtype, tuple(batch.target.shape)) == (torch.int64, (3, 4, 4))
    assert [image_id - 1000 for image_id in batch.image_ids] == batch.images[:, 0, 0, 0].tolist()


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_shows_every_image_whole_in_order(workers):
    found = list(evaluation_loader(Numbered(5), num_workers=workers))
    assert [batch.image_ids for batch in found] == [(1000 + index,) for index in range(5)]
    assert [tuple(batch.images.shape) for batch in found] == [(1, 3, 20 + index, 30) for index in range(5)]
    assert [batch.image_ids[0] for batch in evaluation_loader(Numbered(5), num_workers=workers, limit=2)] == [
        1000,
        1001,
    ]


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 2])
def test_a_problem_in_a_worker_reaches_the_parent_whole(workers):
    with pytest.raises(DataError) as caught:
        list(evaluation_loader(Numbered(5, broken=3), num_workers=workers))
    problem = caught.value
    assert type(problem) is DataError
    assert (problem.what, problem.where, problem.found) == ("unreadable JPEG", "3.jpg", "noise")
    assert problem.hint == "fetch it again"
    assert "Traceback" not in str(problem)


@pytest.mark.process
def test_batches_before_the_problem_are_still_delivered():
    delivered = []
    with pytest.raises(DataError):
        delivered.extend(
            batch.image_ids[0] for batch in evaluation_loader(Numbered(5, broken=3), num_workers=0)
        )
    loader = evaluation_loader(Numbered(5, broken=3), num_workers=1)
    assert [next(loader).image_ids[0] for _ in range(3)] == [1000, 1001, 1002]


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_of_our_own_keeps_its_type_and_traceback(workers):
    with pytest.raises(ZeroDivisionError, match="our own mistake"):
        list(evaluation_loader(Numbered(2, bug=1), num_workers=workers))


def test_an_empty_train_split_is_refused_with_the_fix():
    with pytest.raises(DataError, match="no image to train on"):
        train_loader(Numbered(0), whole, batch_size=1, num_steps=1, seed=0)


def test_automatic_workers_leave_a_core_to_the_training(monkeypatch):
    assert resolve_num_workers(3) == 3
    for cores, expected in ((1, 0), (2, 1), (5, 4), (64, 8)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process, n=cores: set(range(n)), raising=False)
        assert resolve_num_workers("auto") == expected


@pytest.mark.process
def test_a_process_that_leaves_a_loader_half_way_ends():
    program = (
        "import torch\n"
        "from pipeline.data.loading.dataset import Sample\n"
        "from pipeline.data.loading.loaders import evaluation_loader\n"
        "blank = Sample(torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(4, 4, dtype=torch.int64), 1)\n"
        "loader = evaluation_loader([blank] * 9, num_workers=1)\n"
        "print(next(loader).image_ids)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "(1,)\n"


FULL = "unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)"


@pytest.mark.process
def test_shared_memory_that_is_full_ends_the_loading_with_its_name(monkeypatch):
    """torch's own place for it is a thread of the worker, which loses the batch: the parent would hang."""

    def refuse(tensor):
        raise RuntimeError(FULL)

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)  # the workers are forked
    with pytest.raises(KilosegError) as caught:
        batches(workers=1)
    said = str(caught.value)
    assert all(word in said for word in ("/dev/shm", "--shm-size", "runtime.num_workers", FULL))


@pytest.mark.process
def test_a_batch_that_cannot_be_sent_ends_the_loading(monkeypatch, capfd):
    def refuse(batch):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Batch, "__reduce__", refuse)
    with pytest.raises(KilosegError, match="a process that reads images ended"):
        batches(workers=1)
    assert "Too many open files" in capfd.readouterr().err


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_may_not_be_read_is_named_from_a_worker_too(monkeypatch, workers):
    def refuse(dataset, index):
        raise PermissionError(errno.EACCES, "Permission denied", "7.jpg")

    monkeypatch.setattr(Numbered, "__getitem__", refuse)
    with pytest.raises(KilosegError) as caught:
        batches(workers=workers)
    assert caught.value.where == "7.jpg"
    assert "Traceback" not in str(caught.value)
