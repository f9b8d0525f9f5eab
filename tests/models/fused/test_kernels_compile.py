"""The fused kernels compile to machine code for an H100 or H200 (sm_90) and for cards with less shared memory
(sm_89), which needs Triton and its ptxas, no GPU.

Run as a program, this file calls the public functions on CPU tensors, catches every launch, compiles it with
its own tiles and constants, and prints one JSON line for each kernel; the test reads those lines. A process
of its own, one for all cases: here Triton must not interpret.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.paths import ROOT

SHARED_MEMORY = {90: 227 * 1024, 89: 99 * 1024}
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
}


CASES = ["90:float32:16:distance", "90:bfloat16:64:cosine", "89:float32:512:dot"]


@pytest.fixture(scope="module")
def kernels_by_case() -> dict[str, list[dict[str, Any]]]:
    """What became of each launch of each case, "architecture:dtype:D:similarity"."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    with tempfile.TemporaryDirectory() as cache:
        environment["TRITON_CACHE_DIR"] = cache
        done = subprocess.run(
            [sys.executable, __file__, *CASES],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
    for line in done.stdout.splitlines():
        report = json.loads(line)
        found[report["case"]].append(report)
    return found


def bundled(name: str) -> Path | None:
    """A tool of CUDA that comes with Triton's wheel."""
    found = find_spec("triton")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "backends" / "nvidia" / "bin" / name
    return path if path.exists() else None


@pytest.mark.slow
@pytest.mark.skipif(bundled("ptxas") is None, reason="Triton or its ptxas is not installed here")
@pytest.mark.parametrize("case", CASES)
def test_every_kernel_becomes_code_within_the_limits_of_the_machine(
    kernels_by_case: dict[str, list[dict[str, Any]]], case: str
) -> None:
    kernels, limit = kernels_by_case[case], SHARED_MEMORY[int(case.partition(":")[0])]
    heavy = {"loss_forward", "class_backward", "nearest_one", "nearest_many"}
    light = {"scale_in_place", "upsample_band", "add_band_gradient"}
    squares = {"squared_lengths"} if case.endswith("distance") else set()
    assert {kernel["name"] for kernel in kernels} == heavy | light | squares
    for kernel in kernels:
        assert kernel["code_bytes"] > 0
        assert kernel["shared_memory"] <= limit
        if kernel["name"] in heavy:
            assert kernel["matrix_unit"], f"{kernel['name']} does not use the matrix unit"
        assert not kernel["asynchronous"], f"{kernel['name']} is for wgmma: see models.fused.launch.Tile"


def main() -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from models import fused
    from models.embeddings import LossOptions
    from models.fused import launch as fused_launch
    from models.fused import search_kernels as fused_search_kernels
    from models.fused import upsample_kernels as fused_upsample_kernels

    architecture, case = 0, ""  # of the launches that are caught
    fused_launch.shared_memory = lambda device: SHARED_MEMORY[architecture]
    assert isinstance(fused_search_kernels.nearest_one, triton.JITFunction)
    assert isinstance(fused_upsample_kernels.upsample_band, triton.JITFunction)
    seen: set[str] = set()

    def compile_instead(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        names = list(self.arg_names)
        values = {**dict(zip(names, args, strict=False)), **{k: v for k, v in kwargs.items() if k in names}}
        options = {k: v for k, v in kwargs.items() if k not in names}
        constants = {parameter.name for parameter in self.params if parameter.is_constexpr}
        signature, attributes, fixed = {}, {}, {}
        for place, name in enumerate(names):
            value = values[name]
            if name in constants:
                signature[name], fixed[name] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[name] = POINTERS[value.dtype]
                attributes[place,] = [["tt.divisibility", 16]]
            else:
                signature[name] = "fp32" if isinstance(value, float) else "i32"
        key = f"{case} {self.__name__} {signature} {fixed} {options}"
        if key in seen:
            return
        seen.add(key)
        source = ASTSource(self, signature, fixed, attributes)
        kernel = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
        report = {
            "case": case,
            "name": self.__name__,
            "signature": {name: kind for name, kind in signature.items() if kind.startswith("*")},
            "constants": {name: str(value) for name, value in fixed.items()},
            "shared_memory": kernel.metadata.shared,
            "code_bytes": len(kernel.asm["cubin"]),
            "matrix_unit": "mma.sync" in kernel.asm["ptx"],
            "asynchronous": "wgmma" in kernel.asm["ptx"],
            **resources(kernel.asm["cubin"]),
        }
        print(json.dumps(report), flush=True)

    triton.JITFunction.run = compile_instead
    os.environ["TRITON_INTERPRET"] = "1"  # after the import: lets CPU tensors pass, interprets nothing
    for case in sys.argv[1:]:
        number, dtype_name, dim, similarity = case.split(":")
        architecture = int(number)
        dtype = getattr(torch, dtype_name)
        pixels = torch.zeros(200, int(dim), dtype=dtype, requires_grad=True)
        maps = torch.zeros(1, int(dim), 4, 4, dtype=dtype, requires_grad=True)
        classes = torch.zeros(100, int(dim), dtype=dtype, requires_grad=True)
        chosen = LossOptions(similarity=similarity)
        bias = torch.zeros(100, requires_grad=True) if similarity == "dot" else None
        fused.fused_exact_cross_entropy(pixels, classes, torch.zeros(200).long(), chosen, bias).backward()
        fused.fused_exact_cross_entropy(maps, classes, torch.zeros(1, 16, 16).long(), chosen, bias).backward()
        for k in (1, fused.MAX_NEAREST):
            fused.fused_nearest_classes(pixels, classes, k, similarity=similarity)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread and bytes it spills, where the tool that tells is at hand."""
    tool = bundled("cuobjdump")
    if tool is None:
        return {}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=False
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", told)
    return {"registers": int(found[1]), "spilled_bytes": int(found[2])} if found else {}


if __name__ == "__main__":
    main()
