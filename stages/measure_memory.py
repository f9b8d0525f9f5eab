"""Run the stage measure_memory: peak memory of one training step, of the heads and of the variants."""

from __future__ import annotations

import dataclasses

import pipeline.runtime.before_torch  # noqa: F401
from pipeline.config.load import load_settings
from pipeline.config.paths import bootstrapped_folder, memory_file
from pipeline.data.labels.label_space import LabelSpace
from pipeline.memory.predict import as_json, measuring_device, memory_rows
from pipeline.memory.variants import variant_memory
from pipeline.runtime.device import set_threads
from pipeline.runtime.files import write_json
from pipeline.runtime.process import run_process


def main() -> None:
    """Predict each head with many numbers of classes, and each variant with those of the data."""
    settings = load_settings()
    set_threads(settings.runtime.threads)
    device = measuring_device(settings)
    rows = memory_rows(settings, device=device)
    classes = LabelSpace.load(bootstrapped_folder(settings) / "label_space.json").num_classes
    variants = {name: load_settings(variant=name) for name in settings.variants}
    of_variants = variant_memory(variants, classes, device=device)
    tree = {**as_json(settings, rows), "variants": [dataclasses.asdict(one) for one in of_variants]}
    write_json(memory_file(settings), tree)


if __name__ == "__main__":
    run_process(main)
