"""Save and load checkpoints that describe themselves: one safetensors file, atomic, without pickle.

The header holds everything needed to rebuild the model and to go on: the segmenter's arguments, the label
space, the settings, the step, the progress made, and a checksum of the tensors, which is compared whenever
they are read. Tensors are the model's ("model.NAME") and, in a checkpoint to resume from, the optimizer's
("optimizer.INDEX.NAME") and, with `train.ema`, the averaged model's ("average.NAME").
"""

from __future__ import annotations

import errno
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.segmenter import Segmenter, SegmenterConfig, build_segmenter
from pipeline.config.renamed import current_keys
from pipeline.data.labels.label_space import LabelSpace
from pipeline.runtime.errors import DataError
from pipeline.runtime.files import atomic_path

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """Hold a model at a step of its training.

    Attributes:
        arguments: rebuild the segmenter.
        label_space: the classes, in the order of the train ids.
        settings: every setting that can change a result, by dotted key.
        step: optimization steps taken.
        progress: JSON-able state of the training (curves, best score, run id).
        model: the segmenter's state dict; empty when only the header was read.
        optimizer: the optimizer's buffers by "INDEX.NAME".
        average: state dict of the moving average of the weights.
        identity: what identifies the training (`pipeline.checkpoint.identity`); None in older checkpoints.
    """

    arguments: SegmenterConfig
    label_space: LabelSpace
    settings: dict[str, object]
    step: int
    progress: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)
    identity: Mapping[str, object] | None = None

    def save(self, path: Path) -> None:
        """Write the file so that `path` holds either the old or the new checkpoint, never a part of one.

        Raises:
            OSError: it cannot be written, for example because the disk is full.
        """
        tensors = {f"model.{name}": tensor for name, tensor in self.model.items()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in self.optimizer.items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.items()}
        tensors = _apart({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()})
        header = {
            "format": FORMAT,
            "arguments": self.arguments.to_dict(),
            "label_space": self.label_space.to_dict(),
            "settings": self.settings,
            "identity": None if self.identity is None else dict(self.identity),
            "step": self.step,
            "progress": self.progress,
            "checksum": _checksum(tensors),
        }
        with atomic_path(path) as temporary:
            try:
                save_file(tensors, temporary, metadata={"kiloseg": json.dumps(header)})
            except SafetensorError as error:
                raise _as_os_error(error, path) from error

    def segmenter(self) -> Segmenter:
        """Build the model with these weights, on the CPU, in evaluation mode."""
        segmenter = build_segmenter(self.arguments)
        segmenter.load_state_dict(self.model)
        return segmenter.eval()


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy what two names share, as in a network with tied weights: safetensors keeps no such thing."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return found


def _as_os_error(error: SafetensorError, path: Path) -> OSError:
    """Find the error number, which safetensors has in words only: "... (os error 28)"."""
    code = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(code[1]) if code else errno.EIO, str(error), str(path))


def load_checkpoint(path: Path, *, header_only: bool = False) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: the file.
        header_only: leave the tensors on disk.

    Raises:
        DataError: missing, damaged, not a kiloseg checkpoint, or of another format.
    """
    if not path.is_file():
        raise DataError("no checkpoint", where=path, hint="train first: dvc repro train@VARIANT")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = [] if header_only else list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise DataError(
            "unreadable checkpoint",
            where=path,
            found=error,
            hint="name a checkpoint; where this was one, remove it and train again from the last good one",
        ) from error
    header = _header(path, metadata)
    if not header_only and header.get("checksum") != _checksum(tensors):
        raise DataError(
            "damaged checkpoint",
            where=path,
            found="tensors of another checksum than the header's",
            hint="remove the file and train again; training goes on from the checkpoint before",
        )
    try:
        return _checkpoint(header, tensors)
    except (
        ValueError,
        KeyError,
        TypeError,
    ) as error:  # a network that this version cannot build, or no header
        found = f"no {error} in its header" if isinstance(error, KeyError) else error
        raise _other_version(path, found) from error


def _header(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        header = json.loads(metadata.get("kiloseg", "{}"))
    except ValueError:
        header = None
    found = header.get("format") if isinstance(header, dict) else None
    if found != FORMAT:
        raise _other_version(path, found)
    return dict(header)


def _checkpoint(header: Mapping[str, Any], tensors: dict[str, Tensor]) -> Checkpoint:
    return Checkpoint(
        arguments=SegmenterConfig.from_dict(header["arguments"]),
        label_space=LabelSpace.from_dict(header["label_space"]),
        settings=current_keys(header["settings"]),
        step=header["step"],
        progress=header["progress"],
        model=_under("model.", tensors),
        optimizer=_under("optimizer.", tensors),
        average=_under("average.", tensors),
        identity=None if header.get("identity") is None else current_keys(header["identity"]),
    )


def _other_version(path: Path, found: object) -> DataError:
    newer = not isinstance(found, int) or found > FORMAT
    return DataError(
        "not a checkpoint of this version of kiloseg",
        where=path,
        found=f"format {found}" if found is None or isinstance(found, int) else found,
        allowed=f"format {FORMAT}",
        hint="train again with this version"
        + (", or update kiloseg if the file comes from a newer one" if newer else ""),
    )


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    """Return the CRC-32 of the bytes of all tensors, in the order of their names."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, value)
    return value


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's per-parameter state, flattened to "INDEX.NAME"."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, values in state.items()
        for name, value in values.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore what `optimizer_tensors` returned; learning rates and groups stay as they were built."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        if value.shape == parameter.shape and value.dim() > 0:  # in its parameter's memory format
            value = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
