"""Threads, device and memory of this machine."""

from __future__ import annotations

import mmap

import psutil
import pytest
import torch

from pipeline.runtime.device import PeakMemory, choose_device, set_threads
from pipeline.runtime.errors import KilosegError


def test_devices_and_threads() -> None:
    assert choose_device("cpu").type == "cpu"
    before = torch.get_num_threads()
    try:
        assert set_threads(1) == 1 == torch.get_num_threads()
        assert set_threads("auto") >= 1
    finally:
        torch.set_num_threads(before)
    if not torch.cuda.is_available():
        assert choose_device("auto").type == "cpu"
        with pytest.raises(KilosegError, match="no CUDA device"):
            choose_device("cuda")


@pytest.mark.slow
def test_peak_memory_on_the_cpu_sees_an_allocation() -> None:
    memory = PeakMemory(torch.device("cpu"))
    assert memory.kind == "process_resident"
    before = memory.gib()
    below_the_peak = before - psutil.Process().memory_info().rss / 2**30
    with mmap.mmap(
        -1, int((below_the_peak + 0.3) * 2**30)
    ) as block:  # an allocator may have kept freed pages
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
    assert memory.gib() >= before + 0.1
