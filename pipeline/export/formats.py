"""Write the graph in each format, and run what was written."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import Dim, ExportedProgram

from pipeline.export.graph import SegmenterGraph
from pipeline.export.padding import constant_same_padding
from pipeline.export.verify import Run
from pipeline.runtime.errors import KilosegError

OUTPUTS = ("class_id", "confidence")
_FREE = ("batch", "height", "width")
_EXAMPLE = (70, 101)  # no side of it is a multiple of anything, so no free side is taken for another


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What an exported graph takes.

    Attributes:
        size: the only height and width; None for any.
        one_by_one: a single picture at a time, instead of any batch.
    """

    size: tuple[int, int] | None = None
    one_by_one: bool = False

    def trials(self) -> list[tuple[int, int, int]]:
        """Return batch, height and width of the pictures that an export is verified with."""
        if self.size is None:
            return [(1, 97, 131), (2, *_EXAMPLE), (1, 160, 64)]
        return [(1, *self.size), (1 if self.one_by_one else 2, *self.size)]


def exported(graph: SegmenterGraph, shape: Shape) -> ExportedProgram:
    """Trace the graph.

    Raises:
        KilosegError: torch.export refuses the network.
    """
    size = shape.size or _EXAMPLE
    images = torch.zeros(1 if shape.one_by_one else 2, 3, *size, dtype=torch.uint8)
    free: dict[int, Any] = {} if shape.one_by_one else {0: Dim.DYNAMIC}
    if shape.size is None:
        free |= {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    try:
        with torch.no_grad(), quiet(), constant_same_padding():
            return torch.export.export(graph, (images,), dynamic_shapes=(free,), strict=False)
    except Exception as error:  # of many kinds, all with pages of text
        raise KilosegError(
            "torch.export does not take this network",
            where=graph.segmenter.backbone.name,
            found=f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}",
            allowed="networks of free height and width" if shape.size is None else "traceable networks",
            hint="fix the size of the pictures: --size 512x512"
            if shape.size is None
            else "use another backbone; resnet50 works",
        ) from error


def write_onnx(graph: SegmenterGraph, shape: Shape, folder: Path, about: Mapping[str, Any]) -> None:
    """Write model.onnx, its description among the metadata of the file."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    names = OUTPUTS[: 1 + graph.confidence]
    with torch.no_grad(), quiet():
        program = torch.onnx.export(
            exported(graph, shape),
            dynamo=True,
            input_names=["image"],
            output_names=list(names),
            verbose=False,
        )
    assert program is not None
    RemoveUnusedNodesPass()(program.model)
    model = program.model_proto
    _name_free_sides(model, graph.confidence)
    for key, value in (("kiloseg", json.dumps(about)), ("names", json.dumps(about["names"]))):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    model.producer_name = "kiloseg"
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def open_onnx(folder: Path) -> Run:
    """Open model.onnx with onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    return lambda images: tuple(session.run(None, {"image": images}))


def write_torch(graph: SegmenterGraph, shape: Shape, folder: Path, about: Mapping[str, Any]) -> None:
    """Write model.pt2, its description beside the graph as the extra file kiloseg.json."""
    program = exported(graph, shape)
    buffer = io.BytesIO()  # torch's own writer aborts the process where it cannot close a file on a full disk
    with quiet():
        torch.export.save(program, buffer, extra_files={"kiloseg.json": json.dumps(about)})
    (folder / "model.pt2").write_bytes(buffer.getbuffer())


def open_torch(folder: Path) -> Run:
    """Open model.pt2."""
    with quiet():
        module = torch.export.load(folder / "model.pt2").module()

    @torch.no_grad()
    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(one.numpy() for one in module(torch.from_numpy(images)))

    return run


def write_openvino(graph: SegmenterGraph, shape: Shape, folder: Path, about: Mapping[str, Any]) -> None:
    """Write model.xml and model.bin, in single precision, its description among the runtime information."""
    import openvino

    program = exported(graph, shape)
    with quiet():
        model = openvino.convert_model(program)
        model.reshape([1, 3, *(shape.size or (-1, -1))])
    model.inputs[0].get_tensor().set_names({"image"})
    for output, name in zip(model.outputs, OUTPUTS, strict=False):
        output.get_tensor().set_names({name})
    model.set_rt_info(json.dumps(about), ["kiloseg"])
    model.set_rt_info("f32", ["runtime_options", "INFERENCE_PRECISION_HINT"])
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)


def open_openvino(folder: Path) -> Run:
    """Open model.xml on the CPU in single precision: the default may be bfloat16, which flips near ties."""
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", options)

    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
        found = compiled(images)
        return tuple(found[output] for output in compiled.outputs)

    return run


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the exporters say about their own workings off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _name_free_sides(model: Any, confidence: bool) -> None:
    """Give the free sides names that people read, instead of the exporter's symbols."""
    image = model.graph.input[0].type.tensor_type.shape.dim
    symbols = [image[axis].dim_param for axis in (0, 2, 3)]
    new = {symbol: name for symbol, name in zip(symbols, _FREE, strict=True) if symbol}
    for value in (*model.graph.input, *model.graph.output):
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param in new:
                side.dim_param = new[side.dim_param]
    del model.graph.value_info[:]  # shapes of what lies between, in terms of those symbols
