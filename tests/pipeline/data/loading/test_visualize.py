"""Masks as pictures: exported, laid over the image, in one palette."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli.data import app
from pipeline.data.bootstrap.build import bootstrap
from pipeline.data.loading.palette import class_color, colorize, picture_colors
from pipeline.data.loading.visualize import overlay
from pipeline.runtime.errors import DataError, UsageError
from tests.pipeline.data.small_dataset import (
    CUP,
    SmallDataset,
    box,
    typical,
)


@pytest.fixture
def data(tmp_path: Path) -> SmallDataset:
    return typical(tmp_path / "root")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "made" / "out"


def test_the_commands_make_masks_to_look_at(data: SmallDataset, out: Path, tmp_path: Path) -> None:
    root, runner = data.write(), CliRunner()
    made = runner.invoke(app, ["bootstrap", str(root), str(out), "--keep", "cup", "--keep", "4"])
    assert made.exit_code == 0, made.output
    assert "2 classes" in made.output
    assert runner.invoke(app, ["masks", str(out), str(tmp_path / "png")]).exit_code == 0
    with Image.open(tmp_path / "png" / "000000000092.png") as opened:
        assert opened.mode.startswith("I;16")
        assert np.bincount(np.asarray(opened).ravel()).tolist() == [48, 16]
    assert sorted(path.name for path in (tmp_path / "png").iterdir()) == [
        f"{image_id:012d}.png" for image_id in (1, 2, 3, 4, 92)
    ]
    picture = tmp_path / "o.png"
    shown = runner.invoke(app, ["show", str(out), "92", "--root", str(root), "--save", str(picture)])
    assert shown.exit_code == 0, shown.output
    with Image.open(picture) as opened:
        assert opened.size == (640, 640)  # enlarged, for the names
    same = [*("show", str(out), "92", "--root", str(root)), *("--save", str(picture), "--scale", "1")]
    assert runner.invoke(app, same).exit_code == 0
    with Image.open(picture) as opened:
        assert opened.size == (8, 8)
    listed = runner.invoke(app, ["show", str(out)])
    assert listed.output.split()[:3] == ["train", "1", "train2017/000000000001.jpg"]
    assert sorted(int(line.split()[1]) for line in listed.output.splitlines()) == [1, 2, 3, 4, 92]


def test_showing_an_unknown_image_is_refused(data: SmallDataset, out: Path) -> None:
    bootstrap(data.write(), out)
    result = CliRunner().invoke(app, ["show", str(out), "12345", "--root", str(data.root)])
    assert isinstance(result.exception, UsageError)


def test_a_class_has_one_color_in_the_overlay_and_in_the_pictures_of_the_report(
    data: SmallDataset, out: Path
) -> None:
    data.add(95, "val", lvis=[(2, box(0, 0, 160, 60))], size=(120, 160))
    root = data.write()
    Image.new("RGB", (160, 120)).save(root / "train2017" / "000000000095.jpg", "PNG")  # exactly black
    bootstrap(root, out)
    shown = np.asarray(overlay(out, root, 95))
    colored = colorize(np.array([[CUP - 1, -1]]), picture_colors([CUP]))
    assert colored[0].tolist() == [list(class_color(CUP)), [255, 255, 255]]
    assert shown.shape == (480, 640, 3)  # four times as large
    for corner in ((0, 0), (0, 639), (239, 0)):  # far from the name
        assert shown[corner].tolist() == [value // 2 for value in class_color(CUP)]
    assert shown[479, 0].tolist() == [0, 0, 0]


def test_an_unknown_id_and_a_missing_folder_say_what_there_is(data: SmallDataset, out: Path) -> None:
    bootstrap(data.write(), out)
    with pytest.raises(UsageError, match=r"such as \d+, \d+(.|\n)*pipeline data show"):
        overlay(out, data.root, 9)
    with pytest.raises(DataError, match=r"no such dataset folder(.|\n)*--root"):
        overlay(out, data.root / "elsewhere", 1)
    with pytest.raises(DataError, match=r"missing image(.|\n)*masks were made from"):
        overlay(out, out, 1)
    refused = CliRunner().invoke(app, ["show", str(out), "1", "--root", str(data.root), "--save", "a.xyz"])
    assert isinstance(refused.exception, UsageError)
