"""Run the stage average: mean and spread of one variant over its seeds.

Usage: python -m stages.average VARIANT
"""

from __future__ import annotations

import sys

import pipeline.runtime.before_torch  # noqa: F401
from pipeline.config.load import load_settings, variant_argument
from pipeline.config.paths import all_evaluations, seeds_folder
from pipeline.evaluation.seeds import records_of_seeds, seeds_table, summary_of_seeds
from pipeline.runtime.files import write_json, write_text
from pipeline.runtime.process import run_process
from pipeline.tracking.mlflow_tracker import log_seeds


def main(variant: str) -> None:
    """Write metrics.json and seeds.csv; in MLflow the seeds' runs become children of the variant's."""
    settings = load_settings(variant=variant)
    records = records_of_seeds(all_evaluations(settings), variant)
    write_text(seeds_folder(settings) / "seeds.csv", seeds_table(records))
    summary = summary_of_seeds(records)
    write_json(seeds_folder(settings) / "metrics.json", summary)
    log_seeds(settings, [record["run_id"] for record in records.values()], summary)


if __name__ == "__main__":
    run_process(lambda: main(variant_argument(sys.argv)))
