"""A training step that did not fit: what was tried, what it is predicted to need, and what would fit."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator

import torch

from pipeline.data.label_space import LabelSpace
from pipeline.errors import MemoryProblem, Problem
from pipeline.runtime import GIB, choose_device, is_out_of_memory
from pipeline.settings import Settings

_USABLE = 0.9  # of the device; the rest is for the context, workspaces and fragmentation


@contextlib.contextmanager
def explained_memory(settings: Settings) -> Iterator[None]:
    """Turns an allocation that failed in the block into a `MemoryProblem` with the way out.

    Args:
        settings: of the training in the block.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        found = str(error).splitlines()[0]
    else:
        return
    raise explanation(settings, found)  # outside, so that the failed step's tensors are free again


def explanation(settings: Settings, found: str) -> MemoryProblem:
    """The problem of a training under `settings` that ended with torch's message `found`."""
    from pipeline.memory import largest_batch, predict_bytes  # slow to import, and rarely needed

    options, device = settings.train, choose_device(settings.runtime.device)
    num_classes = LabelSpace.load(settings.bootstrapped / "label_space.json").num_classes
    capacity = _capacity(device)
    where = (
        f"a step of batch_size {options.batch_size}, crop_size {options.crop_size}, {num_classes} classes, "
        f"head {settings.model.head}, on {device}"
    )
    try:
        need = f"; predicted need {predict_bytes(settings, num_classes) / GIB:.2f} GiB"
        fit = largest_batch(settings, num_classes, int(capacity * _USABLE))
        mend = (
            f"set train.batch_size to {fit.batch_size} (predicted {fit.predicted_bytes / GIB:.2f} GiB)"
            if fit.batch_size < options.batch_size
            else "free the memory that others use: the step alone is predicted to fit"
        )
    except Problem as problem:
        need, mend = "", f"{problem.what}; {problem.mend}"
    return MemoryProblem("out of memory", where=where, found=found + need, allowed=_told(capacity), mend=mend)


def _told(capacity: int) -> str:
    return f"{capacity / GIB:.2f} GiB, of which {_USABLE:.0%} are counted on"


def _capacity(device: torch.device) -> int:
    """Bytes of the GPU, or of the machine and the limit that this process was given."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    capacity = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return capacity if limit == resource.RLIM_INFINITY else min(capacity, limit)
