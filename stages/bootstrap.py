"""Run the stage bootstrap: turn annotations into class-id masks, splits and a label space."""

from __future__ import annotations

import pipeline.runtime.before_torch  # noqa: F401
from pipeline.config.load import load_settings
from pipeline.config.outside_data import link_outside_data
from pipeline.config.paths import bootstrapped_folder
from pipeline.data.bootstrap.build import bootstrap
from pipeline.data.bootstrap.options import BootstrapOptions
from pipeline.data.layouts.layout import LayoutOptions
from pipeline.runtime.device import resolve_num_workers
from pipeline.runtime.process import run_process
from pipeline.runtime.workers import worker_pool


def main() -> None:
    """Bootstrap with the settings of the data section."""
    settings = load_settings()
    link_outside_data(settings)
    data = settings.data
    options = BootstrapOptions(
        layout=data.layout,
        holdout_fraction=data.holdout_fraction,
        holdout_seed=data.holdout_seed,
        overlap=data.overlap,
        keep_classes=data.keep_classes,
        of_layout=LayoutOptions(data.voc.augmented, data.cocostuff.classes),
    )
    # the loaders' number is of processes beside the one that trains
    num_workers = resolve_num_workers(settings.runtime.num_workers) + 1
    with worker_pool(num_workers, "pipeline.data.bootstrap.build") as pool:
        bootstrap(data.root, bootstrapped_folder(settings), options, pool=pool)


if __name__ == "__main__":
    run_process(main)
