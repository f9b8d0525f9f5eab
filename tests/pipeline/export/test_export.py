"""Exported models give the class ids of `Predictor`, run by the libraries that they are for.

Those are imported by the tests that use them: collecting all tests would take seconds longer in each worker.
"""

from __future__ import annotations

import errno
import json
import resource
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from pipeline.checkpoint.format import Checkpoint
from pipeline.export import export as module
from pipeline.export import formats
from pipeline.export.export import export_checkpoint
from pipeline.export.formats import Shape
from pipeline.export.graph import SegmenterGraph
from pipeline.export.hub import export_hub
from pipeline.inference.predictor import Predictor
from pipeline.runtime.errors import KilosegError, UsageError
from tests.command import pipeline_here
from tests.pipeline.inference.checkpoints import NUM_CLASSES, checkpoint, saved
from tests.pipeline.inference.conftest import photo

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    source = str(saved(folder))
    assert (
        pipeline_here("export", source, "--format", "onnx", "--confidence", "--out", str(folder / "out")) == 0
    )
    assert [path.name for path in (folder / "out").iterdir()] == ["model.onnx"]
    return folder / "out" / "model.onnx"


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.from_checkpoint(checkpoint(), device="cpu")


def batch(*pictures: np.ndarray) -> np.ndarray:
    return np.stack(pictures).transpose(0, 3, 1, 2)


@pytest.mark.parametrize(("number", "height", "width"), [(1, 1, 1), (3, 33, 50), (1, 7, 200), (2, 128, 96)])
def test_onnxruntime_gives_the_products_classes_for_any_batch_and_size(
    onnx_file: Path, predictor: Predictor, number: int, height: int, width: int
) -> None:
    import onnxruntime

    pictures = [photo(height, width, seed) for seed in range(number)]
    class_ids, confidence = onnxruntime.InferenceSession(onnx_file).run(None, {"image": batch(*pictures)})
    assert (class_ids.dtype, confidence.dtype) == (np.int32, np.float32)
    assert class_ids.shape == confidence.shape == (number, height, width)
    for index, picture in enumerate(pictures):
        expected = predictor(picture)
        assert (class_ids[index] == expected.class_map).mean() >= 0.9999
        np.testing.assert_allclose(confidence[index], expected.confidence, atol=2e-3)


def test_the_file_says_what_goes_in_and_what_comes_out(onnx_file: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_file)
    (image,) = session.get_inputs()
    assert (image.name, image.type) == ("image", "tensor(uint8)")
    assert image.shape == ["batch", 3, "height", "width"]
    assert [one.name for one in session.get_outputs()] == ["class_id", "confidence"]
    found = session.get_modelmeta().custom_metadata_map
    space = checkpoint().label_space
    assert json.loads(found["names"]) == list(space.names)
    about = json.loads(found["kiloseg"])
    assert about["label_space"] == space.to_dict()
    assert about["arguments"]["backbone"] == "test_resnet"
    assert len(about["sha256"]) == 64


def test_scores_of_all_classes_exist_for_a_piece_of_fixed_size_only(onnx_file: Path) -> None:
    """What is multiplied with the (D, C) table lies inside the scan, whose pieces have a fixed size."""
    import onnx

    model = onnx.load(onnx_file)
    (table,) = [one.name for one in model.graph.initializer if list(one.dims) == [8, NUM_CLASSES]]
    assert not [node.name for node in model.graph.node if table in node.input]
    (scan,) = [node for node in model.graph.node if node.op_type == "Scan"]
    (body,) = [attribute.g for attribute in scan.attribute if attribute.name == "body"]
    assert [node.op_type for node in body.node if table in node.input] == ["MatMul"]
    for output in body.output[1:]:
        (side,) = output.type.tensor_type.shape.dim
        assert side.dim_value * NUM_CLASSES <= 2**20


def test_a_pt2_file_gives_the_products_classes_of_a_softmax_head(tmp_path: Path) -> None:
    trained = checkpoint("softmax", decoder="linear", input_scale=0.75)
    trained.save(tmp_path / "best.safetensors")
    out = tmp_path / "out"
    arguments = ("--format", "torch", "--out", str(out))
    assert pipeline_here("export", str(tmp_path / "best.safetensors"), *arguments) == 0
    (file,), extra = out.iterdir(), {"kiloseg.json": ""}
    graph = torch.export.load(file, extra_files=extra).module()
    assert json.loads(extra["kiloseg.json"])["arguments"]["head"] == "softmax"
    picture = photo(50, 77)
    (class_ids,) = graph(torch.from_numpy(batch(picture, picture)))
    expected = Predictor.from_checkpoint(trained, device="cpu")(picture).class_map
    assert (class_ids.numpy() == expected).mean() >= 0.9999


def test_the_graph_of_features_without_a_projection_gives_the_products_classes() -> None:
    trained = checkpoint("unprojected")
    graph = SegmenterGraph(
        trained.segmenter(), temperature=0.1, similarity="cosine", confidence=True, unrolled=True
    )
    picture = photo(50, 77)
    class_ids, confidence = graph(torch.from_numpy(batch(picture)))
    expected = Predictor.from_checkpoint(trained, device="cpu")(picture)
    assert (class_ids[0].numpy() == expected.class_map).mean() >= 0.9999
    np.testing.assert_allclose(confidence[0], expected.confidence, atol=2e-3)


def test_openvino_gives_the_products_classes_for_one_size(tmp_path: Path, predictor: Predictor) -> None:
    import openvino

    arguments = ("--format", "openvino", "--size", "64x80", "--out", str(tmp_path / "out"))
    assert pipeline_here("export", str(saved(tmp_path)), *arguments) == 0
    core = openvino.Core()
    (file,) = (tmp_path / "out").glob("*.xml")
    model = core.read_model(file)
    assert list(model.inputs[0].shape) == [1, 3, 64, 80]
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    picture = photo(64, 80)
    class_ids = compiled({"image": batch(picture)})["class_id"]
    assert (class_ids[0] == predictor(picture).class_map).mean() >= 0.9999
    with pytest.raises(UsageError, match="--size 512x512"):
        export_checkpoint(checkpoint(), tmp_path, format="openvino")


def faulty(monkeypatch: pytest.MonkeyPatch, change: object) -> None:
    """Export, instead of the graph, what the product gives with a change."""
    predictor = Predictor.from_checkpoint(checkpoint(), device="cpu")

    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
        found = [predictor(image.transpose(1, 2, 0)).class_map for image in images]
        return (change(np.stack(found).astype(np.int32)),)  # type: ignore[operator]

    write = lambda graph, shape, folder, about: (folder / "model.pt2").write_bytes(b"")  # noqa: E731
    way = module._WAYS["torch"]._replace(write=write, open=lambda folder: run)
    monkeypatch.setitem(module._WAYS, "torch", way)


def one_wrong(class_ids: np.ndarray) -> np.ndarray:
    class_ids[0, 0, 0] = class_ids[0, 0, 0] % NUM_CLASSES + 1
    return class_ids


@pytest.mark.parametrize("change", [one_wrong, lambda class_ids: class_ids - 1])
def test_a_model_that_differs_is_refused_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: object
) -> None:
    faulty(monkeypatch, change)
    with pytest.raises(KilosegError, match="was not kept"):
        export_checkpoint(checkpoint(), tmp_path / "new" / "out", format="torch")
    assert list(tmp_path.iterdir()) == []


def test_a_tie_may_go_either_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = checkpoint()
    trained.model["head.class_table"][7] = trained.model["head.class_table"][0]

    def other_of_the_two(class_ids: np.ndarray) -> np.ndarray:
        places = np.argwhere(class_ids == 1)[:1]
        class_ids[tuple(places.T)] = 8
        return class_ids

    predictor = Predictor.from_checkpoint(trained, device="cpu")
    faulty(monkeypatch, other_of_the_two)
    monkeypatch.setattr(Checkpoint, "segmenter", lambda self: predictor.segmenter)
    done = export_checkpoint(trained, tmp_path, format="torch")
    assert done.agreement.holds
    assert done.agreement.different <= 3


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("write failed")]
)
def test_a_disk_that_fills_is_one_error_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Libraries written in C++ say it as a RuntimeError: then the disk itself is asked."""

    def write(graph: object, shape: object, folder: Path, about: object) -> None:
        (folder / "model.pt2").write_bytes(b"half")
        raise error

    out = tmp_path / "out"
    monkeypatch.setitem(module._WAYS, "torch", module._WAYS["torch"]._replace(write=write))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=4096))
    with pytest.raises(KilosegError, match=r"the disk is full(.|\n)*nothing was written") as raised:
        export_checkpoint(checkpoint(), out / "new", format="torch")
    assert str(out / "new") in str(raised.value)
    assert list(tmp_path.iterdir()) == []
    out.mkdir()
    (out / "model.pt2").write_bytes(b"an earlier export")
    with pytest.raises(KilosegError, match="the disk is full"):
        export_checkpoint(checkpoint(), out, format="torch")
    assert [(path.name, path.read_bytes()) for path in out.iterdir()] == [("model.pt2", b"an earlier export")]


def test_a_hubs_folder_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.export.hub.verify", Mock(side_effect=OSError(errno.ENOSPC, "full")))
    with pytest.raises(KilosegError, match="the disk is full"):
        export_hub(checkpoint(), tmp_path / "shared", name="a")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_grow_does_not_end_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk: torch's own writer of files would abort in its destructor."""
    layer = torch.nn.Linear(300, 300)
    program = torch.export.export(layer, (torch.zeros(1, 300),), strict=False)
    monkeypatch.setattr(formats, "exported", lambda graph, shape: program)
    limits, action = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError) as raised:
            formats.write_torch(Mock(), Shape(), tmp_path, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, action)
    assert raised.value.errno == errno.EFBIG


def test_a_missing_library_is_told_with_the_extra_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.export.libraries.importlib.util.find_spec", lambda name: None)
    code = pipeline_here("export", str(saved(tmp_path)), "--format", "onnx", "--out", str(tmp_path / "out"))
    assert code == 1
    assert "kiloseg-pipeline[export]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", ["512", "0x5", "axb"])
def test_a_wrong_size_is_refused(tmp_path: Path, size: str) -> None:
    arguments = ("--format", "openvino", "--out", str(tmp_path / "out"), "--size", size)
    assert pipeline_here("export", "missing", *arguments) == 2


def test_a_missing_variant_names_those_that_are_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints" / "exact").mkdir(parents=True)
    saved(tmp_path / "checkpoints" / "exact")
    arguments = (
        "--format",
        "onnx",
        "--out",
        str(tmp_path / "out"),
        "--params",
        str(tmp_path / "params.yaml"),
    )
    assert pipeline_here("export", "exakt", *arguments) == 3
    assert "exact" in capsys.readouterr().err
