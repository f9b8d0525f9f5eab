"""Evaluate a model on a split: full images, one prediction a pixel, counts per class."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.segmenter import Segmenter
from pipeline.data.loading.batch import Batch
from pipeline.evaluation.metrics import ClassCounts, Metrics, summarize
from pipeline.runtime.progress import Progress


@dataclass(frozen=True)
class Evaluation:
    """Hold the metrics of a model on a split."""

    metrics: Metrics
    counts: ClassCounts
    images: int
    images_per_second: float | None
    """prediction alone: reading the images is not counted; None without images"""


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
                prediction = segmenter.predict(pixels)
                counts.update(prediction, batch.target.to(device))
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                seconds += time.perf_counter() - began
                images += len(batch.images)
                if on_prediction is not None:
                    on_prediction(batch, prediction.cpu())
                progress.advance(steps=len(batch.images))
    finally:
        segmenter.train(was_training)
    metrics = summarize(counts, frequencies, measurable=measurable)
    return Evaluation(metrics, counts, images, images / max(seconds, 1e-9) if images else None)
