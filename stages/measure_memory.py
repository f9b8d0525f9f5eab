"""Run the stage measure_memory: peak memory of one training step against the number of classes."""

from __future__ import annotations

import sys

import pipeline.runtime.before_torch  # noqa: F401
from pipeline.config.load import load_settings
from pipeline.config.paths import memory_file
from pipeline.memory.predict import as_json, measuring_device, memory_rows
from pipeline.runtime.device import set_threads
from pipeline.runtime.files import write_json
from pipeline.runtime.signals import run_command


def main() -> None:
    """Predict both heads from settings.model, settings.loss and settings.train; measure on a GPU."""
    settings = load_settings()
    set_threads(settings.runtime.threads)
    rows = memory_rows(settings, device=measuring_device(settings))
    write_json(memory_file(settings), as_json(settings, rows))


if __name__ == "__main__":
    sys.exit(run_command(main))
