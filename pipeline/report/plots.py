"""Write the tables that DVC plots: one file a plot, with a column for the variant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.report.inputs import read_variants
from pipeline.report.tables import GROUPS, value_of
from pipeline.runtime.files import csv_text, write_text

_GROUP_METRICS = {
    "miou": "all classes",
    "miou_frequent": GROUPS["f"],
    "miou_common": GROUPS["c"],
    "miou_rare": GROUPS["r"],
    "miou_stuff": GROUPS["stuff"],
}


def write_plots(evaluations: Path, names: Sequence[str], folder: Path) -> None:
    """Write loss.csv, holdout.csv, groups.csv and calibration.csv for `dvc plots show` and `diff`.

    Args:
        evaluations: one folder per variant, as the stage evaluate writes it.
        names: of the variants.
        folder: receives the files.

    Raises:
        DataError: a variant is not evaluated, or a file is missing or damaged.
        UsageError: no variant is named.
    """
    loss, holdout, groups, calibration = [], [], [], []
    for variant in read_variants(evaluations, names):
        training = variant.record.training
        loss += [[variant.name, int(step), value] for step, value in training.loss_curve]
        holdout += [
            [variant.name, int(step), miou] for step, miou, _ in training.validation_curve if miou is not None
        ]
        groups += [
            [variant.name, group, value]
            for key, group in _GROUP_METRICS.items()
            if (value := value_of(variant, key)) is not None
        ]
        calibration += [
            [variant.name, one["confidence"], one["accuracy"], int(one["pixels"])]
            for one in variant.calibration
        ]
    write_text(folder / "loss.csv", csv_text(["variant", "step", "loss"], loss))
    write_text(folder / "holdout.csv", csv_text(["variant", "step", "miou"], holdout))
    write_text(folder / "groups.csv", csv_text(["variant", "group", "miou"], groups))
    columns = ["variant", "confidence", "accuracy", "pixels"]
    write_text(folder / "calibration.csv", csv_text(columns, calibration))
