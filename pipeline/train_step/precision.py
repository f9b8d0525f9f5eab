"""Set how a training computes: autocast, TensorFloat32, determinism.

TensorFloat32 and determinism are switches of the whole process: they are set for a training and put back.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from pipeline.config.schema import TrainSettings
from pipeline.runtime.errors import UsageError

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_REFUSAL = "does not have a deterministic implementation"


def autocast(precision: str, device_type: str) -> torch.autocast:
    """Return the autocast context of `train.precision`; it is off for fp32."""
    dtype = AUTOCAST.get(precision)
    return torch.autocast(device_type, dtype or torch.bfloat16, enabled=dtype is not None)


@contextlib.contextmanager
def numerics(train: TrainSettings, device: torch.device) -> Iterator[None]:
    """Compute in the block as `train.precision`, `tf32` and `deterministic` say.

    Raises:
        UsageError: fp16 without a GPU; an operation that is not deterministic where that is asked for.
    """
    if train.precision == "fp16" and device.type != "cuda":
        raise UsageError(
            "half precision needs a GPU",
            where="train.precision",
            found=f"fp16 on {device}",
            allowed="fp32 or bf16 on the CPU",
            hint="set train.precision to bf16",
        )
    with contextlib.ExitStack() as undo:
        if device.type == "cuda":
            _allow_tf32(train.tf32, undo)
        if train.deterministic:
            _insist_on_determinism(undo)
        try:
            yield
        except RuntimeError as error:
            if not train.deterministic or _REFUSAL not in str(error):
                raise
            operation = str(error).split(_REFUSAL)[0].strip().rpartition("\n")[2]
            raise UsageError(
                "an operation of this training is not deterministic",
                where="train.deterministic",
                found=f"{operation} on {device}",
                allowed="operations that give the same bits every time",
                hint="take another model.decoder or model.backbone, train on the CPU, or set it to false",
            ) from error


def _allow_tf32(allowed: bool, undo: contextlib.ExitStack) -> None:
    undo.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    undo.callback(setattr, torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def _insist_on_determinism(undo: contextlib.ExitStack) -> None:
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    undo.callback(torch.use_deterministic_algorithms, before, warn_only=warn_only)
    undo.callback(setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
