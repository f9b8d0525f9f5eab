"""Run the stage evaluate: evaluate one variant's best checkpoint on val.

Usage: python -m stages.evaluate VARIANT
"""

from __future__ import annotations

import sys

import pipeline.runtime.before_torch  # noqa: F401
from pipeline.checkpoint.format import load_checkpoint
from pipeline.config.load import load_settings, variant_argument
from pipeline.config.paths import best_checkpoint_file, evaluation_folder, results_folder
from pipeline.evaluation.outputs import evaluate_variant
from pipeline.runtime.process import run_process
from pipeline.tracking.mlflow_tracker import open_run


def main(variant: str) -> None:
    """Evaluate, and add the metrics to the MLflow run that training opened."""
    settings = load_settings(variant=variant)
    trained = load_checkpoint(best_checkpoint_file(settings), header_only=True)
    with open_run(settings, run_id=trained.progress.get("run_id"), results=True) as tracker:
        tracker.log_data(settings, "val", context="evaluation")
        metrics, checkpoint = evaluate_variant(settings)
        measured = {f"val/{name}": value for name, value in metrics.items() if value is not None}
        model = checkpoint.arguments
        params = {"num_classes": model.num_classes, "backbone": model.backbone, "head": model.head}
        path = best_checkpoint_file(settings)
        tracker.log_model(settings, path, measured, step=checkpoint.step, params=params)
        for path in sorted(evaluation_folder(settings).glob("examples_*.png")):
            tracker.log_artifact(path)
        tracker.log_table(results_folder(settings) / "per_class.csv", "per_class.json")


if __name__ == "__main__":
    run_process(lambda: main(variant_argument(sys.argv)))
