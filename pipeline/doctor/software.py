"""Check software and machine without importing libraries: versions, OpenCV, the GPU, shared memory.

Versions come from the packages' metadata, so that a missing or broken package is a finding. The GPU comes
from nvidia-smi, which also knows the driver and reports its faults; torch does neither.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from pipeline.config.schema import Settings
from pipeline.runtime.device import MIB, resolve_num_workers
from pipeline.runtime.failures import SHARED_MEMORY

_READY_BATCHES, _BYTES_PER_PIXEL = 2, 3 + 8  # of torch's loader; of an image and its target

Status = Literal["ok", "warning", "missing"]

DEADLINE = 1.5
"""Seconds that the driver and the tracking server may take to answer."""
NAMED = ("torch", "torchvision", "timm", "ray", "mlflow", "dvc")
"""Packages whose versions are shown; of the others only faults are."""


KERNELS = ("tiled", "compiled", "fused")
"""Names that KILOSEG_KERNELS may have, those of `models.implementation`, which would import torch."""


@dataclass(frozen=True)
class Finding:
    """Report one check. `missing` stops the pipeline, `warning` may surprise, `ok` needs nothing."""

    topic: str
    status: Status
    text: str
    hint: str | None = None


def check_versions() -> list[Finding]:
    """Check Python, and kiloseg's dependencies against the bounds in its own metadata."""
    findings = [Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")]
    try:
        requirements = [Requirement(text) for text in importlib.metadata.requires("kiloseg-pipeline") or []]
        own = importlib.metadata.version("kiloseg-pipeline")
    except importlib.metadata.PackageNotFoundError:
        return [*findings, Finding("packages", "missing", "kiloseg itself is not installed", "make setup")]
    found: dict[str, str] = {}
    wrong = []
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed (wanted: {requirement.specifier})")
            continue
        found[requirement.name] = version
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} does not fit (wanted: {requirement.specifier})")
    named = ", ".join(f"{name} {found[name]}" for name in NAMED if name in found)
    findings.append(Finding("packages", "ok", f"kiloseg {own}, {named}; {len(found)} of its packages found"))
    findings += [Finding("packages", "missing", text, "make setup") for text in wrong]
    return [*findings, *_torch_pair(found)]


def _torch_pair(found: dict[str, str]) -> list[Finding]:
    """Find a CPU-only torch beside the package index's torchvision: timm then fails to import."""
    builds = [found.get(name, "").partition("+")[2] for name in ("torch", "torchvision")]
    if "cpu" not in builds or builds[0] == builds[1]:
        return []
    text = f"torch {found.get('torch')} and torchvision {found.get('torchvision')} are of different builds"
    hint = "install both from the same index, as make setup does in a new .venv"
    return [Finding("packages", "missing", text, hint)]


def check_opencv() -> list[Finding]:
    """Check that OpenCV loads: lvis imports it, and it needs graphics libraries that slim machines lack."""
    spec = importlib.util.find_spec("cv2")
    if spec is None or spec.origin is None:
        return [Finding("opencv", "missing", "OpenCV, which lvis imports, is not installed", "make setup")]
    try:
        for library in sorted(Path(spec.origin).parent.glob("cv2*.so")):
            ctypes.CDLL(str(library))
    except OSError as error:
        hint = "apt-get install libgl1 libglib2.0-0, or pip install opencv-python-headless in its place"
        return [Finding("opencv", "missing", f"OpenCV, which lvis imports, does not load: {error}", hint)]
    return [Finding("opencv", "ok", "loads (lvis imports it)")]


def check_kernels() -> list[Finding]:
    """Say which implementation of losses and search the CPU will use (`models.implementation`, by name)."""
    forced = os.environ.get("KILOSEG_KERNELS", "")
    if forced not in ("", *KERNELS):
        text = f"KILOSEG_KERNELS is {forced!r}; allowed are {', '.join(KERNELS)}, or unset"
        return [Finding("kernels", "missing", text, "unset KILOSEG_KERNELS")]
    if forced:
        return [Finding("kernels", "warning", f"KILOSEG_KERNELS forces losses and search to be {forced}")]
    try:
        text = f"losses and search on the CPU are compiled, by numba {importlib.metadata.version('numba')}"
    except importlib.metadata.PackageNotFoundError:
        text = "numba is not installed: losses and search on the CPU run in plain torch, several times slower"
        return [Finding("kernels", "warning", text, "make setup")]
    return [Finding("kernels", "ok", text)]


def check_gpu(*, wanted: bool) -> list[Finding]:
    """List the GPUs that nvidia-smi names; none is `missing` only if the settings want one."""
    status: Status = "missing" if wanted else "warning"
    built_for = _torch_cuda()
    executable = shutil.which("nvidia-smi")
    if executable is None:
        hint = "set runtime.device to cpu, or install the NVIDIA driver" if wanted else None
        return [Finding("gpu", status, "no NVIDIA driver here (no nvidia-smi): the CPU does the work", hint)]
    query = [executable, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=DEADLINE * 0.9, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [Finding("gpu", status, f"nvidia-smi does not answer: {error}", "check the driver")]
    lines = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    if answer.returncode != 0 or not lines:
        message = (answer.stdout + answer.stderr).strip() or "it names no GPU"
        return [Finding("gpu", status, f"nvidia-smi: {message.splitlines()[0]}", "check the driver")]
    findings = []
    for line in lines:
        parts = [part.strip() for part in line.split(",")]
        name, memory, driver = (*parts, "?", "?")[:3]
        findings.append(
            Finding("gpu", "ok", f"{name}, {memory}, driver {driver}, torch for CUDA {built_for}")
        )
    if built_for is None:
        text = "there is a GPU, but the installed torch is built without CUDA"
        findings = [Finding("gpu", status, text, "install a CUDA build of torch and torchvision")]
    return findings


def _torch_cuda() -> str | None:
    """Return the CUDA version that torch was built for; running its version.py does not import torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        return runpy.run_path(str(Path(spec.origin).with_name("version.py"))).get("cuda")
    except (OSError, SyntaxError):
        return None


def check_shared_memory(settings: Iterable[Settings]) -> list[Finding]:
    """Compare the shared memory with what the loader's processes will put there; containers have 64 MiB."""
    needs = [_loaders_bytes(one) for one in settings if resolve_num_workers(one.runtime.num_workers)]
    if not needs:
        return []
    hint = "docker run --shm-size=2g (or --ipc=host), or set runtime.num_workers to 0"
    try:
        space, writable = shutil.disk_usage(SHARED_MEMORY), os.access(SHARED_MEMORY, os.W_OK)
    except OSError:
        return [
            Finding("memory", "missing", f"there is no {SHARED_MEMORY}, which worker processes need", hint)
        ]
    if not writable:
        return [
            Finding(
                "memory", "missing", f"{SHARED_MEMORY}, which worker processes need, cannot be written", hint
            )
        ]
    text = f"{space.free / MIB:,.0f} MiB free in {SHARED_MEMORY}"
    if space.free < max(needs):
        text += f", and the loader's processes fill about {max(needs) / MIB:,.0f}"
        return [Finding("memory", "warning", text, hint)]
    return [Finding("memory", "ok", text)]


def _loaders_bytes(settings: Settings) -> int:
    """Return the bytes of the batches that lie ready: two a process, and the one that is being used."""
    train = settings.train
    batch = train.images_per_step * train.crop_size**2 * _BYTES_PER_PIXEL
    return (_READY_BATCHES * resolve_num_workers(settings.runtime.num_workers) + 1) * batch
