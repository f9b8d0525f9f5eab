"""Write the files of an evaluated variant: metrics, per-class table, and the record that the report reads.

`results/VARIANT/` holds what people and `dvc metrics show` look at; `evaluations/VARIANT/` holds everything
the report needs (record, table, pictures), in one place that DVC can depend on whatever the variants are.
"""

from __future__ import annotations

import json
import sys

import torch

from models.implementation import implementation_on
from models.segmenter import Segmenter
from pipeline.checkpoint.format import Checkpoint, load_checkpoint
from pipeline.checkpoint.identity import Identity
from pipeline.config.paths import best_checkpoint_file, bootstrapped_folder, evaluation_folder, results_folder
from pipeline.config.renamed import current_names
from pipeline.config.schema import Settings
from pipeline.config.seeds import repeat_of
from pipeline.data.loading.dataset import SegmentationDataset
from pipeline.data.loading.loaders import evaluation_loader
from pipeline.data.loading.transforms import Warp
from pipeline.data.store.looked_for import LookedFor
from pipeline.data.store.manifest import read_manifest
from pipeline.evaluation.calibration import Calibration, ClassScores
from pipeline.evaluation.class_map import class_map_table
from pipeline.evaluation.evaluate import Details, Evaluation, evaluate
from pipeline.evaluation.federated import federated_iou, federated_metrics, val2017_metrics
from pipeline.evaluation.image_counts import ImageCounts
from pipeline.evaluation.picture_file import PictureWriter, chosen_pictures, read_picture, writing_pictures
from pipeline.evaluation.pictures import PictureKeeper, drawn_positions, sheet
from pipeline.evaluation.protocols import official_metrics
from pipeline.evaluation.summary import Number, shown
from pipeline.evaluation.tables import calibration_table, confused_table, groups_table, per_class_table
from pipeline.runtime.device import PeakMemory, choose_device, set_threads
from pipeline.runtime.errors import DataError
from pipeline.runtime.files import atomic_path, read_csv, write_json, write_text
from pipeline.tracking.environment import collect_environment

PICTURES = "pictures.zip"


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
    pictures: PictureWriter | None = None,
    warp: int | None = None,
) -> tuple[Evaluation, list[int]]:
    """Evaluate a checkpoint's segmenter on a split.

    Args:
        settings: the data, evaluate and runtime sections count.
        checkpoint: whose label space must be that of the data.
        segmenter: the checkpoint's, on the device to use.
        split: train, holdout or val.
        details: count outlines, confused pairs and regions too.
        pictures: receives some images with truth and prediction; None for none.
        warp: side of the square that images and truth are resized to; None for whole images.

    Returns:
        The evaluation, and the ids of the pictured images in the order in which they were drawn.

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
    if pictures is not None:
        saved = PictureKeeper(pictures, drawn_positions(total, settings.evaluate.examples))
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
    return result, saved.image_ids() if saved else []


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
    deterministic = bool(checkpoint.settings.get("train.deterministic"))
    threads = set_threads(settings.runtime.threads, deterministic=deterministic, device=device)
    _warn_other_training(settings, checkpoint)
    segmenter = checkpoint.segmenter().to(device)
    pictures = evaluation_folder(settings) / PICTURES
    with writing_pictures(pictures) as writer:
        result, drawn = evaluate_checkpoint(
            settings, checkpoint, segmenter, "val", details=True, pictures=writer
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
        "pictures": drawn,
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
    table = class_map_table(segmenter.head.class_embeddings, checkpoint.label_space)
    write_text(evaluation_folder(settings) / "class_map.csv", table)
    _draw_examples(settings, drawn, image_counts)
    write_json(evaluation_folder(settings) / "record.json", record)
    write_json(results_folder(settings) / "metrics.json", shown(metrics))
    return metrics, checkpoint


def _draw_examples(settings: Settings, drawn: list[int], counts: ImageCounts) -> None:
    """Draw the random, best and worst images, each kind on a sheet that a person can open."""
    folder, wanted = evaluation_folder(settings), settings.evaluate.examples
    chosen = chosen_pictures(drawn, counts.accuracies(), counts.labeled_pixels(), wanted)
    for kind, image_ids in chosen.items():
        path = folder / f"examples_{kind}.png"
        path.unlink(missing_ok=True)
        if image_ids:
            whole = sheet([read_picture(folder / PICTURES, image_id) for image_id in image_ids])
            with atomic_path(path) as temporary:
                whole.save(temporary, format="PNG")


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
