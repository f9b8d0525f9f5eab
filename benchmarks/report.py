"""How long a report of all 1,284 classes and four variants takes to open in a browser, and how large it is.

    python -m benchmarks.report --save

Takes the evaluations of this project (after `make repro`) and gives every class pixels and an IoU, so that
the table has all rows. Opened in headless Chromium, without a network, a fresh browser each time; the fastest
of several counts. `ready` is when the page can be read and its tables used, `first chart` when mIoU against
memory is drawn, `all drawn` when every chart and the gallery's first pictures are.
"""

from __future__ import annotations

import csv
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.record import describe_machine, save
from pipeline.config.load import load_settings
from pipeline.config.paths import all_evaluations, all_results, bootstrapped_folder
from pipeline.report.build import write_report
from pipeline.runtime.errors import KilosegError
from pipeline.runtime.signals import run_command

DRAWN = "!document.querySelector('[data-chart]:not([data-drawn])') && document.querySelector('[data-shown]')"
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
READY = "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd / 1000"


def main(
    repeats: Annotated[int, typer.Option(help="Times the page is opened.", min=1)] = 5,
    write: Annotated[bool, typer.Option("--save", help="Keep the result as a dated text file.")] = False,
) -> None:
    """Measure, print, and save if asked to."""
    settings = load_settings()
    names = list(settings.variants)
    with tempfile.TemporaryDirectory() as place:
        evaluations, page = Path(place) / "evaluations", Path(place) / "report.html"
        shutil.copytree(all_evaluations(settings), evaluations)
        rows = [_fill(evaluations / name / "per_class.csv", seed) for seed, name in enumerate(names)]
        began = time.perf_counter()
        write_report(evaluations, all_results(settings), bootstrapped_folder(settings), names, page)
        made, size = time.perf_counter() - began, page.stat().st_size / 1e6
        opened = [min(column) for column in zip(*(_open(page) for _ in range(repeats)), strict=True)]
    lines = [f"{rows[0]:,} classes, {len(names)} variants, {size:.2f} MB, made in {made:.1f} s; opened, s:"]
    lines += [f"{name:12} {seconds:6.2f}" for name, seconds in zip(_MOMENTS, opened, strict=True)]
    text = "\n".join(lines)
    typer.echo(text)
    if write:
        typer.echo(save("report", "cpu", [__doc__ or "", describe_machine("cpu"), text]))


_MOMENTS = ("ready", "first chart", "all drawn")


def _fill(path: Path, seed: int) -> int:
    """Give every class of a table pixels and an IoU; return the number of classes."""
    random = np.random.default_rng(seed)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row |= {"true_pixels": "1000", "predicted_pixels": "900", "iou": str(random.random())}
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return len(rows)


def _open(path: Path) -> tuple[float, float, float]:
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    if program is None:
        raise KilosegError("chromium is not installed", hint="install your system's package")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        page = browser.new_context(offline=True).new_page()
        began = time.perf_counter()
        page.goto(path.as_uri(), wait_until="commit")
        page.wait_for_selector("[data-drawn]")
        first = time.perf_counter() - began
        page.wait_for_function(DRAWN)
        whole = time.perf_counter() - began
        ready = float(page.evaluate(READY))
        browser.close()
    return ready, first, whole


if __name__ == "__main__":
    sys.exit(run_command(lambda: typer.run(main)))
