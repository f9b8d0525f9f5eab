"""The four datasets of the paper: real samples in the official form against counts made independently."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.bootstrap.build import bootstrap
from pipeline.data.bootstrap.options import BootstrapOptions
from pipeline.data.layouts.layout import LayoutOptions
from pipeline.data.loading.dataset import SegmentationDataset
from tests.paths import SHARED

SAMPLES = SHARED / "data" / "paper_datasets"
pytestmark = pytest.mark.skipif(not SAMPLES.is_dir(), reason="no ../shared/data/paper_datasets")
FOLDERS = {"cityscapes": "cityscapes", "voc": "voc2012", "ade20k": "ade20k", "cocostuff10k": "cocostuff10k"}
IGNORED = "255"


def counted(out: Path, root: Path) -> dict[str, dict[str, int]]:
    """Pixels by final class index and image, in the form of expected.json."""
    found = {}
    for split in ("train", "holdout", "val"):
        dataset = SegmentationDataset(out, root, split)
        for index in range(len(dataset)):
            target = dataset[index].target.numpy()
            values, numbers = np.unique(np.where(target < 0, 255, target), return_counts=True)
            name = Path(dataset.row(index).file).stem.removesuffix("_leftImg8bit")
            found[name] = {str(value): int(number) for value, number in zip(values, numbers, strict=True)}
    return found


@pytest.mark.parametrize(
    ("layout", "key", "options", "num_classes"),
    [
        ("cityscapes", "cityscapes", LayoutOptions(), 19),
        ("voc", "voc2012", LayoutOptions(), 21),
        ("voc", "voc2012", LayoutOptions(voc_augmented=True), 21),
        ("ade20k", "ade20k", LayoutOptions(), 150),
        ("cocostuff10k", "cocostuff10k_171", LayoutOptions(), 171),
        ("cocostuff10k", "cocostuff10k_182", LayoutOptions(cocostuff_classes=182), 182),
    ],
)
def test_every_pixel_of_the_samples_is_counted_as_elsewhere(
    tmp_path: Path, layout: str, key: str, options: LayoutOptions, num_classes: int
) -> None:
    root = SAMPLES / FOLDERS[layout]
    expected = json.loads((SAMPLES / "expected.json").read_text())[key]
    result = bootstrap(root, tmp_path / "out", BootstrapOptions(layout=layout, of_layout=options))
    assert result.label_space.num_classes == num_classes
    assert not result.left_out
    assert counted(tmp_path / "out", root) == expected
