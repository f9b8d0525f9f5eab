"""`pipeline predict` as a user meets it: real files in, files out, exit codes."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.inference.predictor import Predictor
from pipeline.inference.windows import Views
from pipeline.runtime.errors import MemoryLimitError
from tests.command import pipeline_here
from tests.pipeline.inference.checkpoints import label_space, saved
from tests.pipeline.inference.conftest import photo
from tests.pipeline.inference.conftest import photos as photos  # the fixture


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one trained variant: not to be changed."""
    project = tmp_path_factory.mktemp("project")
    for folder in ("checkpoints", "results"):
        (project / folder / "exact").mkdir(parents=True)
    saved(project / "checkpoints" / "exact")
    (project / "results" / "exact" / "metrics.json").write_text('{"miou": 0.2}')
    return project


@pytest.fixture(autouse=True)
def in_the_project(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)


def class_map(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened)


def test_a_folder_is_predicted_with_the_best_variant(photos: Path, tmp_path: Path, trained: Path) -> None:
    out = tmp_path / "out"
    assert pipeline_here("predict", str(photos), "--out", str(out), "--device", "cpu") == 0
    predictor = Predictor.load(trained / "checkpoints" / "exact", device="cpu")
    for name, source in (("a", "a.jpg"), ("b", "b.png"), ("more/c", "more/c.webp")):
        expected = predictor(photos / source)
        np.testing.assert_array_equal(class_map(out / f"{name}.png"), expected.class_map)
        record = json.loads((out / f"{name}.json").read_text())
        assert record["image"] == str(photos / source)
        assert record["checkpoint"].endswith("checkpoints/exact/best.safetensors")
        assert len(record["sha256"]) == 64
        assert record["classes"] == expected.to_dict()["classes"]
        assert (out / f"{name}.overlay.jpg").is_file()
    assert len([path for path in out.rglob("*") if path.is_file()]) == 9


def test_options_reach_the_predictor(photos: Path, tmp_path: Path, trained: Path) -> None:
    names = label_space().names
    out = tmp_path / "out"
    arguments = ["--window", "48", "--overlap", "0.5", "--scales", "1,1.25", "--flip", "--batch-size", "3"]
    arguments += ["--classes", f"{names[4]}, {names[270]},12", "--min-confidence", "0.4", "--rle"]
    source = str(trained / "checkpoints" / "exact")
    assert pipeline_here("predict", str(photos), "--out", str(out), "--checkpoint", source, *arguments) == 0
    predictor = Predictor.load(
        source,
        classes=[5, 271, 12],
        min_confidence=0.4,
        views=Views(window=48, overlap=0.5, scales=(1.0, 1.25), flip=True, batch_size=3),
    )
    expected = predictor(photos / "a.jpg")
    found = class_map(out / "a.png")
    assert (found == expected.class_map).mean() > 0.999  # batched with others: rounding
    assert set(np.unique(found)) <= {0, 5, 12, 271}
    assert {row["category_id"] for row in json.loads((out / "a.rle.json").read_text())} <= {5, 12, 271}
    assert json.loads((out / "a.json").read_text())["options"]["classes"] == [5, 12, 271]


def test_a_list_on_standard_input(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{photos / 'a.jpg'}\n{photos / 'more'}\n"))
    assert pipeline_here("predict", "-", "--out", str(tmp_path / "out")) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.json")) == ["a.json", "c.json"]


def test_masks_are_upright_and_of_the_pictures_own_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo(40, 62)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    assert pipeline_here("predict", str(tmp_path), "--out", str(tmp_path / "out")) == 0
    assert class_map(tmp_path / "out" / "turned.png").shape == (62, 40)
    assert class_map(tmp_path / "out" / "one.png").shape == (1, 1)
    assert json.loads((tmp_path / "out" / "turned.json").read_text())["frame"].startswith("upright")


def test_bad_files_are_named_and_the_rest_goes_on(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (photos / "cut.jpg").write_bytes((photos / "a.jpg").read_bytes()[:900])
    (photos / "foreign.png").write_text("hello")
    missing = str(tmp_path / "none.jpg")
    arguments = ["predict", missing, str(photos), "--out", str(tmp_path / "out"), "--batch-size", "2"]
    assert pipeline_here(*arguments) == 3
    said = capfd.readouterr()
    for name in ("cut.jpg", "foreign.png", "none.jpg"):
        assert said.err.count(name) >= 2  # when met, and at the end
    assert "error: 3 of 6 pictures could not be read" in said.err
    assert "3 predicted" in said.out
    outputs = sorted(path.name for path in (tmp_path / "out").rglob("*.json"))
    assert outputs == ["a.json", "b.json", "c.json"]


def test_existing_outputs_are_skipped_if_they_are_whole_and_made_alike(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["predict", str(photos), "--out", str(out), "--skip-existing"]
    assert pipeline_here(*arguments) == 0
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*.json")}
    (out / "a.json").unlink()  # as if killed before the last file
    (out / "more" / "c.overlay.jpg").unlink()
    capfd.readouterr()
    assert pipeline_here(*arguments) == 0
    assert "2 predicted" in (said := capfd.readouterr().out)
    assert "1 were there" in said
    assert (out / "b.json").stat().st_mtime_ns == made[out / "b.json"]
    assert (out / "more" / "c.json").stat().st_mtime_ns != made[out / "more" / "c.json"]
    assert pipeline_here(*arguments, "--min-confidence", "0.5") == 0
    assert "3 predicted" in capfd.readouterr().out
    assert pipeline_here(*arguments, "--min-confidence", "0.5") == 0
    assert "0 predicted" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--checkpoint", "none.safetensors"], 3, "no checkpoint"),
        (["--classes", "zzzz"], 2, "no such class"),
        (["--scales", "1,x"], 2, "not a list of numbers"),
        (["--scales", "-1"], 2, "scales"),
        (["--window", "8"], 2, "window"),
        (["--overlap", "1"], 2, "overlap"),
        (["--min-confidence", "2"], 2, "min-confidence"),
        (["--device", "cuda:99"], 1, "CUDA"),
        (["--device", "tpu"], 2, "device"),
    ],
)
def test_mistakes_are_one_message_and_write_nothing(
    photos: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    assert pipeline_here("predict", str(photos), "--out", str(tmp_path / "out"), *arguments) == code
    message = capfd.readouterr().err
    assert said in message
    assert "Traceback" not in message
    assert not (tmp_path / "out").exists()


def test_no_trained_variant_says_what_to_do(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert pipeline_here("predict", str(photos), "--out", "out") == 3
    assert "dvc repro" in capfd.readouterr().err


def test_out_of_memory_is_exit_code_4_and_keeps_what_was_finished(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = Predictor._predict

    def fails_on_the_last(self: Predictor, images: list) -> list:
        if images and images[0].shape[0] == 63:
            raise MemoryLimitError("out of memory", hint="--window 32 fits")
        return predict(self, images)

    monkeypatch.setattr(Predictor, "_predict", fails_on_the_last)
    assert pipeline_here("predict", str(photos), "--out", str(tmp_path / "out")) == 4
    assert "--window 32 fits" in capfd.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.json")) == ["a.json", "b.json"]
    assert not list((tmp_path / "out").rglob("*.part"))


@pytest.mark.process
@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_whole_files(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    Image.fromarray(photo(300, 400)).save(folder / "0.png")
    for number in range(1, 200):
        (folder / f"{number}.png").symlink_to(folder / "0.png")
    command = [
        str(Path(sys.executable).parent / "pipeline"),
        "predict",
        str(folder),
        "--out",
        str(tmp_path / "out"),
    ]
    process = subprocess.Popen(
        command,
        cwd=trained,
        stderr=subprocess.PIPE,
        text=True,
        # ignored where the suite is a background job
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list((tmp_path / "out").glob("*.json")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    written = list((tmp_path / "out").glob("*.json"))
    assert 0 < len(written) < 200
    for path in written:
        assert class_map(path.with_suffix(".png")).shape == (300, 400)
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.process
def test_help_needs_no_torch(trained: Path) -> None:
    code = (
        "import sys; sys.argv = ['pipeline', 'predict', '--help']\n"
        "from pipeline.cli.main import app\n"
        "try: app()\nexcept SystemExit: pass\n"
        "assert not {'torch', 'mlflow', 'ray'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--min-confidence" in result.stdout
