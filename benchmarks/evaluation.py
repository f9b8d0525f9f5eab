"""Evaluation for few and for many classes, beside the reference's metric code and torchmetrics.

    python -m benchmarks.evaluation --threads 2 --save

`whole` is the product's evaluation of one picture: network, search, and all that is counted. `network` is the
part of it that knows no classes. `counting` is all metrics together without network and search, and its rows
say what each takes. `confusion matrix` counts mIoU alone as the paper's code does, in a C x C matrix of
NumPy, written anew. `torchmetrics` counts IoU alone (`MulticlassJaccardIndex`), and confidence and top-5
accuracy from the logits of all classes and pixels, which are made for it beforehand and not timed.

Candidates take turns, and the fastest turn counts. Memory is the most that torch's allocator held during a
call, and for the matrix NumPy's own. Counts and metrics of all are compared with each other first.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from benchmarks.record import describe_machine, save
from models.heads import find_classes
from models.segmenter import Segmenter, SegmenterConfig, build_segmenter
from pipeline.evaluation.boundary import BoundaryCounts
from pipeline.evaluation.calibration import Calibration, ClassScores
from pipeline.evaluation.confused_pairs import ConfusedPairs
from pipeline.evaluation.evaluate import Details
from pipeline.evaluation.metrics import ClassCounts
from pipeline.evaluation.per_image import PerImage
from pipeline.memory.predict import allocated_cpu_bytes
from pipeline.runtime.device import choose_device, set_threads
from pipeline.runtime.signals import run_command

MIB, GIB = 2**20, 2**30
CLASSES = (19, 1_284, 100_000)
PIXELS = 4_096  # of calibration, as in params.yaml
LARGEST = 3 * GIB  # of a candidate that grows with classes


@dataclass
class Row:
    """One candidate at one number of classes; without a call it does not fit."""

    name: str
    classes: int
    call: Callable[[], object] | None
    seconds: float = float("inf")
    bytes: int | None = None


@dataclass
class Scene:
    """One picture with its network, at one number of classes."""

    segmenter: Segmenter
    scores: ClassScores
    image: Tensor
    output: Tensor
    prediction: Tensor
    target: Tensor

    @property
    def classes(self) -> int:
        """C."""
        return len(self.scores.weight)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture."""
        return self.image.shape[2], self.image.shape[3]


@torch.no_grad()
def make_scene(num_classes: int, backbone: str, side: int, head: str, device: torch.device) -> Scene:
    """Truth of square patches, a tenth unlabeled, and half of it what the network says."""
    torch.manual_seed(0)
    config = SegmenterConfig(num_classes=num_classes, backbone=backbone, head=head)  # type: ignore[arg-type]
    segmenter = build_segmenter(config).to(device).eval()
    image = torch.rand(1, 3, side, side * 5 // 4, device=device)
    output = segmenter(image)
    prediction = find_classes(segmenter.head, output, (image.shape[2], image.shape[3]))
    patches = torch.randint(0, min(num_classes, 40), (1, 1, 8, 10), device=device).float()
    target = F.interpolate(patches, size=image.shape[2:], mode="nearest")[:, 0].long()
    drawn = torch.rand(target.shape, device=device)
    target = torch.where(drawn < 0.5, prediction, target).masked_fill(drawn > 0.9, -1)
    return Scene(
        segmenter, ClassScores.of(segmenter.head, "distance", 0.05), image, output, prediction, target
    )


@torch.no_grad()
def evaluate_whole(scene: Scene) -> None:
    output = scene.segmenter(scene.image)
    prediction = find_classes(scene.segmenter.head, output, scene.size)
    ClassCounts(scene.classes, output.device).update(prediction, scene.target)
    count_all(scene, prediction)


@torch.no_grad()
def network_alone(scene: Scene) -> Tensor:
    return scene.segmenter(scene.image)


@torch.no_grad()
def search_alone(scene: Scene) -> Tensor:
    return find_classes(scene.segmenter.head, scene.output, scene.size)


def count_all(scene: Scene, prediction: Tensor) -> Details:
    details = Details(scene.classes, 0.02, prediction.device, Calibration(scene.scores, PIXELS))
    details.update(prediction, scene.target, (1,), scene.output)
    return details


def counting(scene: Scene) -> None:
    ClassCounts(scene.classes, scene.target.device).update(scene.prediction, scene.target)
    count_all(scene, scene.prediction)


def calibrate(scene: Scene, pixels: int | None = PIXELS) -> Calibration:
    calibration = Calibration(scene.scores, pixels)
    calibration.update(scene.output, scene.prediction, scene.target)
    return calibration


def confusion_matrix(num_classes: int, prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Count as the paper's code does: a histogram of target * C + prediction, image by image."""
    labeled = (target >= 0) & (target < num_classes)
    places = num_classes * target[labeled].astype(int) + prediction[labeled]
    return np.bincount(places, minlength=num_classes**2).reshape(num_classes, num_classes)


def matrix_iou(scene: Scene) -> np.ndarray:
    total = np.zeros((scene.classes, scene.classes))
    total += confusion_matrix(scene.classes, scene.prediction.cpu().numpy(), scene.target.cpu().numpy())
    hits = np.diag(total)
    with np.errstate(invalid="ignore"):
        return hits / (total.sum(0) + total.sum(1) - hits)


def torchmetrics_iou(scene: Scene) -> Tensor:
    from torchmetrics.classification import MulticlassJaccardIndex

    metric = MulticlassJaccardIndex(scene.classes, average=None, ignore_index=-1, validate_args=False)
    return metric.to(scene.target.device)(scene.prediction, scene.target)


@torch.no_grad()
def all_logits(scene: Scene) -> Tensor:
    """Return (N, C, H, W)."""
    maps = F.interpolate(scene.output, size=scene.size, mode="bilinear", align_corners=False)
    rows = maps[0].flatten(1).T.contiguous()
    return scene.scores.logits(rows, slice(None)).T.view(1, scene.classes, *scene.size)


def torchmetrics_confidence(scene: Scene, logits: Tensor) -> tuple[float, float]:
    """Return expected calibration error and top-5 accuracy of all pixels."""
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

    options = {"num_classes": scene.classes, "ignore_index": -1, "validate_args": False}
    error = multiclass_calibration_error(logits, scene.target, n_bins=15, **options)
    top5 = multiclass_accuracy(logits, scene.target, average="micro", top_k=5, **options)
    return float(error), float(top5)


def check(scene: Scene, logits: Tensor | None) -> str:
    """Compare all candidates' answers, and say what the sample of pixels is worth."""
    iou = ClassCounts(scene.classes, scene.target.device)
    iou.update(scene.prediction, scene.target)
    if scene.classes**2 * 16 < LARGEST:
        np.testing.assert_allclose(iou.iou().cpu().numpy(), matrix_iou(scene), atol=1e-12)
        met = ~iou.iou().isnan()
        torch.testing.assert_close(torchmetrics_iou(scene)[met], iou.iou()[met].float(), atol=1e-6, rtol=0)
    if logits is None:
        return f"{scene.classes:,} classes: nothing to compare confidences with fits"
    every, sample = calibrate(scene, None).metrics(), calibrate(scene).metrics()
    error, top5 = torchmetrics_confidence(scene, logits)
    assert abs(every["calibration_error"] - error) < 1e-4, (every, error)
    assert abs(every["top5_accuracy"] - top5) < 1e-4, (every, top5)
    return (
        f"{scene.classes:,} classes: calibration error {error:.4f} (torchmetrics), of all pixels "
        f"{every['calibration_error']:.4f}, of {PIXELS:,} {sample['calibration_error']:.4f}; top-5 accuracy "
        f"{top5:.4f}, {every['top5_accuracy']:.4f}, {sample['top5_accuracy']:.4f}"
    )


def candidates(scene: Scene) -> tuple[list[Row], str]:
    """List the rows of one number of classes, whose answers are compared first."""
    num_classes, device = scene.classes, scene.target.device
    pixels = scene.target.numel()
    logits = all_logits(scene) if 8 * num_classes * pixels < LARGEST else None
    said = check(scene, logits)
    both = (scene.prediction, scene.target)
    matrix_fits = 16 * num_classes**2 < LARGEST
    calls: dict[str, Callable[[], object] | None] = {
        "whole": partial(evaluate_whole, scene),
        "  network": partial(network_alone, scene),
        "  search": partial(search_alone, scene),
        "  counting": partial(counting, scene),
        "    IoU": lambda: ClassCounts(num_classes, device).update(*both),
        "    boundary IoU": lambda: BoundaryCounts(num_classes, 0.02, device).update(*both),
        "    confused pairs": lambda: ConfusedPairs(num_classes, device).update(*both),
        "    images alone": lambda: PerImage(num_classes).update(*both, (1,)),
        "    calibration, top-5": partial(calibrate, scene),
        "    the same of all pixels": partial(calibrate, scene, None) if num_classes <= 10_000 else None,
        "confusion matrix, IoU": partial(matrix_iou, scene) if matrix_fits else None,
        "torchmetrics, IoU": partial(torchmetrics_iou, scene) if matrix_fits else None,
        "torchmetrics, calibration, top-5": None
        if logits is None
        else partial(torchmetrics_confidence, scene, logits),
    }
    return [Row(name, num_classes, call) for name, call in calls.items()], said


def measure(rows: list[Row], repeats: int, device: torch.device) -> None:
    """Take turns; a row that takes longer than some seconds gets fewer of them."""
    for turn in range(repeats):
        for row in rows:
            if row.call is None or (turn and row.seconds > 5):
                continue
            began = time.perf_counter()
            row.call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            row.seconds = min(row.seconds, time.perf_counter() - began)
    for row in rows:
        if row.call is not None and device.type == "cpu" and row.name != "confusion matrix, IoU":
            row.bytes = allocated_cpu_bytes(row.call)


def table(rows: list[Row]) -> str:
    """Return a line a candidate, and its time relative to that at the fewest classes."""
    classes = sorted({row.classes for row in rows})
    found = {(row.name, row.classes): row for row in rows}
    lines = ["".join([f"{'ms, MiB':34}", *(f"{f'{one:,} classes':>28}" for one in classes)])]
    for name in dict.fromkeys(row.name for row in rows):
        cells, least = [], found[name, classes[0]].seconds
        for one in classes:
            row = found[name, one]
            if row.call is None:
                cells.append(f"{'does not fit':>28}")
                continue
            memory = "" if row.bytes is None else f"{row.bytes / MIB:,.0f}"
            cells.append(f"{row.seconds * 1e3:>12,.1f}{row.seconds / least:>7.2f}x{memory:>8}")
        lines.append("".join([f"{name:34}", *cells]))
    return "\n".join(lines)


def main(
    side: Annotated[int, typer.Option(min=32, help="Height of the picture; its width is 5/4 of it.")] = 512,
    backbone: Annotated[str, typer.Option(help="Of timm.")] = "resnet50",
    head: Annotated[str, typer.Option(help="embedding or softmax.")] = "embedding",
    classes: Annotated[list[int] | None, typer.Option(help="Default: 19, 1,284 and 100,000.")] = None,
    repeats: Annotated[int, typer.Option(min=1)] = 4,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    keep: Annotated[bool, typer.Option("--save", help="Write the table to benchmarks/results/.")] = False,
) -> None:
    """Measure evaluation at several numbers of classes."""
    where = choose_device(device)
    set_threads(threads)
    rows, said = [], []
    for number in classes or CLASSES:
        scene = make_scene(number, backbone, side, head, where)
        some, text = candidates(scene)
        measure(some, repeats, where)
        rows += some
        said.append(text)
        print(text, flush=True)
        for row in some:
            row.call = row.call and (lambda: None)  # lets go of the scene
        del scene
        gc.collect()
    print(table(rows))
    if keep:
        setting = f"{backbone}, {head} head, one picture of {side} x {side * 5 // 4}, fastest of {repeats}"
        path = save(
            "evaluation", where.type, [describe_machine(where.type), setting, table(rows), "\n".join(said)]
        )
        print(f"saved {path}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    sys.exit(run_command(app))
