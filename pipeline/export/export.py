"""Export a checkpoint: written beside its place, verified there, and moved in only if it agrees."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline.checkpoint.format import Checkpoint
from pipeline.export import formats
from pipeline.export.about import describe
from pipeline.export.formats import Shape
from pipeline.export.graph import SegmenterGraph
from pipeline.export.libraries import require
from pipeline.export.verify import Agreement, Run, verify
from pipeline.inference.predictor import Predictor
from pipeline.runtime.errors import UsageError
from pipeline.runtime.files import disk_full, naming_full_disk

_FULL = 2**20  # bytes free, at most, on a full disk

Format = Literal["onnx", "torch", "openvino"]


class _Way(NamedTuple):
    """How a format is written and run."""

    libraries: tuple[str, ...]
    files: tuple[str, ...]  # the one that names the model last
    write: Callable[[SegmenterGraph, Shape, Path, Mapping[str, Any]], None]
    open: Callable[[Path], Run]


_WAYS: dict[Format, _Way] = {
    "onnx": _Way(
        ("onnx", "onnxscript", "onnxruntime"), ("model.onnx",), formats.write_onnx, formats.open_onnx
    ),
    "torch": _Way((), ("model.pt2",), formats.write_torch, formats.open_torch),
    "openvino": _Way(
        ("openvino",), ("model.bin", "model.xml"), formats.write_openvino, formats.open_openvino
    ),
}


@dataclass(frozen=True)
class Exported:
    """What was written, and how far it agrees with the product."""

    files: tuple[Path, ...]
    agreement: Agreement


def export_checkpoint(
    checkpoint: Checkpoint,
    out: Path,
    *,
    format: Format,
    confidence: bool = False,
    size: tuple[int, int] | None = None,
    about: Mapping[str, object] | None = None,
) -> Exported:
    """Write a checkpoint as a graph for another program, and compare it with the product's prediction.

    Args:
        checkpoint: what to export.
        out: folder of the files, whose names begin with "model".
        format: of the files.
        confidence: the graph gives confidences too.
        size: the only height and width that the graph takes; None for any. OpenVINO needs one.
        about: where the checkpoint came from, for the description in the files.

    Raises:
        UsageError: a size that the network does not take, or none where one is needed.
        KilosegError: a library is missing, the network cannot be traced, the disk is full, or the exported
            model gives other classes; nothing is left in `out` then.
    """
    way = _WAYS[format]
    require(way.libraries, format=format)
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    predictor.about = {"checkpoint": "", "step": checkpoint.step, **(about or {})}
    shape = Shape(size=_checked(size, predictor, format), one_by_one=format == "openvino")
    graph = SegmenterGraph(
        predictor.segmenter,
        temperature=predictor.search.temperature,
        similarity=predictor.search.similarity,
        confidence=confidence,
        unrolled=shape.one_by_one,
    )
    description = describe(
        predictor, checkpoint.arguments.to_dict(), checkpoint.settings, confidence=confidence, shape=shape
    )
    with _trial_folder(out) as folder:
        way.write(graph, shape, folder, description)
        agreement = verify(way.open(folder), predictor, shape.trials())
        for name in way.files:
            (folder / name).replace(out / name)
    return Exported(tuple(out / name for name in way.files), agreement)


@contextlib.contextmanager
def _trial_folder(out: Path) -> Iterator[Path]:
    """Yield a folder inside `out`, which is removed; `out` too if it was made for this and holds nothing."""
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError("not a folder", where=out, allowed="a folder", hint="name another --out") from error
    try:
        with (
            naming_full_disk(out, "nothing was written"),
            tempfile.TemporaryDirectory(prefix=".export-", dir=out, ignore_cleanup_errors=True) as trial,
        ):
            try:
                yield Path(trial)
            except RuntimeError as error:  # OpenVINO says a full disk so
                if shutil.disk_usage(trial).free > _FULL:
                    raise
                raise disk_full(out, "nothing was written", folder=Path(trial)) from error
    finally:
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()  # only if empty


def _checked(size: tuple[int, int] | None, predictor: Predictor, format: Format) -> tuple[int, int] | None:
    """Return the size to export for, or say which is needed."""
    only = predictor.segmenter.backbone.image_size
    if size is None and (format == "openvino" or only is not None):
        reason = "OpenVINO has no scan" if only is None else "this backbone takes one size only"
        raise UsageError(
            "the size of the pictures must be fixed",
            where="--size",
            found="none",
            allowed="HEIGHTxWIDTH" if only is None else f"up to {only[0]}x{only[1]}",
            hint=f"{reason}: --size {'512x512' if only is None else f'{only[0]}x{only[1]}'}",
        )
    if size is not None and only is not None and (size[0] > only[0] or size[1] > only[1]):
        raise UsageError(
            "the backbone does not take this size",
            where="--size",
            found=f"{size[0]}x{size[1]}",
            allowed=f"up to {only[0]}x{only[1]}",
        )
    return size
