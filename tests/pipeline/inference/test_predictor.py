"""A checkpoint and a picture give what evaluation gives, from every kind of source."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.segmenter import Segmenter
from pipeline.data.labels.label_space import ClassEntry, LabelSpace
from pipeline.data.loading.batch import Batch
from pipeline.evaluation.evaluate import evaluate
from pipeline.inference.locate import best_variant
from pipeline.inference.predictor import Predictor, find_classes
from pipeline.inference.windows import Views
from pipeline.runtime.errors import DataError, MemoryLimitError, UsageError
from tests.pipeline.inference.checkpoints import NUM_CLASSES, checkpoint, label_space, saved
from tests.pipeline.inference.conftest import photo


@pytest.mark.parametrize("input_scale", [1.0, 0.5])
@pytest.mark.parametrize("head", ["embedding", "unprojected", "softmax"])
def test_evaluation_predicts_the_same_ids(head: str, input_scale: float) -> None:
    trained = checkpoint(head, input_scale=input_scale)
    predictor = Predictor.from_checkpoint(trained, device="cpu")
    seen: list[torch.Tensor] = []
    for number, size in enumerate(((61, 83), (96, 128), (1, 1))):
        image = torch.from_numpy(photo(*size, number)).permute(2, 0, 1)[None]
        evaluate(
            trained.segmenter(),
            [Batch(image, torch.zeros(1, *size, dtype=torch.int64), ("1",))],  # type: ignore[arg-type]
            frequencies=["f"] * NUM_CLASSES,
            device=torch.device("cpu"),
            title="",
            total=1,
            on_prediction=lambda _, prediction: seen.append(prediction[0]),
        )
        result = predictor(image[0])
        # evaluation may multiply before it interpolates: near ties are decided by rounding
        assert (result.class_map == seen[-1].numpy() + 1).mean() >= 0.9999
    assert len(np.unique(seen[1])) > 10


def test_every_kind_of_image_gives_the_same_prediction(predictor: Predictor, tmp_path: Path) -> None:
    pixels = photo(40, 52)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = predictor(pixels)
    for image in (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        Image.fromarray(pixels),
        torch.from_numpy(pixels).permute(2, 0, 1),
    ):
        result = predictor(image)
        np.testing.assert_array_equal(result.class_map, expected.class_map)
        np.testing.assert_array_equal(result.image, pixels)
        assert result.classes == expected.classes


def test_a_list_of_unequal_sizes_and_a_batch_give_lists(predictor: Predictor) -> None:
    images = [photo(40, 52), photo(33, 20, 1), photo(1, 1, 2)]
    together = predictor(list(images))
    assert [one.class_map.shape for one in together] == [image.shape[:2] for image in images]
    for image, one in zip(images, together, strict=True):
        np.testing.assert_array_equal(one.class_map, predictor(image).class_map)
    batch = torch.from_numpy(np.stack([images[0]] * 2)).permute(0, 3, 1, 2)
    both = predictor(batch)
    assert len(both) == 2  # type: ignore[arg-type]
    assert predictor([]) == []


def test_classes_are_counted_with_share_and_confidence(predictor: Predictor) -> None:
    result = predictor(photo(40, 52))
    assert sum(found.pixels for found in result.classes) == 40 * 52
    assert result.unlabeled_share == 0
    assert [found.pixels for found in result.classes] == sorted(
        (found.pixels for found in result.classes), reverse=True
    )
    for found in result.classes:
        here = result.class_map == found.class_id
        assert found.name == label_space().classes[found.class_id - 1].name
        assert found.pixels == here.sum()
        assert found.share == pytest.approx(here.mean())
        assert found.confidence == pytest.approx(result.confidence[here].astype(np.float64).mean())


def test_classes_can_be_restricted_and_doubtful_pixels_left_out() -> None:
    trained = checkpoint()
    names = label_space().names
    few = Predictor.from_checkpoint(trained, device="cpu", classes=[names[299], 5, names[8].upper()])
    assert set(np.unique(few(photo(40, 52)).class_map)) <= {5, 9, 300}
    strict = Predictor.from_checkpoint(trained, device="cpu", min_confidence=1.0)(photo(40, 52))
    assert (strict.class_map == 0).mean() > 0.9
    assert strict.unlabeled_share == pytest.approx((strict.class_map == 0).mean())
    with pytest.raises(UsageError, match="min_confidence"):
        Predictor.from_checkpoint(trained, device="cpu", min_confidence=1.5)


def test_unknown_classes_are_answered_with_the_nearest_names() -> None:
    classes = label_space()
    assert find_classes(classes, ["Baby Buggy" if "baby_buggy" in classes.names else classes.names[0], "2"])
    with pytest.raises(UsageError, match=r"'aplle'(.|\n)*did you mean(.|\n)*apple"):
        find_classes(classes, ["aplle"])
    for wrong in ("0", "301", -1, "qqqqqqqq"):
        with pytest.raises(UsageError, match="no such class"):
            find_classes(classes, [wrong])
    with pytest.raises(UsageError, match="no class to search"):
        find_classes(classes, [])


def test_numbers_that_are_names_are_told_from_ids() -> None:
    names = ["2", "cat", "3", "2024"]
    space = LabelSpace(tuple(ClassEntry(i, name, "x", "f", {"x": (i,)}) for i, name in enumerate(names, 1)))
    assert find_classes(space, ["3"]) == [3]  # both name and id
    assert find_classes(space, ["1", "2024"]) == [1, 4]
    assert find_classes(space, ['"2"']) == [1]
    assert find_classes(space, [2]) == [2]  # in Python a number is an id
    with pytest.raises(UsageError, match="class 1 is named so; class 2 is named 'cat'"):
        find_classes(space, ["2"])


def test_confidence_has_the_temperature_of_the_loss() -> None:
    soft = checkpoint()
    soft.settings["loss.temperature"] = 1.0
    one, other = (
        Predictor.from_checkpoint(trained, device="cpu")(photo(40, 52)) for trained in (checkpoint(), soft)
    )
    np.testing.assert_array_equal(one.class_map, other.class_map)
    assert one.confidence.mean() > 2 * other.confidence.mean()


def test_sources_are_a_file_a_run_folder_or_a_folder_with_one_file(tmp_path: Path) -> None:
    path = saved(tmp_path)
    expected = Predictor.load(path, device="cpu")(photo(20, 20)).class_map
    (tmp_path / "last.safetensors").write_bytes(b"another")
    np.testing.assert_array_equal(Predictor.load(tmp_path, device="cpu")(photo(20, 20)).class_map, expected)
    (tmp_path / "only").mkdir()
    path.rename(tmp_path / "only" / "model.safetensors")
    loaded = Predictor.load(str(tmp_path / "only"), device="cpu")
    np.testing.assert_array_equal(loaded(photo(20, 20)).class_map, expected)
    assert loaded.record()["step"] == 7
    assert json.loads(json.dumps(loaded.record())) == loaded.record()
    with pytest.raises(DataError, match=r"several checkpoints(.|\n)*last(.|\n)*name the file"):
        Predictor.load(tmp_path)
    (tmp_path / "empty").mkdir()
    for missing in (tmp_path / "empty", tmp_path / "none.safetensors"):
        with pytest.raises(DataError, match=r"no checkpoint(.|\n)*dvc repro"):
            Predictor.load(missing)


@pytest.mark.slow
def test_a_registered_model_is_a_source(
    tmp_path: Path, checkpoint_file: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    store = tmp_path / "mlflow.db"
    store.write_bytes(empty_store.read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    monkeypatch.chdir(tmp_path)
    code = tmp_path / "served.py"
    code.write_text(
        "import mlflow\n"
        "class Served(mlflow.pyfunc.PythonModel):\n"
        "    def predict(self, model_input: list[str]) -> list[str]:\n"
        "        return model_input\n"
        "mlflow.models.set_model(Served())\n"
    )
    with mlflow.start_run():
        mlflow.pyfunc.log_model(
            name="model",
            python_model=str(code),
            artifacts={"checkpoint": str(checkpoint_file)},
            registered_model_name="photos",
            pip_requirements=[],
        )
    mlflow.MlflowClient().set_registered_model_alias("photos", "champion", "1")
    loaded = Predictor.load("models:/photos@champion", device="cpu")
    expected = Predictor.load(checkpoint_file, device="cpu")
    np.testing.assert_array_equal(loaded(photo(20, 20)).class_map, expected(photo(20, 20)).class_map)
    with pytest.raises(DataError, match=r"no such model in MLflow(.|\n)*models:/photos@nobody"):
        Predictor.load("models:/photos@nobody", device="cpu")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///none.db")
    with pytest.raises(DataError, match="no MLflow store"):
        Predictor.load("models:/photos@champion", device="cpu")
    assert not (tmp_path / "none.db").exists()


def test_the_best_variant_has_the_largest_miou_and_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no trained variant"):
        best_variant(tmp_path)
    scores = {"a": 0.1, "b": 0.3, "unfinished": 0.9, "c": 0.2, "nothing": float("nan")}
    for name, score in scores.items():
        (tmp_path / "results" / name).mkdir(parents=True)
        (tmp_path / "results" / name / "metrics.json").write_text(json.dumps({"miou": score}))
        if name != "unfinished":
            (tmp_path / "checkpoints" / name).mkdir(parents=True)
            (tmp_path / "checkpoints" / name / "best.safetensors").touch()
    (tmp_path / "results" / "broken").mkdir()
    (tmp_path / "results" / "broken" / "metrics.json").write_text("{")
    assert best_variant(tmp_path) == tmp_path / "checkpoints" / "b" / "best.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fits", "hint"), [(130, "--window 128 fits"), (40, "--window 32 fits"), (8, "not even")]
)
def test_a_picture_that_does_not_fit_is_told_the_window_that_does(fits: int, hint: str) -> None:
    segmenter = checkpoint().segmenter()
    predictor = Predictor(segmenter, label_space())

    def allocate(_: Segmenter, inputs: tuple[torch.Tensor]) -> None:
        if max(inputs[0].shape[-2:]) > fits:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ...")

    segmenter.backbone.register_forward_pre_hook(allocate)  # type: ignore[arg-type]
    with pytest.raises(MemoryLimitError, match=r"520 x 300(.|\n)*can't allocate") as raised:
        predictor(photo(300, 520))
    assert hint in str(raised.value)
    if fits >= 32:
        window = int(hint.split()[1])
        smaller = Predictor(segmenter, label_space(), views=Views(window=window))
        assert smaller(photo(300, 520)).class_map.shape == (300, 520)


def test_other_errors_of_the_network_are_not_called_memory() -> None:
    segmenter = checkpoint().segmenter()

    def fail(*_: object) -> None:
        raise RuntimeError("something else")

    segmenter.backbone.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="something else"):
        Predictor(segmenter, label_space())(photo(8, 8))
