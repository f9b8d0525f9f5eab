"""What numbers were computed on and with: kept with every training and every evaluation."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from pipeline.runtime import git_commit
from pipeline.settings import Settings


def environment(settings: Settings, device: torch.device, threads: int) -> dict[str, object]:
    """Versions, device, threads and the state of the project's git repository."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "timm", "numpy")},
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.machine() + " CPU",
        "threads": threads,
        "git_commit": git_commit(settings.project),
    }
