"""Choose threads, device and memory use of this machine.

They decide about speed and size, and about the rounding of sums (docs/training.md: threads).

torch is imported inside the functions that need it, so that the command line can answer `--help` without it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.runtime.errors import KilosegError, MemoryLimitError

if TYPE_CHECKING:
    import torch

MIB = 2**20
GIB = 2**30
_MOST_WORKERS = 8


def set_threads(
    threads: int | str, *, deterministic: bool = False, device: torch.device | None = None
) -> int:
    """Set torch's CPU threads and return the number that may be used.

    Args:
        threads: a positive number, or "auto" for the cores this process may use. Processes that share a
            machine must share its cores: two with all threads each can be ten times slower than one.
        deterministic: on a CPU give torch one thread whatever the number, since it divides its sums among
            threads. What does not, such as the compiled loss, may be given all of them (`threads_for`).
        device: that computes; None for a CPU.
    """
    import torch

    number = resolve_threads(threads)
    on_a_cpu = device is None or device.type == "cpu"
    torch.set_num_threads(1 if deterministic and on_a_cpu else number)
    keep_freed_memory()
    return number


@contextlib.contextmanager
def threads_for(number: int | None) -> Iterator[None]:
    """Give torch another number of threads in the block; None leaves it alone."""
    import torch

    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def resolve_threads(threads: int | str) -> int:
    """Return the number itself, or for "auto" the cores this process may use."""
    if threads != "auto":
        return int(threads)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve_num_workers(num_workers: int | Literal["auto"]) -> int:
    """Return the number itself, or for "auto" the cores this process may use less one, at most 8."""
    if num_workers != "auto":
        return num_workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(cores - 1, _MOST_WORKERS))


def processor_name() -> str:
    """Return the processor's model, or the machine's kind where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def keep_freed_memory() -> None:
    """Let the C library keep freed blocks below 2 GiB for reuse, instead of handing them to the kernel.

    Otherwise every large tensor of every step is made of fresh pages, whose first touch cost half of a
    training step of the softmax baseline (docs/LOG.md, 2026-11-22). Only glibc has these switches.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 2**31 - 1)  # M_MMAP_THRESHOLD: no block of its own from the kernel below this
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: what is free at the end of the heap is never handed back


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is CUDA where there is one, else the CPU.

    Raises:
        KilosegError: CUDA was asked for and is not there.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise KilosegError(
            "no CUDA device is usable",
            where="runtime.device",
            found=f"{name}, while torch {torch.__version__} sees no GPU",
            allowed="auto, cpu",
            hint="check `nvidia-smi` and the driver, or set runtime.device to cpu",
        )
    return torch.device(name)


class PeakMemory:
    """Measure peak memory since construction, in GiB.

    On CUDA it is the most the allocator had handed out. On the CPU torch keeps no such count, and it is the
    high-water mark of the process's resident memory, which includes the interpreter and libraries (about
    half a GiB) and cannot be reset. `kind` says which, and the two are never to be compared.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.kind = "cuda_allocator" if device.type == "cuda" else "process_resident"
        if device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(device)

    def gib(self) -> float:
        """Return the peak so far, in GiB."""
        if self.device.type == "cuda":
            import torch

            return torch.cuda.max_memory_allocated(self.device) / GIB
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024) / GIB


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether `error` is a failed allocation: torch's on the GPU or on the CPU, or Python's own."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "CUDA out of memory" in text
        or "can't allocate memory" in text  # DefaultCPUAllocator
    )


def out_of_memory(error: BaseException) -> MemoryLimitError:
    """Return the user's view of an allocation that failed."""
    return MemoryLimitError(
        "out of memory",
        found=str(error).partition("\n")[0] or None,
        hint="lower train.batch_size or train.crop_size; `pipeline memory` predicts what fits",
    )
