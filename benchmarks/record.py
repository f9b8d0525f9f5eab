"""Where and with what a benchmark ran, and the dated text file that keeps its result."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def describe_machine(device: str) -> str:
    """Return date, commit, hardware and versions, one a line."""
    lines = [
        f"date {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        f"commit {_commit()}",
        f"device {_device(device)}",
        f"python {platform.python_version()}, torch {torch.__version__}",
    ]
    for name in ("timm", "triton", "cut-cross-entropy", "liger-kernel", "segmentation-models-pytorch"):
        try:
            lines.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return "\n".join(lines)


def free_bytes(device: torch.device) -> int:
    """Return the memory that is free, beside other programs too."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def save(benchmark: str, device: str, sections: list[str]) -> Path:
    """Write the sections to a file named after benchmark, device and date, and return its path.

    A second run on the same day gets the time of day in its name as well.
    """
    now = datetime.datetime.now(datetime.UTC)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{benchmark}-{device}-{now:%Y-%m-%d}.txt"
    if path.exists():
        path = RESULTS / f"{benchmark}-{device}-{now:%Y-%m-%d-%H%M%S}.txt"
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return path


def _device(device: str) -> str:
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        memory = properties.total_memory / 2**30
        return f"{properties.name}, {properties.multi_processor_count} multiprocessors, {memory:.0f} GiB"
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return f"CPU {model}, {torch.get_num_threads()} threads"


def _commit() -> str:
    """Return the commit's hash, with a mark where tracked files differ from it; "unknown" outside git."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit} with uncommitted changes" if changed else commit
