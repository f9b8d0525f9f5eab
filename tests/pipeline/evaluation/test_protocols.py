"""Our counts against the official arithmetic of each dataset, on real samples and generated sets."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.bootstrap.build import bootstrap
from pipeline.data.bootstrap.options import BootstrapOptions
from pipeline.data.loading.batch import IGNORE_INDEX, Sample
from pipeline.data.loading.dataset import SegmentationDataset
from pipeline.data.loading.transforms import Warp
from pipeline.evaluation.metrics import ClassCounts, summarize
from pipeline.evaluation.protocols import official_metrics
from pipeline.inference.submission import CityscapesSubmission
from tests.paths import SHARED
from tests.pipeline.data.layouts import miniature

SAMPLES = SHARED / "data" / "paper_datasets"
EVALUATED = miniature.CITY_IDS


def predictions(target: torch.Tensor, num_classes: int, seed: int) -> torch.Tensor:
    """The truth, but a third of the pixels guessed, some of them with a class that is not evaluated (-1)."""
    generator = torch.Generator().manual_seed(seed)
    guess = torch.randint(-1, num_classes, target.shape, generator=generator)
    wrong = torch.rand(target.shape, generator=generator) < 0.3
    return torch.where(wrong | (target == IGNORE_INDEX), guess, target)


def datasets(layout: str, root: Path, out: Path) -> SegmentationDataset:
    bootstrap(root, out, BootstrapOptions(layout=layout))
    return SegmentationDataset(out, root, "val")


def counted(dataset: SegmentationDataset) -> tuple[ClassCounts, list[np.ndarray]]:
    counts, all_predictions = ClassCounts(dataset.label_space.num_classes), []
    for index in range(len(dataset)):
        target = dataset[index].target
        prediction = predictions(target, counts.num_classes, index)
        counts.update(prediction, target)
        all_predictions.append(prediction.numpy())
    return counts, all_predictions


def cityscapes_iou(confusion: np.ndarray) -> list[float]:
    """As evalPixelLevelSemanticLabeling.getIouScoreForLabel; rows are truth, both are label ids."""
    scores = []
    for label in EVALUATED:
        tp = confusion[label, label]
        fn = confusion[label].sum() - tp
        fp = sum(confusion[other, label] for other in EVALUATED if other != label)
        scores.append(float(tp / (tp + fp + fn)) if tp + fp + fn else float("nan"))
    return scores


def roots(tmp_path: Path, layout: str) -> list[Path]:
    miniature.MAKERS[layout](tmp_path / "made")
    sample = SAMPLES / layout.replace("voc", "voc2012")
    return [tmp_path / "made", *([sample] if sample.is_dir() else [])]


def test_iou_is_that_of_the_cityscapes_tool_with_predictions_of_ignored_ids(tmp_path: Path) -> None:
    for place, root in enumerate(roots(tmp_path, "cityscapes")):
        dataset = datasets("cityscapes", root, tmp_path / f"out{place}")
        counts, of_images = counted(dataset)
        confusion = np.zeros((34, 34), np.int64)
        table = np.array([*EVALUATED, 4])  # -1 takes the last: static, an id that is not evaluated
        for index, prediction in enumerate(of_images):
            image = dataset.row(index).file
            labels = root / image.replace("leftImg8bit/", "gtFine/", 1).replace(
                "_leftImg8bit", "_gtFine_labelIds"
            )
            np.add.at(confusion, (np.asarray(Image.open(labels)), table[prediction]), 1)
        np.testing.assert_allclose(counts.iou().numpy(), cityscapes_iou(confusion), rtol=1e-12)
        assert summarize(counts).miou == pytest.approx(np.nanmean(cityscapes_iou(confusion)))


def test_the_official_cityscapes_tool_itself_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["tool"])
    tool = pytest.importorskip(
        "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling",
        reason="cityscapesscripts is not installed",
    )
    for place, root in enumerate(roots(tmp_path, "cityscapes")):
        dataset = datasets("cityscapes", root, tmp_path / f"out{place}")
        counts = ClassCounts(19)
        tool.args.evalInstLevelScore = False
        confusion = tool.generateMatrix(tool.args)
        for index in range(len(dataset)):
            target = dataset[index].target
            prediction = predictions(target, 19, index).clamp(min=0)
            counts.update(prediction, target)
            image = root / dataset.row(index).file
            submission = CityscapesSubmission.of(dataset.label_space)
            written = submission.write(prediction.numpy() + 1, image, tmp_path / f"sent{place}", {})
            labels = Path(str(image).replace("leftImg8bit/", "gtFine/", 1))
            labels = labels.with_name(labels.name.replace("_leftImg8bit", "_gtFine_labelIds"))
            found = tool.getPrediction(
                SimpleNamespace(predictionPath=str(tmp_path / f"sent{place}"), predictionWalk=None),
                str(labels),
            )
            assert found == str(written)
            tool.evaluatePair(found, str(labels), confusion, {}, {}, tool.args)
        official = [tool.getIouScoreForLabel(label, confusion, tool.args) for label in EVALUATED]
        np.testing.assert_allclose(counts.iou().numpy(), official, rtol=1e-12)


def test_voc_drops_the_void_pixels(tmp_path: Path) -> None:
    """As the development kit: IoU from a 21 x 21 matrix of the pixels that are not 255."""
    for place, root in enumerate(roots(tmp_path, "voc")):
        dataset = datasets("voc", root, tmp_path / f"out{place}")
        counts, confusion = ClassCounts(21), np.zeros((21, 21))
        for index in range(len(dataset)):
            target = dataset[index].target
            prediction = predictions(target, 21, index).clamp(min=0)
            counts.update(prediction, target)
            name = Path(dataset.row(index).file).stem
            truth = np.asarray(Image.open(root / "VOCdevkit/VOC2012/SegmentationClass" / f"{name}.png"))
            inside = truth != 255
            np.add.at(confusion, (truth[inside], prediction.numpy()[inside]), 1)
        with np.errstate(invalid="ignore"):
            hits = np.diag(confusion)
            expected = hits / (confusion.sum(0) + confusion.sum(1) - hits)
        np.testing.assert_allclose(counts.iou().numpy(), expected, rtol=1e-12)


def test_ade20k_is_ranked_by_the_mean_of_accuracy_and_iou(tmp_path: Path) -> None:
    """As the toolkit's intersectionAndUnion and pixelAccuracy, summed over the images."""
    for place, root in enumerate(roots(tmp_path, "ade20k")):
        dataset = datasets("ade20k", root, tmp_path / f"out{place}")
        counts = ClassCounts(150)
        intersection, union, correct, labeled = np.zeros(150), np.zeros(150), 0, 0
        for index in range(len(dataset)):
            target = dataset[index].target
            prediction = predictions(target, 150, index).clamp(min=0)
            counts.update(prediction, target)
            name = Path(dataset.row(index).file).stem
            path = root / "ADEChallengeData2016/annotations/validation" / f"{name}.png"
            truth = np.asarray(Image.open(path)).astype(int)
            predicted = (prediction.numpy() + 1) * (truth > 0)
            both = predicted * (predicted == truth)
            one, of_prediction, of_truth = (
                np.bincount(x.ravel(), minlength=151)[1:] for x in (both, predicted, truth)
            )
            intersection += one
            union += of_prediction + of_truth - one
            correct += int(((predicted == truth) & (truth > 0)).sum())
            labeled += int((truth > 0).sum())
        expected = ((intersection / (union + np.finfo(float).eps)).mean() + correct / labeled) / 2
        score = official_metrics("ade20k", counts)
        assert score == {"ade20k_score": pytest.approx(expected, rel=1e-12)}
    assert official_metrics("voc", counts) == {}
    assert official_metrics("ade20k", ClassCounts(3)) == {}


def test_warping_resizes_image_and_truth_alike() -> None:
    image = torch.zeros(3, 4, 8, dtype=torch.uint8)
    image[:, :, 4:] = 200
    target = torch.full((4, 8), 5)
    target[:, 4:] = 7
    warped = Warp(16)(Sample(image, target, 9))
    assert warped.image.shape == (3, 16, 16)
    assert warped.target.shape == (16, 16)
    assert warped.image_id == 9
    assert (warped.target[:, :8] == 5).all()
    assert (warped.target[:, 8:] == 7).all()
    assert warped.image[0, :, 2].tolist() == [0] * 16
    assert warped.image[0, :, -2].tolist() == [200] * 16
