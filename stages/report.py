"""Run the stage report: compare the evaluated variants in one page and one table."""

from __future__ import annotations

import json
import sys

import pipeline.runtime.before_torch  # noqa: F401
from pipeline.config.load import load_settings
from pipeline.config.paths import all_evaluations, all_results, bootstrapped_folder
from pipeline.report.build import write_comparison, write_report
from pipeline.runtime.signals import run_command
from pipeline.tracking.mlflow_tracker import PATIENCE_SECONDS, log_to_finished_run


def main() -> None:
    """Write results/report.html and results/comparison.csv; add the page to the variants' MLflow runs."""
    settings = load_settings()
    evaluations, results = all_evaluations(settings), all_results(settings)
    names, page = list(settings.variants), results / "report.html"
    write_comparison(evaluations, names, results / "comparison.csv")
    write_report(evaluations, results, bootstrapped_folder(settings), names, page)
    answers = True
    for name in names:
        record = json.loads((evaluations / name / "record.json").read_text(encoding="utf-8"))
        patience = PATIENCE_SECONDS if answers else 0.0  # wait once for a store that is away
        answers = log_to_finished_run(settings, record["run_id"], page, patience=patience)


if __name__ == "__main__":
    sys.exit(run_command(main))
