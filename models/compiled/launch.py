"""Decide whether the compiled code applies, and compile a kernel at its first call.

Imports cleanly where numba is not installed, and imports numba only when something is to be compiled. That
takes about a second a kernel and is kept on disk: beside the source where that is writable, else in the
user's folder for caches, else in one of the user's own among the temporary files.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
    """Say why numba cannot be used here; None where it can. Imports it."""
    try:
        if find_spec("numba") is None:
            return "numba is not installed"
    except ImportError:
        return "numba is not installed"
    try:
        with _LOCK:
            importlib.import_module("numba")
    except Exception as error:  # built for another numpy or processor, say
        reason = f"numba cannot be imported: {error}"
        warnings.warn(f"{reason}; losses and searches on the CPU run without it, slower", stacklevel=2)
        return reason
    return None


def kernel(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function with numba for one signature, at its first call, without the interpreter's lock.

    Args:
        signature: of its arguments and its result, as numba writes them.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        compiled: Callable[..., Any] | None = None

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            nonlocal compiled
            if compiled is None:
                with _LOCK:
                    compiled = compiled or _compile(function, signature)
            return compiled(*arguments)

        return call

    return decorate


def _compile(function: Callable[..., Any], signature: str) -> Callable[..., Any]:
    numba: Any = importlib.import_module("numba")
    # Sums may be reordered, so that they are vectorized; NaN and infinity keep their meaning.
    options = {
        "nogil": True,
        "no_cfunc_wrapper": True,
        "error_model": "numpy",
        "fastmath": {"contract", "reassoc", "nsz", "arcp"},
    }
    folder = cache_folder()
    if folder is None:
        return numba.njit(signature, **options)(function)
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder)
    try:
        return numba.njit(signature, cache=True, **options)(function)
    finally:
        numba.config.CACHE_DIR = before


@functools.cache
def cache_folder() -> Path | None:
    """Find or make a writable folder for compiled code; None if there is none, which costs seconds a process.

    Its name has a digest of the sources: numba looks at a kernel's own file only, not at what it calls.
    """
    sources = sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
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
