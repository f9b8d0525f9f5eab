"""Stage report: compares the evaluated variants in one page and one table."""

from __future__ import annotations

import sys

from pipeline.reporting import write_comparison, write_report
from pipeline.runtime import run
from pipeline.settings import load_settings


def main() -> None:
    """Writes results/report.html and results/comparison.csv."""
    settings = load_settings()
    evaluations, results = settings.project / "evaluations", settings.project / "results"
    names = list(settings.variants)
    write_comparison(evaluations, names, results / "comparison.csv")
    write_report(evaluations, results, settings.bootstrapped, names, results / "report.html")


if __name__ == "__main__":
    sys.exit(run(main))
