"""Train and predict semantic segmentation with thousands of classes: losses, search, heads, networks.

Works on tensors only, and needs only torch (triton where there is CUDA, numba for speed on a CPU) until a
backbone is built, which needs timm. Imports are relative, so the folder works under any name; installed,
it is the package `kiloseg`.
"""

from .features import features_before
from .heads import EmbeddingHead, SoftmaxHead
from .losses import (
    EmbeddingCrossEntropy,
    exact_cross_entropy,
    knn_cross_entropy,
    sampled_cross_entropy,
    separation_loss,
)
from .nearest import nearest_classes, predict_classes
from .segmenter import Segmenter, SegmenterConfig, build_segmenter

__all__ = [
    "EmbeddingCrossEntropy",
    "EmbeddingHead",
    "Segmenter",
    "SegmenterConfig",
    "SoftmaxHead",
    "build_segmenter",
    "exact_cross_entropy",
    "features_before",
    "knn_cross_entropy",
    "nearest_classes",
    "predict_classes",
    "sampled_cross_entropy",
    "separation_loss",
]
