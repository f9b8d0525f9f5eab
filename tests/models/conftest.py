"""Lets the fused kernels run in Triton's interpreter where there is no GPU.

Triton decides between compiler and interpreter when a kernel is decorated, its own language functions
included. So Triton is imported here, once, with TRITON_INTERPRET=1; the variable is taken back at once, so
that no other test and no process it starts is interpreted. The functions of `models.fused` accept CPU tensors
only while it is set.
"""

import os
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

from models.compiled import reason_against_numba

if find_spec("triton") is not None and not torch.cuda.is_available() and "TRITON_INTERPRET" not in os.environ:
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        import models.fused.search_kernels
        import models.fused.upsample_kernels  # noqa: F401
    finally:
        del os.environ["TRITON_INTERPRET"]


@pytest.fixture
def fused_kernels_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU the functions insist on the interpreter, which was prepared above."""
    if not torch.cuda.is_available() and find_spec("triton") is not None:
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture(params=["tiled", "compiled"])
def each_implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Losses and searches of float32 on the CPU by each implementation; of float64 there is one only."""
    if request.param == "compiled" and reason_against_numba() is not None:
        pytest.skip("no numba here")
    monkeypatch.setenv("KILOSEG_KERNELS", request.param)
    return request.param


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """The interpreter gains nothing from threads and loses much where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
