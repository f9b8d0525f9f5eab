"""Compute the exact loss and the nearest-class search as Triton kernels: scores exist in registers only.

Imports cleanly without Triton. `supports` is the one rule for when the kernels apply.
"""

from .cross_entropy import fused_exact_cross_entropy
from .launch import TRITON_INSTALLED, require, supports, to_kernel_dtypes
from .search import MAX_NEAREST, fused_classes_of_map, fused_nearest_classes

__all__ = [
    "MAX_NEAREST",
    "TRITON_INSTALLED",
    "fused_classes_of_map",
    "fused_exact_cross_entropy",
    "fused_nearest_classes",
    "require",
    "supports",
    "to_kernel_dtypes",
]
