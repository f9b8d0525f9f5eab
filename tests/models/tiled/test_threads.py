"""Work shared out to threads: who does what, what stops it, and what is as before afterwards."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from torch.distributed._tools.mem_tracker import MemTracker
from torch.profiler import ProfilerActivity, profile

from models.losses.exact import exact_cross_entropy
from models.losses.knn import knn_cross_entropy
from models.nearest import nearest_classes
from models.tiled.threads import dispatch_mode_is_active, for_each, num_workers, profiler_is_active

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_every_piece_is_done_once_by_the_worker_it_belongs_to():
    done: list[list[int]] = [[], [], []]
    names: set[tuple[int, str]] = set()
    together = threading.Barrier(3, timeout=10)

    def work(worker: int, piece: int) -> None:
        if piece < 3:
            together.wait()  # passes only if three threads are here at once
        done[worker].append(piece)
        names.add((worker, threading.current_thread().name))

    for_each(range(10), work, 3)
    assert done == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    assert len({name for _, name in names}) == len(names) == 3
    assert (0, threading.current_thread().name) in names


def test_workers_compute_without_gradient_in_their_share_of_torchs_threads():
    seen: list[tuple[bool, int]] = []
    for_each(range(4), lambda *_: seen.append((torch.is_grad_enabled(), torch.get_num_threads())), 2)
    assert seen == [(False, 2)] * 4
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_of_any_worker_stops_all_and_is_raised(failing):
    done = []
    failed = threading.Event()

    def work(worker: int, piece: int) -> None:
        if worker == failing:
            failed.set()
            raise ValueError(f"piece {piece}")
        assert failed.wait(10)
        done.append(piece)

    with pytest.raises(ValueError, match=f"piece {failing}"):
        for_each(range(1000), work, 2)
    assert len(done) < 500
    assert torch.get_num_threads() == 4
    assert threading.active_count() == threading.active_count()


def test_an_interrupt_of_the_calling_thread_leaves_no_thread_behind():
    before = threading.active_count()

    def work(worker: int, piece: int) -> None:
        if worker == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        for_each(range(100), work, 3)
    assert threading.active_count() == before


def test_the_number_of_workers_is_held_by_threads_pieces_memory_and_the_device():
    plenty = 2**30
    assert num_workers(CPU, 100, plenty) == 4
    torch.set_num_threads(6)
    assert num_workers(CPU, 100, plenty) == 4  # never more
    assert num_workers(CPU, 3, plenty) == 3
    assert num_workers(CPU, 0, plenty) == 1
    assert num_workers(CPU, 100, 2**23) == 2  # 4 MiB each
    assert num_workers(CPU, 100, 1) == 1
    assert num_workers(CPU, 100, plenty, bytes_each=2**29) == 2
    assert num_workers(torch.device("meta"), 100, plenty) == 1


@pytest.mark.parametrize("similarity", ["distance", "cosine"])
def test_losses_and_search_are_the_same_in_threads(similarity):
    """Enough pixels x classes that all of them are shared out: the loss to 1e-6, the ids exactly."""
    torch.manual_seed(0)
    pixels = F.normalize(torch.randn(9_000, 8), dim=1).requires_grad_()
    classes = F.normalize(torch.randn(400, 8), dim=1).requires_grad_()
    target = torch.randint(-1, 400, (9_000,))
    target[target < 0] = -100
    assert num_workers(CPU, 9_000 * 400 // 2**20, 2**25) > 1

    def results():
        found = []
        for loss in (exact_cross_entropy, knn_cross_entropy):
            value = loss(pixels, classes, target, similarity=similarity)
            found += [value, *torch.autograd.grad(value, (pixels, classes))]
        return [*found, nearest_classes(pixels, classes, 3, similarity=similarity)]

    shared, again = results(), results()
    torch.set_num_threads(1)
    for one, other, repeated in zip(results(), shared, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(one.detach().abs().max()))
        assert torch.equal(other, repeated)


def test_what_watches_torch_sees_all_of_the_work():
    def work(worker: int, piece: int) -> None:
        made.append(torch.zeros(2**18))

    made: list[torch.Tensor] = []
    tracker = MemTracker()
    with tracker:
        for_each(range(8), work, 4)
    (held,) = tracker.get_tracker_snapshot("peak").values()
    assert held["Total"] == 8 * 2**20
    made.clear()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        for_each(range(8), work, 4)
    events = record.profiler.kineto_results.events()
    assert sum(event.nbytes() for event in events if event.name() == "[memory]") == 8 * 2**20


def test_an_active_profiler_is_seen_and_only_while_it_is_active():
    assert not profiler_is_active()
    with profile(activities=[ProfilerActivity.CPU]):
        assert profiler_is_active()
    assert not profiler_is_active()


def test_an_active_dispatch_mode_is_seen_and_only_while_it_is_active():
    assert not dispatch_mode_is_active()
    with MemTracker():
        assert dispatch_mode_is_active()
    assert not dispatch_mode_is_active()
