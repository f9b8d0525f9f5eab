"""Write the files that a training leaves in the variant's results folder."""

from __future__ import annotations

from pipeline.config.paths import results_folder
from pipeline.config.schema import Settings
from pipeline.runtime.files import csv_text, write_json, write_text
from pipeline.training.debug import hand_over
from pipeline.training.trainer import TrainResult


def write_training(settings: Settings, result: TrainResult) -> None:
    """Write the curves as CSV (for `dvc plots`) and the facts of the training as JSON.

    A debug run's go into a folder of their own, unless DVC runs it.
    """
    folder = results_folder(settings)
    if settings.train.debug is not None:
        folder = hand_over(settings, result.checkpoint)
    state = result.state
    write_text(folder / "loss.csv", csv_text(["step", "loss"], state.loss_curve))
    write_text(folder / "holdout.csv", csv_text(["step", "miou", "pixel_accuracy"], state.validation_curve))
    facts = {
        "steps": result.steps,
        "seconds": state.seconds,
        "images_per_second": result.images_per_second,
        "data_wait_share": state.data_wait_share,
        "accumulation_steps": result.accumulation_steps,
        "best_step": state.best_step,
        "best_holdout_miou": state.best_miou,
        "peak_memory_gib": state.peak_memory_gib,
        "peak_memory_kind": result.peak_memory_kind,
        "device": result.device,
        "threads": state.threads,
        "processor": state.processor,
    }
    write_json(folder / "training.json", facts)
