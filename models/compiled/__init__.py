"""Compute the exact loss and the nearest-class search on the CPU by kernels that numba compiles.

Imports cleanly without numba. `supports` is the one rule for when this applies.
"""

from .launch import reason_against, reason_against_numba, supports

__all__ = ["reason_against", "reason_against_numba", "supports"]
