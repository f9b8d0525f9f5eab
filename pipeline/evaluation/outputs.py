"""Write the files of an evaluated variant: metrics, per-class table, and the record that the report reads.

`results/VARIANT/` holds what people and `dvc metrics show` look at; `evaluations/VARIANT/` holds everything
the report needs (record, table, pictures), in one place that DVC can depend on whatever the variants are.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from models.implementation import implementation_on
from models.segmenter import Segmenter
from pipeline.checkpoint.format import Checkpoint, load_checkpoint
from pipeline.checkpoint.identity import Identity
from pipeline.config.paths import best_checkpoint_file, bootstrapped_folder, evaluation_folder, results_folder
from pipeline.config.renamed import current_names
from pipeline.config.schema import Settings
from pipeline.config.seeds import repeat_of
from pipeline.data.labels.label_space import LabelSpace
from pipeline.data.loading.batch import IGNORE_INDEX, Batch
from pipeline.data.loading.dataset import SegmentationDataset
from pipeline.data.loading.loaders import evaluation_loader
from pipeline.data.loading.palette import Color, colorize, picture_colors
from pipeline.data.loading.transforms import Warp
from pipeline.data.store.looked_for import LookedFor
from pipeline.data.store.manifest import read_manifest
from pipeline.evaluation.calibration import Calibration, ClassScores
from pipeline.evaluation.evaluate import Details, Evaluation, evaluate
from pipeline.evaluation.federated import federated_iou, federated_metrics, val2017_metrics
from pipeline.evaluation.protocols import official_metrics
from pipeline.evaluation.summary import Number, shown
from pipeline.evaluation.tables import calibration_table, confused_table, groups_table, per_class_table
from pipeline.runtime.device import PeakMemory, choose_device, set_threads
from pipeline.runtime.errors import DataError
from pipeline.runtime.files import read_csv, write_json, write_text
from pipeline.tracking.environment import collect_environment

LEGEND_CLASSES = 8


def best_checkpoint(settings: Settings) -> Checkpoint:
    """Load the variant's checkpoint chosen on the held-out part."""
    return load_checkpoint(best_checkpoint_file(settings))


def evaluate_checkpoint(
    settings: Settings,
    checkpoint: Checkpoint,
    segmenter: Segmenter,
    split: str,
    *,
    details: bool = False,
    pictures: bool = False,
    warp: int | None = None,
) -> tuple[Evaluation, list[Mapping[str, object]]]:
    """Evaluate a checkpoint's segmenter on a split.

    Args:
        settings: the data, evaluate and runtime sections count.
        checkpoint: whose label space must be that of the data.
        segmenter: the checkpoint's, on the device to use.
        split: train, holdout or val.
        details: count outlines, confused pairs and regions too.
        pictures: save some images with truth and prediction for the report.
        warp: side of the square that images and truth are resized to; None for whole images.

    Returns:
        The evaluation, and what was pictured.

    Raises:
        DataError: no data, or of other classes.
    """
    transform = None if warp is None else Warp(warp)
    data = SegmentationDataset(bootstrapped_folder(settings), settings.data.root, split, transform)
    if data.label_space != checkpoint.label_space:
        raise DataError(
            "the checkpoint was trained on other classes",
            where=bootstrapped_folder(settings),
            found=f"{data.label_space.num_classes} classes, other than the checkpoint's",
            allowed=f"the {checkpoint.label_space.num_classes} classes of the checkpoint",
            hint="train again on this data: dvc repro",
        )
    learned = read_manifest(bootstrapped_folder(settings))["splits"]["train"]["classes_seen"]
    limit = settings.evaluate.max_images
    total = len(data) if limit is None else min(limit, len(data))
    saved = None
    if pictures:
        wanted = settings.evaluate.examples
        saved = _Pictures(evaluation_folder(settings), checkpoint.label_space, wanted, total)
    device = choose_device(settings.runtime.device)
    result = evaluate(
        segmenter,
        evaluation_loader(data, num_workers=settings.runtime.num_workers, limit=limit),
        frequencies=checkpoint.label_space.frequencies,
        device=device,
        title=f"evaluate {settings.variant or ''} on {split}",
        total=total,
        measurable=learned > 1,
        on_prediction=saved.add if saved else None,
        details=_details(settings, checkpoint, segmenter, device) if details else None,
    )
    if result.metrics.undefined:
        _warn_undefined(split, result, learned)
    return result, saved.examples if saved else []


def _details(
    settings: Settings, checkpoint: Checkpoint, segmenter: Segmenter, device: torch.device
) -> Details:
    """Count everything; confidences are at the temperature of the training."""
    trained, chosen = checkpoint.settings, settings.evaluate
    scores = ClassScores.of(
        segmenter.head,
        str(trained.get("loss.similarity", "distance")),
        float(str(trained.get("loss.temperature", 1.0))),
    )
    calibration = Calibration(scores, chosen.calibration_pixels)
    return Details(checkpoint.label_space.num_classes, chosen.boundary_width, device, calibration)


def _warn_undefined(split: str, result: Evaluation, learned: int) -> None:
    if not result.images:
        reason = f"the split {split} has no images (those without a labeled pixel are left out, by name in "
        reason += "data/bootstrapped/manifest.json)"
    elif not int(result.counts.actual.sum()):
        reason = f"no pixel of the split {split} is labeled"
    else:
        reason = f"{learned} class was to be learned, which any network answers everywhere"
    print(f"warning: nothing can be measured: {reason}; the metrics are null", file=sys.stderr, flush=True)


def _warn_other_training(settings: Settings, checkpoint: Checkpoint) -> None:
    """Say that the checkpoint is not of the training that the settings, and so the results, describe."""
    differences = Identity.of(settings).differences(checkpoint)
    if differences:
        text = f"{best_checkpoint_file(settings)} was trained otherwise: {'; '.join(differences)}"
        print(f"warning: {text}; to train again: dvc repro", file=sys.stderr, flush=True)


def evaluate_variant(settings: Settings) -> tuple[dict[str, Number], Checkpoint]:
    """Evaluate the variant's best checkpoint on val, and write both folders.

    Returns:
        The flat metrics and the checkpoint that earned them.
    """
    device = choose_device(settings.runtime.device)
    memory = PeakMemory(device)
    checkpoint = best_checkpoint(settings)
    on_one = bool(checkpoint.settings.get("train.deterministic")) and device.type == "cpu"
    threads = set_threads(settings.runtime.threads, deterministic=on_one)
    _warn_other_training(settings, checkpoint)
    segmenter = checkpoint.segmenter().to(device)
    result, examples = evaluate_checkpoint(
        settings, checkpoint, segmenter, "val", details=True, pictures=True
    )
    assert result.details is not None
    image_counts = result.details.per_image.counts()
    space, looked_for = checkpoint.label_space, LookedFor.load(bootstrapped_folder(settings))
    files = SegmentationDataset(bootstrapped_folder(settings), settings.data.root, "val").files()
    incomplete = {
        **federated_metrics(image_counts, looked_for, space),
        **(val2017_metrics(image_counts, files, space.num_classes) if looked_for is not None else {}),
    }
    metrics: dict[str, Number] = {
        **result.metrics.flat(),
        **({} if result.metrics.undefined else {**result.details.metrics(image_counts), **incomplete}),
        **official_metrics(settings.data.layout, result.counts),
        **_warped(settings, checkpoint, segmenter),
        "images": result.images,
        "images_per_second": result.images_per_second,
        "peak_memory_gib": memory.gib(),
        "train_peak_memory_gib": checkpoint.progress["peak_memory_gib"],
    }
    path = results_folder(settings) / "training.json"
    training = current_names("train", json.loads(path.read_text(encoding="utf-8")))
    curves = {
        "loss_curve": read_csv(results_folder(settings) / "loss.csv"),
        "validation_curve": read_csv(results_folder(settings) / "holdout.csv"),
    }
    metrics["train_seconds"] = training["seconds"]
    record = {
        "format": 1,
        "variant": settings.variant or "default",
        "seed": settings.train.seed,
        "seed_of": _repeated_variant(settings),
        "metrics": metrics,
        "settings": settings.flat(),
        "training": {**training, **curves},
        "environment": collect_environment(settings, device, threads, implementation_on),
        "num_classes": checkpoint.label_space.num_classes,
        "parameters": sum(parameter.numel() for parameter in segmenter.parameters()),
        "run_id": checkpoint.progress["run_id"],
        "examples": examples,
    }
    tables = {
        "per_class.csv": per_class_table(
            result, space, None if looked_for is None else federated_iou(image_counts, looked_for, space)
        ),
        "groups.csv": groups_table(result, space),
        "calibration.csv": calibration_table(result),
        "confused.csv": confused_table(result, space),
    }
    for folder in (results_folder(settings), evaluation_folder(settings)):
        for name, table in tables.items():
            write_text(folder / name, table)
    image_counts.save(evaluation_folder(settings) / "per_image.npz")
    write_json(evaluation_folder(settings) / "record.json", record)
    write_json(results_folder(settings) / "metrics.json", shown(metrics))
    return metrics, checkpoint


def _repeated_variant(settings: Settings) -> str | None:
    """Return the variant of which this is the training with another seed; None for a variant itself."""
    if settings.variant is None or settings.variant in settings.variants:
        return None
    repeat = repeat_of(settings.variant)
    return None if repeat is None else repeat[0]


def _warped(settings: Settings, checkpoint: Checkpoint, segmenter: Segmenter) -> dict[str, Number]:
    """Return the metrics on warped images, where `evaluate.warp` asks for them."""
    if settings.evaluate.warp is None:
        return {}
    result, _ = evaluate_checkpoint(settings, checkpoint, segmenter, "val", warp=settings.evaluate.warp)
    return {f"warped_{name}": getattr(result.metrics, name) for name in ("miou", "pixel_accuracy")}


class _Pictures:
    """Save evenly spaced images with their truth and prediction in colors."""

    def __init__(self, folder: Path, label_space: LabelSpace, wanted: int, total: int) -> None:
        self.folder, self.label_space = folder, label_space
        self.chosen = {round(index * total / wanted) for index in range(wanted)} if wanted else set()
        self.seen = 0
        self.examples: list[Mapping[str, object]] = []
        shutil.rmtree(folder / "examples", ignore_errors=True)

    def add(self, batch: Batch, prediction: Tensor) -> None:
        """Go through the images of a batch (N, H, W), and save the chosen ones."""
        for index, image_id in enumerate(batch.image_ids):
            if self.seen in self.chosen:
                self._save(int(image_id), batch.images[index], batch.target[index], prediction[index])
            self.seen += 1

    def _save(self, image_id: int, image: Tensor, target: Tensor, prediction: Tensor) -> None:
        examples = self.folder / "examples"
        examples.mkdir(parents=True, exist_ok=True)
        prediction = prediction.where(target != IGNORE_INDEX, IGNORE_INDEX)
        names = {kind: f"examples/{image_id:012d}_{kind}.png" for kind in ("truth", "prediction")}
        names["image"] = f"examples/{image_id:012d}_image.jpg"
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(self.folder / names["image"], quality=90)
        found = (
            [one + 1 for one in ids.unique().tolist() if one != IGNORE_INDEX] for ids in (target, prediction)
        )
        colors = picture_colors(*found)
        for kind, ids in (("truth", target), ("prediction", prediction)):
            Image.fromarray(colorize(ids.numpy(), colors)).save(self.folder / names[kind])
        legend = self._legend(target, prediction, colors)
        self.examples.append({"image_id": image_id, **names, "legend": legend})

    def _legend(
        self, target: Tensor, prediction: Tensor, colors: Mapping[int, Color]
    ) -> list[dict[str, str]]:
        ids, pixels = torch.cat([target.flatten(), prediction.flatten()]).unique(return_counts=True)
        order = pixels.argsort(descending=True).tolist()
        commonest = [train_id for i in order if (train_id := int(ids[i])) != IGNORE_INDEX][:LEGEND_CLASSES]
        return [
            {
                "name": self.label_space.classes[train_id].name,
                "color": "#{:02x}{:02x}{:02x}".format(*colors[train_id + 1]),
            }
            for train_id in commonest
        ]
