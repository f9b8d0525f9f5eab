"""Choose what metrics.json holds of all metrics: as many columns as a terminal has room for."""

from __future__ import annotations

from collections.abc import Mapping

SUMMARY = (
    "miou",
    "miou_rare",
    "miou_common",
    "miou_frequent",
    "miou_stuff",
    "boundary_iou",
    "pixel_accuracy",
    "top5_accuracy",
    "calibration_error",
    "train_peak_memory_gib",
    "train_seconds",
    "images_per_second",
)
Number = float | int | None


def shown(metrics: Mapping[str, Number]) -> dict[str, Number]:
    """Return the metrics to show; a dataset's own protocol and warped images were asked for."""
    names = [*SUMMARY, *(name for name in metrics if name.startswith(("ade20k", "warped")))]
    return {name: metrics[name] for name in names if name in metrics}
