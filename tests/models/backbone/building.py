"""Backbones for tests, and which kinds there are."""

import warnings

from models.backbone.backbone import Backbone, OutputStrideWarning

# Convolutional with and without a stride-2 level, channels last, plain transformer, one input size only.
KINDS = ["test_resnet", "test_convnext", "test_efficientnet", "test_mambaout", "test_vit", "test_vit_relpos"]


def build(name: str, **arguments: object) -> Backbone:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OutputStrideWarning)
        return Backbone(name, **arguments)
