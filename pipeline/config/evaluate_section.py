"""Define the section `evaluate`: how a checkpoint is evaluated."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.config.section import Count, CountOrNone, Section


class EvaluateSettings(Section):
    """How a checkpoint is evaluated on the val split."""

    max_images: Count | None = Field(None, description="evaluate only the first images (null: all)")
    warp: Annotated[int, Field(ge=1, le=16_384)] | None = Field(
        None, description="evaluate a second time on images warped to this square, in pixels (null: no)"
    )
    boundary_width: Annotated[float, Field(gt=0, le=0.5)] | None = Field(
        0.02, description="width of the bands of boundary IoU, as a share of the image's diagonal (null: off)"
    )
    calibration_pixels: Count | None = Field(
        4096, description="labeled pixels an image that calibration and top-5 accuracy take (null: all)"
    )
    examples: CountOrNone = Field(6, description="images of each kind in the report: random, best, worst")
