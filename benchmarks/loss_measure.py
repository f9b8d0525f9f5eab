"""Measure time and memory of the candidates of `benchmarks.loss`, and the least time a GPU needs."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.loss_candidates import Candidate, Inputs

GIB = 2**30
MOST_PROFILED = 2e9  # logits; with more, the profiler's own events would fill the memory


def turn(candidate: Candidate) -> float:
    """Run forward and backward once and return the seconds."""
    on_gpu = candidate.leaves[0].is_cuda
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    torch.autograd.grad(candidate.loss(), candidate.leaves)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_extra_bytes(candidate: Candidate) -> int:
    """Most bytes held at once beyond those before the call."""
    if candidate.leaves[0].is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        turn(candidate)
        return torch.cuda.max_memory_allocated() - before
    if candidate.predicted_steps > MOST_PROFILED:
        return peak_resident_bytes(candidate)
    return allocated_cpu_bytes(lambda: turn(candidate))


def allocated_cpu_bytes(call: Callable[[], object]) -> int:
    """Most bytes that torch's CPU allocator held at once for what `call` allocated, by torch's profiler."""
    collects = gc.isenabled()
    gc.disable()  # what was left over from before must not be freed while counting
    try:
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as record:
            call()
    finally:
        if collects:
            gc.enable()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate((event.nbytes() for event in events), initial=0))


def peak_resident_bytes(candidate: Candidate) -> int:
    """Most resident memory beyond that before the call (Linux only, which lets a process reset its peak)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library than GNU's has no such function
        # What was freed before but not handed back would be used again, unseen: the peak would come out as 0.
        ctypes.CDLL(None).malloc_trim(0)

    def resident(field_name: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field_name))

    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident("VmRSS")
    candidate.seconds.append(turn(candidate))
    return max(0, resident("VmHWM") - before)


def measure(candidates: Iterable[Candidate], repeats: int, free_bytes: int, most_steps: float) -> None:
    """Fill in times and memory; leave out what would not fit, would take too long, or fails."""
    running = []
    for candidate in candidates:
        if candidate.left_out is None and candidate.predicted_bytes > 0.8 * free_bytes:
            candidate.left_out = f"does not fit (predicted {candidate.predicted_bytes / GIB:,.1f} GiB)"
        elif candidate.left_out is None and candidate.predicted_steps > most_steps:
            candidate.left_out = f"{candidate.predicted_steps:.0e} logits: left out by --most-logits"
        if candidate.left_out is None:
            try:
                if candidate.leaves[0].is_cuda or candidate.predicted_steps <= MOST_PROFILED:
                    turn(candidate)  # the warm-up: compiling and tuning happen here, and are not counted
                candidate.extra_bytes = peak_extra_bytes(candidate)
                running.append(candidate)
            except Exception as error:  # a peer may fail in any way, and the others still count
                reason = (str(error).strip() or "no reason given").splitlines()[0]
                candidate.left_out = f"failed: {type(error).__name__}: {reason}"
            if candidate.leaves[0].is_cuda:
                torch.cuda.empty_cache()  # what one candidate used is free for the next
    for _ in range(repeats):
        for candidate in running:
            if sum(candidate.seconds) < 60:  # one turn is enough of what takes minutes
                candidate.seconds.append(turn(candidate))


def copy_bandwidth() -> float:
    """Measure the bytes per second of a large copy on the GPU, read and written."""
    source = torch.empty(2**28, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    best = math.inf
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best


@dataclass(frozen=True)
class Speed:
    """What bounds a loss on a GPU."""

    multiprocessors: int
    clock_hz: float
    bytes_per_second: float

    def __str__(self) -> str:
        return (
            f"{self.multiprocessors} multiprocessors at {self.clock_hz / 1e6:,.0f} MHz, "
            f"copy bandwidth {self.bytes_per_second / 1e9:,.0f} GB/s"
        )


def gpu_speed() -> Speed:
    """Read the GPU's size and highest clock, and measure how fast it copies."""
    properties = torch.cuda.get_device_properties(0)
    return Speed(properties.multi_processor_count, properties.clock_rate * 1e3, copy_bandwidth())


def lower_bound(inputs: Inputs, speed: Speed) -> float:
    """Return the least seconds forward and backward can take on a GPU of this speed.

    Two exponentials a logit (one in each pass) at 16 a clock and multiprocessor, for distances as many
    reciprocal roots again; and at least each input read and each gradient written at the speed of a copy.
    """
    special = 2 * len(inputs.pixels) * len(inputs.classes)
    if inputs.similarity == "distance":
        special *= 2
    moved = inputs.bytes + inputs.pixels.nbytes + inputs.classes.nbytes
    return max(special / (16 * speed.multiprocessors * speed.clock_hz), moved / speed.bytes_per_second)


def available_bytes(device: str) -> int:
    """Memory that nobody uses yet."""
    if device == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
