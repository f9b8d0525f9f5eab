"""Measure what a sweep costs beyond its trainings: `pipeline tune` against the same trainings in sequence.

    python -m benchmarks.sweep --trials 4 --save

The trials differ in `train.seed` alone, so that all take equally long. They run one at a time on one thread.
The bare trainings are the same trainings and evaluations in one process that has imported everything. Both
use the embedded dataset in a folder of their own. The sweep may add 5 % and 15 seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
import yaml

from benchmarks.record import describe_machine, save
from pipeline.checkpoint.format import load_checkpoint
from pipeline.config.load import load_settings
from pipeline.config.paths import bootstrapped_folder
from pipeline.config.schema import Settings
from pipeline.data.bootstrap.build import bootstrap
from pipeline.data.tiny.generate import generate_tiny
from pipeline.evaluation.outputs import evaluate_checkpoint
from pipeline.runtime.device import choose_device, set_threads
from pipeline.runtime.signals import run_command
from pipeline.tracking.tracker import NoTracker
from pipeline.training.trainer import train

RELATIVE, SECONDS = 0.05, 15.0


def main(
    trials: Annotated[int, typer.Option(help="Trials of the sweep.", min=1)] = 4,
    steps: Annotated[int, typer.Option(help="Steps of a training.", min=2)] = 550,
    params: Annotated[Path, typer.Option(help="Settings to start from.")] = Path("params.yaml"),
    keep: Annotated[bool, typer.Option("--save", help="Write the table to benchmarks/results/.")] = False,
) -> None:
    """Measure and print; see the module."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = _project(folder, params, trials, steps)
        load = os.getloadavg()[0]
        bare = _bare(settings, trials)
        sweep = _sweep(folder)
    allowed = bare * (1 + RELATIVE) + SECONDS
    lines = [
        f"{trials} trials of {steps} steps, one at a time, one thread; load of the machine before {load:.2f}",
        f"  trainings and evaluations in one process {bare:8.1f} s",
        f"  the sweep, from command to prompt        {sweep:8.1f} s",
        f"  more                                     {sweep - bare:8.1f} s",
        f"  {100 * RELATIVE:.0f} % and {SECONDS:.0f} s                             {allowed - bare:8.1f} s",
    ]
    table = "\n".join(lines)
    print(f"\n{table}")
    if keep:
        print(f"saved {save('sweep', 'cpu', [describe_machine('cpu'), table])}")


def _project(folder: Path, params: Path, trials: int, steps: int) -> Settings:
    """Make a project on the embedded dataset and return the settings of its trials."""
    tree = yaml.safe_load(params.read_text(encoding="utf-8"))
    tree["data"]["root"] = "data/tiny"
    tree["train"] |= {"steps": steps, "validate_every": steps}
    tree["runtime"] = {"device": "cpu", "threads": 1, "num_workers": 0}
    tree["tune"] = {
        "variant": None,
        "space": {"train.seed": {"grid": list(range(trials))}},
        "trials": trials,
        "max_concurrent": 1,
        "pruning": False,
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    settings = load_settings(folder / "params.yaml")
    generate_tiny(settings.data.root)
    bootstrap(settings.data.root, bootstrapped_folder(settings))
    return settings


def _bare(settings: Settings, trials: int) -> float:
    """Measure the trainings and evaluations alone, in seconds."""
    device = choose_device("cpu")
    set_threads(1)
    began = time.perf_counter()
    for seed in range(trials):
        of_trial = settings.model_copy(update={"train": settings.train.model_copy(update={"seed": seed})})
        folder = settings.project / "bare" / str(seed)
        train(of_trial, NoTracker(), folder=folder)
        checkpoint = load_checkpoint(folder / "best.safetensors")
        evaluate_checkpoint(of_trial, checkpoint, checkpoint.segmenter().to(device), "val")
    return time.perf_counter() - began


def _sweep(folder: Path) -> float:
    """Measure the command, in seconds."""
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    code = "import sys; from pipeline.cli.main import main; sys.exit(main())"
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, "tune"], cwd=folder, env=environment, check=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    sys.exit(run_command(app))
