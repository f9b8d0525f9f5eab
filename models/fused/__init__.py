"""The exact loss and the nearest-class search as Triton kernels: scores exist in registers only.

Imports cleanly without Triton. `supports` tells whether the kernels can take two tensors.
"""

from .cross_entropy import fused_exact_cross_entropy, fused_exact_cross_entropy_upsampled
from .launch import supports
from .search import MAX_NEAREST, fused_nearest_classes

__all__ = [
    "MAX_NEAREST",
    "fused_exact_cross_entropy",
    "fused_exact_cross_entropy_upsampled",
    "fused_nearest_classes",
    "supports",
]
