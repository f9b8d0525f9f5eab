"""Overlay, JSON, class map and run-length masks say the same as the prediction."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask

from pipeline.data.loading.palette import class_color
from pipeline.inference.prediction import Prediction, found_classes
from pipeline.runtime.errors import KilosegError
from tests.pipeline.inference.checkpoints import label_space
from tests.pipeline.inference.conftest import photo


@pytest.fixture
def prediction() -> Prediction:
    """Two classes, one of them above 255, and a corner without any."""
    class_map = np.full((40, 60), 7, dtype=np.uint16)
    class_map[:, 30:] = 299
    class_map[:10, :10] = 0
    confidence = np.where(class_map == 7, 0.5, 0.25).astype(np.float16)
    classes = found_classes(class_map, confidence, label_space().classes)
    return Prediction(photo(40, 60), class_map, confidence, classes)


def test_classes_are_listed_by_size(prediction: Prediction) -> None:
    assert [(one.class_id, one.pixels, one.confidence) for one in prediction.classes] == [
        (299, 1200, 0.25),
        (7, 1100, 0.5),
    ]
    assert prediction.classes[0].share == 0.5
    assert prediction.unlabeled_share == pytest.approx(100 / 2400)
    assert prediction.to_dict()["classes"][0]["name"] == label_space().names[298]


def test_an_overlay_blends_the_classes_colors_and_leaves_the_rest(prediction: Prediction) -> None:
    plain = np.asarray(prediction.overlay(names=False)).astype(int)
    np.testing.assert_array_equal(plain[:10, :10], prediction.image[:10, :10])
    for columns, class_id in ((slice(12, 30), 7), (slice(30, 60), 299)):
        expected = (prediction.image[:, columns] + np.array(class_color(class_id), dtype=float)) / 2
        assert np.abs(plain[:, columns] - expected).max() <= 0.5
    solid = np.asarray(prediction.overlay(opacity=1, names=False))
    assert (solid[:, 30:] == class_color(299)).all()


def test_names_are_written_on_their_classes(prediction: Prediction) -> None:
    difference = np.asarray(prediction.overlay()) != np.asarray(prediction.overlay(names=False))
    changed = difference.any(axis=2)
    assert changed[:, :30].any()
    assert changed[:, 30:].any()
    nothing = Prediction(photo(5, 5), np.zeros((5, 5), np.uint16), np.zeros((5, 5), np.float16), ())
    np.testing.assert_array_equal(np.asarray(nothing.overlay()), nothing.image)


def test_saved_files_say_the_same(prediction: Prediction, tmp_path: Path) -> None:
    paths = prediction.save(tmp_path / "out", "more/000042", rle=True, about={"image": "x.jpg"})
    assert sorted(p.relative_to(tmp_path / "out").as_posix() for p in paths.values()) == [
        "more/000042.json",
        "more/000042.overlay.jpg",
        "more/000042.png",
        "more/000042.rle.json",
    ]
    with Image.open(paths["class_map"]) as opened:
        assert opened.mode.startswith("I;16")
        np.testing.assert_array_equal(np.asarray(opened), prediction.class_map)
    with Image.open(paths["overlay"]) as opened:
        assert opened.size == (60, 40)
    record = json.loads(paths["json"].read_text())
    assert record["image"] == "x.jpg"
    assert (record["width"], record["height"]) == (60, 40)
    assert [one["class_id"] for one in record["classes"]] == [299, 7]
    rows = json.loads(paths["rle"].read_text())
    assert [(row["image_id"], row["category_id"], row["score"]) for row in rows] == [
        (42, 299, 0.25),
        (42, 7, 0.5),
    ]
    for row in rows:
        decoded = mask.decode(row["segmentation"])
        np.testing.assert_array_equal(decoded == 1, prediction.class_map == row["category_id"])
    without = prediction.save(tmp_path / "other", "name")
    assert not (tmp_path / "other" / "name.rle.json").exists()
    assert set(without) == {"class_map", "overlay", "json"}


def test_a_disk_that_fills_is_named_and_leaves_nothing_half_written(
    prediction: Prediction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Image.Image.save

    def full(self: Image.Image, path: Path, *arguments: object, **options: object) -> None:
        if options.get("format") == "JPEG":
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        written(self, path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(KilosegError, match=r"the disk is full(.|\n)*--skip-existing"):
        prediction.save(tmp_path, "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]  # whole; the JSON would say: all are


def test_a_place_that_cannot_be_written_is_named(prediction: Prediction, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KilosegError, match=r"cannot write here(.|\n)*file"):
        prediction.save(tmp_path / "file", "a")
