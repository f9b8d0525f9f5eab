"""Evaluate a model on a split: full images, one prediction a pixel, counts per class."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.heads import find_classes
from models.segmenter import Segmenter
from pipeline.data.loading.batch import Batch
from pipeline.evaluation.boundary import BoundaryCounts
from pipeline.evaluation.calibration import Calibration
from pipeline.evaluation.confused_pairs import ConfusedPairs
from pipeline.evaluation.image_counts import ImageCounts
from pipeline.evaluation.metrics import ClassCounts, Metrics, summarize
from pipeline.evaluation.per_image import PerImage
from pipeline.runtime.progress import Progress


class Details:
    """Count what validations during training do without: outlines, confused pairs, confidence, every image.

    Args:
        num_classes: C.
        boundary_width: share of the image's diagonal; None for no boundary IoU.
        device: of the predictions.
        calibration: counts confidence and top-5 accuracy; None for neither.
    """

    def __init__(
        self,
        num_classes: int,
        boundary_width: float | None,
        device: torch.device,
        calibration: Calibration | None = None,
    ) -> None:
        self.boundary = (
            None if boundary_width is None else BoundaryCounts(num_classes, boundary_width, device)
        )
        self.pairs = ConfusedPairs(num_classes, device)
        self.per_image = PerImage(num_classes)
        self.calibration = calibration
        self.unlabeled = torch.zeros(num_classes, dtype=torch.int64, device=device)
        """(C,) predictions on unlabeled pixels, which count nowhere"""

    def update(
        self, prediction: Tensor, target: Tensor, image_ids: tuple[int, ...], output: Tensor | None = None
    ) -> None:
        """Count a batch of train ids, both (N, H, W), and what the network gave, (N, D, h, w)."""
        if self.boundary is not None:
            self.boundary.update(prediction, target)
        self.pairs.update(prediction, target)
        self.per_image.update(prediction, target, image_ids)
        self.unlabeled += torch.bincount(prediction[target < 0], minlength=len(self.unlabeled))
        if self.calibration is not None and output is not None:
            self.calibration.update(output, prediction, target)

    def boundary_iou(self) -> Tensor | None:
        """Return (C,) the classes' boundary IoU; None if it is not counted."""
        return None if self.boundary is None else self.boundary.counts.iou()

    def metrics(self, counts: ImageCounts) -> dict[str, float]:
        """Return boundary IoU over the classes in truth or prediction, and all else that is counted here.

        Args:
            counts: of `per_image`.
        """
        found = {}
        boundary = self.boundary_iou()
        if boundary is not None and (known := boundary[~boundary.isnan()]).numel():
            found["boundary_iou"] = float(known.mean())
        found |= counts.region_metrics()
        found |= {} if self.calibration is None else self.calibration.metrics()
        labeled = int(counts.actual.sum())
        found["labeled_share"] = labeled / (labeled + int(self.unlabeled.sum()))
        if (ends := counts.miou_interval()) is not None:
            found["miou_low"], found["miou_high"] = ends
        return found


@dataclass(frozen=True)
class Evaluation:
    """Hold the metrics of a model on a split."""

    metrics: Metrics
    counts: ClassCounts
    images: int
    images_per_second: float | None
    """prediction alone: reading the images is not counted; None without images"""
    details: Details | None = None


def evaluate(
    segmenter: Segmenter,
    batches: Iterable[Batch],
    *,
    frequencies: Sequence[str],
    device: torch.device,
    title: str,
    total: int,
    measurable: bool = True,
    on_prediction: Callable[[Batch, Tensor], None] | None = None,
    details: Details | None = None,
) -> Evaluation:
    """Predict every batch at full resolution, and count.

    Args:
        segmenter: is put into evaluation mode, and back into the mode it was in.
        batches: images uint8 (N, 3, H, W) and targets (N, H, W).
        frequencies: r, c, f or stuff for each of the C classes, in the order of the train ids.
        device: where the segmenter is.
        title: shown with the progress.
        total: how many images are to come.
        measurable: as of `summarize`.
        on_prediction: called with each batch and its prediction (N, H, W) on the CPU.
        details: counted too, if given.
    """
    counts = ClassCounts(len(frequencies), device)
    images, seconds = 0, 0.0
    was_training = segmenter.training
    segmenter.eval()
    try:
        with torch.no_grad(), Progress(title, total) as progress:
            for batch in batches:
                began = time.perf_counter()
                pixels = batch.images.to(device, non_blocking=True).float() / 255
                output = segmenter(pixels)
                prediction = find_classes(segmenter.head, output, (pixels.shape[2], pixels.shape[3]))
                target = batch.target.to(device)
                counts.update(prediction, target)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                seconds += time.perf_counter() - began
                images += len(batch.images)
                if details is not None:
                    details.update(prediction, target, batch.image_ids, output)
                if on_prediction is not None:
                    on_prediction(batch, prediction.cpu())
                progress.advance(steps=len(batch.images))
    finally:
        segmenter.train(was_training)
    metrics = summarize(counts, frequencies, measurable=measurable)
    rate = images / max(seconds, 1e-9) if images else None
    return Evaluation(metrics, counts, images, rate, details)
