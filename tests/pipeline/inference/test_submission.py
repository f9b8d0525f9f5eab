"""What the server of Cityscapes takes: `pipeline predict --format cityscapes`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.labels.published import published_classes
from pipeline.inference.inputs import Input
from pipeline.inference.predictor import Predictor
from pipeline.inference.submission import CityscapesSubmission
from pipeline.runtime.errors import UsageError
from tests.command import pipeline_here
from tests.pipeline.data.layouts import miniature
from tests.pipeline.inference.checkpoints import checkpoint, label_space

NAMES = ("berlin_000000_000019", "berlin_000001_000019", "mainz_000000_000019")


@pytest.fixture
def test_split(tmp_path: Path) -> Path:
    """leftImg8bit/test as it unpacks."""
    root, random = tmp_path / "leftImg8bit" / "test", np.random.default_rng(0)
    for name in NAMES:
        path = root / name.partition("_")[0] / f"{name}_leftImg8bit.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = random.integers(0, 256, (4, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((64, 32)).save(path)
    return root


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    path = tmp_path / "cityscapes.safetensors"
    checkpoint(space=published_classes("cityscapes")).save(path)
    return path


def test_the_command_writes_label_ids_in_one_flat_folder(
    test_split: Path, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("predict", str(test_split), "--out", str(out), "--checkpoint", str(trained), "--device", "cpu")
    assert pipeline_here(*command, "--format", "cityscapes", "--min-confidence", "0.3") == 0
    assert sorted(path.name for path in out.iterdir()) == [f"{name}_labelIds.png" for name in NAMES]
    predictor = Predictor.load(trained, device="cpu", min_confidence=0.3)
    seen: set[int] = set()
    for name in NAMES:
        picture = test_split / name.partition("_")[0] / f"{name}_leftImg8bit.png"
        expected = np.array([0, *miniature.CITY_IDS])[predictor(picture).class_map]
        with Image.open(out / f"{name}_labelIds.png") as sent:
            assert (sent.mode, sent.size) == ("L", (64, 32))
            np.testing.assert_array_equal(np.asarray(sent), expected)
        seen |= set(expected.ravel().tolist())
    assert 0 in seen
    assert len(seen) > 3


def test_what_is_there_is_left_out_unless_the_options_were_others(
    test_split: Path, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("predict", str(test_split), "--out", str(out), "--checkpoint", str(trained), "--device", "cpu")
    command += ("--format", "cityscapes", "--skip-existing")
    assert pipeline_here(*command) == 0
    files = sorted(out.iterdir())
    for path in files:
        os.utime(path, ns=(0, 0))
    files[1].write_bytes(b"half a file")
    assert pipeline_here(*command) == 0
    assert [path.stat().st_mtime_ns == 0 for path in files] == [True, False, True]
    assert pipeline_here(*command, "--classes", "road,car") == 0
    assert all(path.stat().st_mtime_ns for path in files)
    assert all(set(np.unique(np.asarray(Image.open(path)))) <= {7, 26} for path in files)


def test_what_the_server_could_not_match_is_refused_before_anything_is_predicted(tmp_path: Path) -> None:
    submission = CityscapesSubmission.of(published_classes("cityscapes"))
    good = Input(Path("a/berlin_000000_000019_leftImg8bit.png"), "berlin")
    submission.check([good, Input(Path("berlin_000000_000020.png"), "other")])
    with pytest.raises(UsageError, match="not named as Cityscapes"):
        submission.check([good, Input(Path("holiday.jpg"), "holiday")])
    with pytest.raises(UsageError, match="two pictures of one frame"):
        submission.check([good, Input(Path("b/berlin_000000_000019.png"), "b")])


def test_a_checkpoint_of_another_dataset_is_refused() -> None:
    with pytest.raises(UsageError, match=r"(?s)not of Cityscapes.*aerosol_can.*lvis"):
        CityscapesSubmission.of(label_space())
