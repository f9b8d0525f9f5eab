"""Define the section `data`: the dataset, its layout on disk, and how masks are made from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline.config.paths import TINY
from pipeline.config.section import FilePath, Section, Seed


class VocSettings(Section):
    """What concerns the layout voc alone."""

    augmented: bool = Field(False, description="train on SBD's masks too: 10,582 images in place of 1,464")


class CocoStuffSettings(Section):
    """What concerns the layout cocostuff10k alone."""

    classes: Literal[171, 182] = Field(
        171, description="those that occur, or 182 with the eleven that never do, as in the paper's code"
    )


class DataSettings(Section):
    """Where the dataset lies and how its annotations become class-id masks."""

    root: FilePath = Field(description=f"folder of the dataset; {TINY} is the embedded one")
    layout: Literal[
        "coco_lvis", "coco", "masks", "cityscapes", "voc", "ade20k", "cocostuff10k", "parquet"
    ] = Field("coco_lvis", description="how the dataset lies on disk, see docs/data.md")
    annotations: str = Field(
        "annotations",
        description="folder of the labels under root, which DVC watches, such as gtFine for cityscapes",
    )
    holdout_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="share of the train images kept back for choosing checkpoints"
    )
    holdout_seed: Seed = Field(0, description="which images are kept back")
    overlap: Literal["first", "smallest"] = Field(
        "first", description="which annotation keeps a pixel claimed by several"
    )
    keep_classes: list[int | str] | None = Field(
        None, description="names or class ids to keep (null: all); the other pixels become unlabeled"
    )
    voc: VocSettings = VocSettings()
    cocostuff: CocoStuffSettings = CocoStuffSettings()

    @field_validator("root", mode="before")
    @classmethod
    def _no_home_folder(cls, value: object) -> object:
        if isinstance(value, str) and value.startswith("~"):
            written_out = Path(value).expanduser() if value[1:2] in ("", "/") else "the whole path"
            raise ValueError(f"{written_out}: DVC takes ~ for the name of a folder")
        return value
