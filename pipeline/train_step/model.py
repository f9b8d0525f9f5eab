"""Build the model from the settings; failures become user errors."""

from __future__ import annotations

import warnings

from models.backbone.backbone import OutputStrideWarning
from models.segmenter import Segmenter, SegmenterConfig, build_segmenter
from pipeline.config.schema import ModelSettings
from pipeline.runtime.errors import KilosegError, UsageError


def segmenter_config(settings: ModelSettings, num_classes: int) -> SegmenterConfig:
    """Return what a checkpoint keeps to rebuild the network, without the source of its first weights."""
    return SegmenterConfig(
        num_classes=num_classes,
        backbone=settings.backbone,
        output_stride=settings.output_stride,
        decoder=settings.decoder,
        decoder_channels=settings.decoder_channels,
        head=settings.head,
        embedding_dim=settings.embedding_dim,
        projection=settings.projection,
        batch_norm_momentum=settings.batch_norm_momentum,
        input_scale=settings.input_scale,
    )


def build_model(settings: ModelSettings, num_classes: int) -> Segmenter:
    """Build the network for `num_classes` classes, its backbone pretrained where the settings say so.

    Raises:
        UsageError: unknown backbone, a weights file that is missing or does not fit.
        KilosegError: pretrained weights cannot be downloaded.
    """
    arguments = segmenter_config(settings, num_classes)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", OutputStrideWarning)
            return build_segmenter(arguments, pretrained=settings.pretrained, weights=settings.weights)
    except (ValueError, FileNotFoundError) as error:
        raise UsageError("the network cannot be built", where="model", found=error) from error
    except ConnectionError as error:
        raise KilosegError("no pretrained weights", where="model.pretrained", found=error) from error
