"""Run the stage train: train one variant and write its best checkpoint and curves.

Usage: python -m stages.train VARIANT
"""

from __future__ import annotations

import sys

import pipeline.runtime.before_torch  # noqa: F401
from pipeline.config.load import load_settings, variant_argument
from pipeline.memory.out_of_memory import explained_memory
from pipeline.runtime.process import run_process
from pipeline.tracking.mlflow_tracker import open_run
from pipeline.training.outputs import write_training
from pipeline.training.trainer import resumable_state, train


def main(variant: str) -> None:
    """Train in the MLflow run of an interrupted training under the same settings, or in a new one."""
    settings = load_settings(variant=variant)
    interrupted = resumable_state(settings)
    run_id = interrupted.run_id if interrupted else None
    with explained_memory(settings), open_run(settings, run_id=run_id) as tracker:
        tracker.log_data(settings, "train", context="training")
        result = train(settings, tracker)
    write_training(settings, result)


if __name__ == "__main__":
    run_process(lambda: main(variant_argument(sys.argv)))
