"""Settings of small steps whose memory is predicted and counted."""

from __future__ import annotations

from pipeline.config.load import load_settings
from pipeline.config.schema import Settings
from pipeline.memory.predict import with_changes
from tests.paths import ROOT

PARAMS = ROOT / "params.yaml"


def settings_of(
    backbone: str = "test_resnet",
    *,
    head: str = "embedding",
    output_stride: int = 16,
    batch_size: int = 2,
    crop_size: int = 64,
    **loss: object,
) -> Settings:
    settings = with_changes(
        load_settings(PARAMS),
        model={"backbone": backbone, "head": head, "output_stride": output_stride},
        train={"batch_size": batch_size, "crop_size": crop_size},
    )
    return settings.model_copy(update={"loss": settings.loss.model_copy(update=loss)})
