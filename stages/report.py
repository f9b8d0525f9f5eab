"""Run the stage report: compare the evaluated variants in one page and one table."""

from __future__ import annotations

import pipeline.runtime.before_torch  # noqa: F401
from pipeline.config.load import load_settings
from pipeline.config.paths import all_evaluations, all_results, bootstrapped_folder
from pipeline.report.build import step_peaks, write_comparison, write_report
from pipeline.report.plots import write_plots
from pipeline.runtime.process import run_process
from pipeline.tracking.mlflow_tracker import PATIENCE_SECONDS, log_to_finished_run
from pipeline.tracking.saved_view import MEMORY


def main() -> None:
    """Write the page, the tables and DVC's plots; add page and memory to the variants' MLflow runs."""
    settings = load_settings()
    evaluations, results = all_evaluations(settings), all_results(settings)
    names, page = list(settings.variants), results / "report.html"
    write_comparison(evaluations, names, results / "comparison.csv")
    write_plots(evaluations, names, results / "plots")
    write_report(evaluations, results, bootstrapped_folder(settings), names, page)
    answers = True
    for variant, peak in step_peaks(evaluations, results, names):
        patience = PATIENCE_SECONDS if answers else 0.0  # wait once for a store that is away
        numbers, run_id = {MEMORY: peak}, variant.record.run_id
        answers = log_to_finished_run(settings, run_id, page, numbers, patience=patience)


if __name__ == "__main__":
    run_process(main)
