"""The benchmark of the losses: what it needs, what it lists, and the least time it compares a GPU's with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import loss_candidates, loss_measure
from benchmarks.loss import table
from benchmarks.loss_candidates import Candidate, make_inputs
from benchmarks.loss_measure import Speed, gpu_speed, lower_bound, peak_resident_bytes


def test_without_a_gpu_the_fused_rows_say_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    inputs = make_inputs(8, 3, 4, "cosine", torch.float32, "cpu")
    for candidate in loss_candidates.fused_candidates(inputs, 8):
        assert candidate.left_out is not None
        assert "the fused kernels need" in candidate.left_out
        assert candidate.left_out in table(inputs, [candidate], None)


def test_the_bound_is_that_of_the_special_functions_or_of_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, for an H200: 132 multiprocessors at 1.98 GHz do 4.18e12 special functions a second."""
    properties = SimpleNamespace(multi_processor_count=132, clock_rate=1_980_000)  # kHz
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(loss_measure, "copy_bandwidth", lambda: 4e12)
    speed = gpu_speed()
    assert speed == Speed(132, 1.98e9, 4e12)
    for similarity, functions in (("cosine", 2), ("distance", 4)):
        inputs = make_inputs(4096, 1000, 16, similarity, torch.float32, "cpu")
        seconds = functions * 4096 * 1000 / (16 * 132 * 1.98e9)
        assert lower_bound(inputs, speed) == pytest.approx(seconds)
        read, written = 4096 * (16 * 4 + 8) + 1000 * 16 * 4, (4096 + 1000) * 16 * 4
        assert lower_bound(inputs, Speed(132, 1.98e9, 1e9)) == pytest.approx((read + written) / 1e9)
        candidate = Candidate("mine", lambda: torch.zeros(()), (), seconds=[3 * seconds, 2 * seconds])
        candidate.extra_bytes = 2**20
        assert table(inputs, [candidate], seconds).splitlines()[-1].split()[-1] == "2.00"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux resets a process's peak")
def test_resident_memory_counts_what_was_freed_before_and_is_taken_again() -> None:
    leaf = torch.zeros(1, requires_grad=True)

    def hungry() -> torch.Tensor:
        pieces = [torch.ones(2**18) for _ in range(24)]  # a MiB each, which the C library keeps when freed
        return leaf.sum() + sum(piece[0] for piece in pieces)

    candidate = Candidate("hungry", hungry, (leaf,))
    hungry()
    for _ in range(3):
        assert 22 * 2**20 < peak_resident_bytes(candidate) < 80 * 2**20
