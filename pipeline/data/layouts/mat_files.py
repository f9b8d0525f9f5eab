"""Read masks stored in Matlab files: SBD's and COCO-Stuff 10k's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.runtime.errors import DataError

HDF5 = b"MATLAB 7.3 MAT-file"


def sbd_values(path: Path) -> np.ndarray:
    """Read GTcls.Segmentation of an SBD file: (H, W) int32, 0 to 20.

    Raises:
        DataError: missing, unreadable, or of another form.
    """
    tree = _load(path, ["GTcls"], hint="take benchmark.tgz again: pipeline data fetch sbd ROOT")
    try:
        return _plane(tree["GTcls"][0]["Segmentation"][0], path)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise _other_form(path, "GTcls.Segmentation, as in SBD's dataset/cls", error) from error


def cocostuff_values(path: Path) -> np.ndarray:
    """Read S of a COCO-Stuff 10k v1.1 file: (H, W) int32, 0 to 182.

    Raises:
        DataError: missing, unreadable, of another form, or of release 1.0.
    """
    tree = _load(path, ["S", "names"], hint="take cocostuff-10k-v1.1.zip again")
    if "names" in tree and np.size(tree["names"]) not in (0, 182):
        raise _old_release(path, f"{np.size(tree['names'])} names of classes")
    try:
        return _plane(tree["S"], path)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise _other_form(path, "a map S, as in COCO-Stuff 10k v1.1", error) from error


def _load(path: Path, names: list[str], *, hint: str) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        with path.open("rb") as file:
            if file.read(len(HDF5)) == HDF5:
                raise _old_release(path, "an HDF5 file (Matlab 7.3)")
        tree: dict[str, Any] = loadmat(path, variable_names=names)
    except DataError:
        raise
    except Exception as error:  # scipy raises nearly anything on damaged files
        what = "unreadable mask" if path.is_file() else "missing mask"
        raise DataError(what, where=path, found=error, hint=hint) from error
    return tree


def _plane(values: Any, path: Path) -> np.ndarray:
    """(H, W) int32; at once, since Matlab's compact uint8 would wrap in arithmetic."""
    array = np.asarray(values)
    if array.ndim != 2 or array.dtype.kind not in "uif" or (array.astype(np.int32) != array).any():
        raise ValueError(f"{array.dtype} of shape {array.shape}")
    return array.astype(np.int32)


def _old_release(path: Path, found: str) -> DataError:
    return DataError(
        "a mask of another release",
        where=path,
        found=found,
        allowed="COCO-Stuff 10k v1.1, whose ids are 0 to 182 (v1.0 numbers its classes otherwise)",
        hint="fetch v1.1: pipeline data fetch cocostuff10k ROOT",
    )


def _other_form(path: Path, allowed: str, error: Exception) -> DataError:
    return DataError(
        "a Matlab file of another form",
        where=path,
        found=f"{type(error).__name__}: {error}",
        allowed=allowed,
        hint="take the file from its source again",
    )
