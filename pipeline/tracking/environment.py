"""Collect the versions, device and commit that are stored with every training and evaluation.

torch is imported only where it is needed: the MLflow tracker asks for the commit alone.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.paths import bootstrapped_folder
from pipeline.config.schema import Settings
from pipeline.runtime.device import processor_name
from pipeline.runtime.errors import UsageError

if TYPE_CHECKING:
    import torch


def collect_environment(
    settings: Settings, device: torch.device, threads: int, implementation: Callable[[torch.device], str]
) -> dict[str, object]:
    """Return versions, device, threads, what computes losses and search, and the commit of the project.

    Args:
        settings: whose project counts.
        device: of the network.
        threads: of torch.
        implementation: that of losses and search on a device (`models.implementation`).

    Raises:
        UsageError: the environment asks for an implementation that there is not.
    """
    import torch

    try:
        kernels = implementation(device)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "timm", "numpy")},
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.machine() + " CPU",
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "kernels": kernels,
        "git_commit": git_commit(settings.project),
        "dvc_lock": md5_of(settings.project / "dvc.lock"),
        "data_digest": md5_of(bootstrapped_folder(settings) / "manifest.json"),
    }


def md5_of(path: Path) -> str:
    """Return the MD5 digest of a file, as DVC takes it; "absent" if there is none."""
    return hashlib.md5(path.read_bytes()).hexdigest() if path.is_file() else "absent"


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
