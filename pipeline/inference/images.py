"""Read a picture of any common kind as upright RGB, or name what is wrong with it.

A prediction is for the picture as people see it: EXIF orientation is applied, so class maps come back in the
upright frame. (Training reads the frame that the annotations lie in.) Bits and transparency are treated as in
training, see `pipeline.data.store.pixels`. Of an animation the first frame is taken.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.data.store.images import open_image
from pipeline.data.store.pixels import upright_pixels
from pipeline.runtime.errors import DataError, UsageError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""What is taken as a picture when a folder is searched; a file named outright may have any suffix."""

Picture = Path | str | Image.Image | np.ndarray | Tensor


def read_picture(path: Path | str) -> np.ndarray:
    """Return the (H, W, 3) uint8 RGB pixels of a file, upright.

    Raises:
        DataError: missing, truncated, or not a picture.
    """
    hint = "convert it to JPEG or PNG, or take the file from its source again"
    with open_image(Path(path), kind="picture", hint=hint) as opened:
        return upright_pixels(opened)


def picture_of_bytes(data: bytes, *, where: str) -> np.ndarray:
    """Return the (H, W, 3) uint8 RGB pixels of a file's content, upright.

    Args:
        data: content of the file.
        where: names it in errors.

    Raises:
        DataError: truncated, or not a picture.
    """
    with tempfile.NamedTemporaryFile(prefix="kiloseg-") as file:
        file.write(data)
        file.flush()
        try:
            return read_picture(file.name)
        except DataError as error:
            found = (error.found or "").replace(file.name, where)
            raise DataError(
                error.what,
                where=where,
                found=found or None,
                allowed=error.allowed or "a picture file: JPEG, PNG, WebP, TIFF and the like",
                hint=error.hint,
            ) from error


def as_pixels(image: Picture) -> np.ndarray:
    """Return the (H, W, 3) uint8 RGB pixels of a file, PIL image, array or tensor.

    Args:
        image: a path; a PIL image; an array (H, W), (H, W, 3) or (H, W, 4); or a tensor (3, H, W). Numbers
            are uint8, uint16, or floats in [0, 1], which are rounded to 8 bits.

    Raises:
        DataError: a file that cannot be read.
        UsageError: an array or tensor of another shape or type.
    """
    if isinstance(image, str | Path):
        return read_picture(image)
    if isinstance(image, Image.Image):
        return upright_pixels(image)
    if isinstance(image, Tensor):
        if image.dim() != 3 or image.shape[0] != 3:
            raise _refused("tensor", tuple(image.shape), "(3, H, W), or (N, 3, H, W) for a batch")
        values = image.detach().cpu().permute(1, 2, 0)
        image = values.float().numpy() if values.is_floating_point() else values.numpy()
    if not isinstance(image, np.ndarray):
        raise UsageError(
            "not an image", found=type(image).__name__, allowed="a path, a PIL image, an array or a tensor"
        )
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    if image.ndim != 3 or image.shape[2] not in (3, 4) or image.size == 0:
        raise _refused("array", image.shape, "(H, W), (H, W, 3) or (H, W, 4)")
    return np.ascontiguousarray(_eight_bits(image[:, :, :3]))


def as_tensor(pixels: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 to a (3, H, W) uint8 tensor that shares its memory."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _refused(kind: str, shape: tuple[int, ...], allowed: str) -> UsageError:
    return UsageError(f"an {kind} of this shape is no image", found=shape, allowed=allowed)


def _eight_bits(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        return _from_sixteen_bits(values)
    if np.issubdtype(values.dtype, np.floating):
        low, high = float(values.min()), float(values.max())
        if 0 <= low <= high <= 1:
            return np.rint(values * 255).astype(np.uint8)
        found = f"{values.dtype} from {low:g} to {high:g}"
    else:
        found = str(values.dtype)
    raise UsageError(
        "an image of these numbers is ambiguous", found=found, allowed="uint8, uint16, or floats in [0, 1]"
    )


def _from_sixteen_bits(values: np.ndarray) -> np.ndarray:
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
