"""One image as a variant sees it: the numbers printed, and the picture."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.labels.label_space import LabelSpace
from pipeline.data.loading.dataset import SegmentationDataset
from tests.command import pipeline_here
from tests.pipeline.inference.checkpoints import checkpoint


@pytest.mark.process
def test_an_image_is_told_class_by_class_and_drawn(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bootstrapped = project / "data" / "bootstrapped"
    space = LabelSpace.load(bootstrapped / "label_space.json")
    trained = checkpoint(space=space)
    trained.save(project / "checkpoints" / "exact" / "best.safetensors")
    data = SegmentationDataset(bootstrapped, project / "data" / "tiny", "val")
    image_id, sample = data.image_ids()[1], data[1]

    assert pipeline_here("show", "exact", str(image_id), "--save", "seen.png") == 0
    said = capfd.readouterr().out

    predicted = trained.segmenter().eval().predict(sample.image[None].float() / 255)[0].numpy()
    truth = sample.target.numpy()
    labeled = truth >= 0
    right = (predicted[labeled] == truth[labeled]).mean()
    assert f"image {image_id} of val, exact: {right:.2%} of {labeled.sum():,} labeled pixels right" in said
    for train_id in np.unique(truth[labeled]):
        one, other = truth[labeled] == train_id, predicted[labeled] == train_id
        iou, name = (one & other).sum() / (one | other).sum(), re.escape(space.classes[train_id].name)
        assert re.search(rf"^{name} +{iou:.2%} +{one.sum():,} +{other.sum():,}$", said, re.MULTILINE)
    height, width = truth.shape
    scale = -(-360 // height)
    with Image.open("seen.png") as picture:
        assert picture.size == (4 * width * scale + 3 * 6, height * scale)

    assert pipeline_here("show", "exact", "1") == 2
    assert "no such image" in capfd.readouterr().err
    assert pipeline_here("show", "exact", str(image_id), "--save", "seen.what") == 2
    assert "no such kind of picture" in capfd.readouterr().err
    checkpoint().save(project / "checkpoints" / "exact" / "best.safetensors")
    assert pipeline_here("show", "exact", str(image_id)) == 3
    assert "other classes" in capfd.readouterr().err
