"""Decide whether the compiled code applies, and compile a kernel at its first call.

Imports cleanly where numba is not installed, and imports numba only when something is to be compiled. That
takes one or two seconds a kernel and is kept on disk: beside the source where that is writable, else in the
user's folder for caches, else in one of the user's own among the temporary files.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import machine_code
from .machine_code import Signature

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_LOCK = threading.RLock()  # numba may import and compile in one thread at a time


def supports(pixel_embeddings: Tensor, class_embeddings: Tensor) -> bool:
    """Tell whether the compiled code applies to these two tensors: the one rule for choosing it.

    It does where numba can be imported, both are float32, bfloat16 or float16 (it accumulates in float32, so
    float64 stays in torch), and both lie on the CPU.
    """
    return reason_against(pixel_embeddings, class_embeddings) is None


def reason_against(pixel_embeddings: Tensor, class_embeddings: Tensor) -> str | None:
    """Say why the compiled code does not apply to these two tensors; None where it does."""
    for name, tensor in (("pixel_embeddings", pixel_embeddings), ("class_embeddings", class_embeddings)):
        if tensor.device.type != "cpu":
            return f"{name} are on {tensor.device}; the compiled code is for the CPU"
        if tensor.dtype not in DTYPES:
            return f"{name} are {tensor.dtype}; the compiled code takes float32, bfloat16 and float16"
    return reason_against_numba()


@functools.cache
def reason_against_numba() -> str | None:
    """Say why numba cannot be used here; None where it can. Imports it, unless it compiled here before."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return "NUMBA_DISABLE_JIT is set"
    try:
        if find_spec("numba") is None:
            return "numba is not installed"
    except ImportError:
        return "numba is not installed"
    folder = cache_folder()
    if folder is not None and any(folder.glob("*.o")):
        return None
    try:
        with _LOCK, machine_code.no_garbage_collection():
            importlib.import_module("numba")
    except Exception as error:  # built for another numpy or processor, say
        reason = f"numba cannot be imported: {error}"
        warnings.warn(f"{reason}; losses and searches on the CPU run without it, slower", stacklevel=2)
        return reason
    return None


def kernel(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function with numba for one signature, at its first call, without the interpreter's lock.

    Args:
        signature: of its arguments and its result, as numba writes them (`machine_code.Signature`).
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        compiled: Callable[..., Any] | None = None

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            nonlocal compiled
            if compiled is None:
                with _LOCK:
                    compiled = compiled or _prepare(function, Signature(signature))
            return compiled(*arguments)

        return call

    return decorate


def _prepare(function: Callable[..., Any], signature: Signature) -> Callable[..., Any]:
    """Load a kernel that is kept, or compile and keep it."""
    name, folder = function.__name__, cache_folder()
    source = Path(function.__code__.co_filename).read_bytes()
    digest = hashlib.sha256(source + f"{signature.text} {machine_code.processor()}".encode()).hexdigest()[:16]
    file = None if folder is None else folder / f"{name}-{digest}.o"
    if file is not None:
        kept = _read(file)
        if kept is not None:
            return machine_code.load(kept, signature, name)
    code = machine_code.make_object(function, signature, name)
    if code is None:
        return machine_code.make_callable(function, signature)
    if file is not None:
        with contextlib.suppress(OSError):  # a full disk, say
            _write(file, code)
    return machine_code.load(code, signature, name)


def _read(file: Path) -> bytes | None:
    """Read what `_write` wrote; None where it is missing or damaged, which the linker may not survive."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    digest, code = content[:32], content[32:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write(file: Path, code: bytes) -> None:
    """Write a file whole or not at all: other processes may read it, or write the same."""
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as new:
        try:
            new.write(hashlib.sha256(code).digest() + code)
            new.close()
            Path(new.name).replace(file)
        except BaseException:
            Path(new.name).unlink(missing_ok=True)
            raise


@functools.cache
def cache_folder() -> Path | None:
    """Find or make a writable folder for compiled code; None if there is none, which costs seconds a process.

    Its name has a digest of the sources, a kernel and what it calls, and of what compiled them.
    """
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    compiler = [sys.version, np.__version__, *map(importlib.metadata.version, ("numba", "llvmlite"))]
    digest = hashlib.sha256(sources + "\n".join(compiler).encode()).hexdigest()[:16]
    for place in _cache_places():
        folder = place / f"numba-{digest}"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError:
            continue
        if not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid():  # what is run is one's own
            return folder
    return None


def _cache_places() -> Iterator[Path]:
    if os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(os.environ["NUMBA_CACHE_DIR"])
    yield Path(__file__).parent / "__pycache__"
    caches = os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(RuntimeError):  # no home
        yield (Path(caches) if caches else Path.home() / ".cache") / "kiloseg"
    user = os.getuid() if hasattr(os, "getuid") else "user"
    yield Path(tempfile.gettempdir()) / f"kiloseg-{user}"
