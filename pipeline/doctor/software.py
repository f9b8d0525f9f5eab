"""What is installed on this machine, found without importing it: versions, OpenCV's libraries, the GPU.

Versions come from the installed metadata (importing torch alone takes seconds), the GPU from nvidia-smi.
"""

from __future__ import annotations

import ast
import ctypes
import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

Status = Literal["ok", "warning", "missing"]

DEADLINE = 1.5
"""Seconds that the driver and the tracking server may take to answer."""
NAMED = ("torch", "torchvision", "timm", "ray", "mlflow", "dvc")
"""The packages whose versions are told; of the others only what is wrong."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `missing` stops the pipeline, `warning` may surprise, `ok` is as it should be."""

    topic: str
    status: Status
    text: str
    hint: str | None = None


def look_at_versions() -> list[Finding]:
    """Python, and kiloseg's dependencies against the bounds in its own metadata."""
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
    """A CPU-only torch beside the package index's torchvision: timm then fails to import."""
    builds = [found.get(name, "").partition("+")[2] for name in ("torch", "torchvision")]
    if "cpu" not in builds or builds[0] == builds[1]:
        return []
    text = f"torch {found.get('torch')} and torchvision {found.get('torchvision')} are of different builds"
    hint = "install both from the same index, as make setup does in a new .venv"
    return [Finding("packages", "missing", text, hint)]


def look_at_opencv() -> list[Finding]:
    """lvis imports OpenCV, whose shared object wants graphics libraries that slim machines lack."""
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


def look_at_gpu(*, wanted: bool) -> list[Finding]:
    """Each GPU that nvidia-smi names; having none is `missing` only where the settings want one."""
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
        said = (answer.stdout + answer.stderr).strip() or "it names no GPU"
        return [Finding("gpu", status, f"nvidia-smi: {said.splitlines()[0]}", "check the driver")]
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
    """The CUDA version that the installed torch was built for, read from its source without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        tree = ast.parse((Path(spec.origin).parent / "version.py").read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return None
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        named = any(isinstance(target, ast.Name) and target.id == "cuda" for target in targets)
        if named and isinstance(value := getattr(node, "value", None), ast.Constant):
            return value.value if isinstance(value.value, str) else None
    return None
