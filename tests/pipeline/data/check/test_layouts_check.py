"""Checking of every layout: sound sets have no fault, and each damage is named with its file."""

from __future__ import annotations

import csv
import hashlib
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli.data import app
from pipeline.data.check.layouts import check_layout
from pipeline.data.download import archives, verify
from pipeline.data.layouts.layout import LayoutOptions
from pipeline.runtime.errors import DataError, UsageError
from tests.paths import SHARED
from tests.pipeline.data.layouts import miniature
from tests.pipeline.data.layouts.small_layouts import Coco, Masks
from tests.pipeline.data.layouts.test_official_forms import CASES, FAULTS

SAMPLES = SHARED / "data" / "paper_datasets"


@pytest.mark.parametrize("case", CASES)
def test_sound_sets_have_no_fault(tmp_path: Path, case: str) -> None:
    layout, make, options = CASES[case]
    truth = make(tmp_path)
    result = check_layout(tmp_path, layout, options=options)
    assert result.faults == []
    assert sum(counts["images"] for counts in result.splits.values()) == len(truth)
    labeled = sum(int((target >= 0).sum()) for target in truth.values())
    assert sum(counts["labeled"] for counts in result.splits.values()) == labeled
    assert {fault.kind for fault in result.found} <= {
        "not the whole published split",
        "one photograph in train and val",  # the miniature ADE20K numbers both splits from 1
    }


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="no ../shared/data/paper_datasets")
@pytest.mark.parametrize("folder", ["cityscapes", "voc2012", "ade20k", "cocostuff10k"])
def test_the_real_samples_have_no_fault(folder: str) -> None:
    options = LayoutOptions(voc_augmented=True)
    result = check_layout(SAMPLES / folder, folder.removesuffix("2012"), options=options)
    assert result.faults == []
    assert "not the whole published split" in {fault.kind for fault in result.found}


@pytest.mark.parametrize("case", FAULTS)
def test_each_fault_that_stops_bootstrapping_is_found(tmp_path: Path, case: str) -> None:
    name, spoil, words = FAULTS[case]
    layout, make, options = CASES[name]
    make(tmp_path)
    spoil(tmp_path)
    result = check_layout(tmp_path, layout, options=options)
    told = [" ".join([fault.kind, fault.detail, fault.remedy]) for fault in result.faults]
    assert any(words in text for text in told), told
    assert all(not Path(fault.file).is_absolute() for fault in result.faults)


@pytest.mark.process
def test_all_faults_are_found_at_once_and_by_workers_alike(tmp_path: Path) -> None:
    miniature.voc(tmp_path)
    base = tmp_path / "VOCdevkit" / "VOC2012"
    (base / "JPEGImages" / "2007_000001.jpg").unlink()
    (base / "SegmentationClass" / "2007_000002.png").write_bytes(b"")
    Image.new("RGB", miniature.SIZE[::-1]).save(base / "SegmentationClass" / "2007_000003.png")
    whole = (base / "JPEGImages" / "2007_000010.jpg").read_bytes()
    (base / "JPEGImages" / "2007_000010.jpg").write_bytes(whole[: len(whole) // 2])
    results = [check_layout(tmp_path, "voc", num_workers=number) for number in (0, 2)]
    found = [(fault.file.rpartition("/")[2], fault.kind) for fault in results[0].faults]
    assert found == [
        ("2007_000001.jpg", "missing image"),
        ("2007_000002.png", "unreadable mask"),
        ("2007_000003.png", "a mask in colors"),
        ("2007_000010.jpg", "truncated image"),
    ]
    assert results[0].table() == results[1].table()


def test_masks_and_coco_are_checked_too(tmp_path: Path) -> None:
    stored, coco = Masks(tmp_path / "masks"), Coco(tmp_path / "coco")
    coco.write()
    assert check_layout(stored.root, "masks").faults == []
    assert check_layout(coco.root, "coco").faults == []
    stored.path("val", 0).unlink()
    (next((coco.root / "val2017").rglob("*.png"))).unlink()
    assert [fault.kind for fault in check_layout(stored.root, "masks").faults] == ["missing mask"]
    assert [fault.kind for fault in check_layout(coco.root, "coco").faults] == ["missing image"]


def test_the_command_names_the_faults_and_exits_with_3(tmp_path: Path) -> None:
    root = tmp_path / "root"
    miniature.ade20k(root)
    arguments = ["check", str(root), "--layout", "ade20k", "--table", str(tmp_path / "check.csv")]
    sound = CliRunner().invoke(app, arguments)
    assert sound.exit_code == 0, sound.output
    assert "train: 4 images" in sound.output
    next(root.rglob("ADE_val_00000002.png")).unlink()
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 3
    with (tmp_path / "check.csv").open(newline="") as file:
        faults = [row for row in csv.DictReader(file) if row["weight"] == "fault"]
    assert [row["kind"] for row in faults] == ["an image without a mask"]
    assert "ADE_val_00000002.jpg" in faults[0]["file"]
    refused = CliRunner().invoke(app, [*arguments, "--quarantine"])
    assert isinstance(refused.exception, UsageError)


def brought(monkeypatch: pytest.MonkeyPatch, root: Path, **changes: object) -> Path:
    """A gtFine archive of the set under `root`, published as it is."""
    path = root / "gtFine_trainvaltest.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted((root / "gtFine").rglob("*.*")):
            archive.write(file, file.relative_to(root))
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    official = archives.Archive(
        "gtFine", "https://x/?packageID=1", ("gtFine/",), "gtFine", md5=digest, file_name=path.name
    )
    monkeypatch.setitem(verify.BROUGHT, "cityscapes", (official,))
    return path


def test_archives_that_were_brought_are_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    miniature.cityscapes(tmp_path)
    path = brought(monkeypatch, tmp_path)
    assert verify.archive_problems(tmp_path, "cityscapes") == []
    next((tmp_path / "gtFine" / "val").rglob("*_labelIds.png")).unlink()
    (problem,) = verify.archive_problems(tmp_path, "cityscapes")
    assert problem.what == "an archive that is not unpacked whole"
    assert "1 of" in str(problem.found)
    path.write_bytes(path.read_bytes()[:-7])
    (problem,) = verify.archive_problems(tmp_path, "cityscapes")
    assert problem.what == "an archive that is not the published one"
    result = CliRunner().invoke(
        app, ["check", str(tmp_path), "--layout", "cityscapes", "--table", str(tmp_path / "check.csv")]
    )
    assert "an archive that is not the published one" in result.output


def test_a_missing_root_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such dataset folder"):
        check_layout(tmp_path / "nowhere", "voc")
