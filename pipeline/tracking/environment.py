"""Collect the versions, device and commit that are stored with every training and evaluation.

torch is imported only where it is needed: the MLflow tracker asks for the commit alone.
"""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.schema import Settings

if TYPE_CHECKING:
    import torch


def collect_environment(settings: Settings, device: torch.device, threads: int) -> dict[str, object]:
    """Return versions, device, threads and the commit of the project."""
    import torch

    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "timm", "numpy")},
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.machine() + " CPU",
        "threads": threads,
        "git_commit": git_commit(settings.project),
    }


def git_commit(folder: Path) -> str:
    """Return the commit checked out in `folder`, with "-dirty" if tracked files differ from it."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "not a git repository"
    return result.stdout.strip()
