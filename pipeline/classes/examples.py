"""Read the labeled pixels of a few pictures: the network's output there, and the best known class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.heads import EmbeddingHead
from models.nearest import nearest_classes
from models.segmenter import Segmenter
from models.upsampling import rows_of_pixels
from pipeline.data.store.images import open_image
from pipeline.data.store.listing import list_files
from pipeline.inference.images import SUFFIXES, as_tensor, read_picture
from pipeline.inference.windows import Views, averaged_output
from pipeline.runtime.device import is_out_of_memory
from pipeline.runtime.errors import DataError, MemoryLimitError

_PIXELS = 20_000  # taken of each picture from the class and from the rest, at most, evenly spread
_SCORES = 2**20  # held at a time


@dataclass(frozen=True)
class Examples:
    """Pixels of all pictures, P in all.

    Attributes:
        outputs: (P, K) embeddings or decoded features, upsampled.
        positive: (P,) bool, of the new class.
        weights: (P,) how many pixels each stands for.
        best: (P,) the known classes' largest score: minus the distance, or a logit.
        best_ids: (P,) its train id.
        pictures: how many show the class.
    """

    outputs: Tensor
    positive: Tensor
    weights: Tensor
    best: Tensor
    best_ids: Tensor
    pictures: int

    def iou(self, scores: Tensor) -> float:
        """IoU of the new class if pixels have these scores for it."""
        found = scores > self.best
        union = self.weights[found | self.positive].sum()
        return float(self.weights[found & self.positive].sum() / union)


def find_pairs(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Return pictures with the masks of the same name, but .png.

    Raises:
        DataError: no such pair.
    """
    pictures = list_files(images, sorted(SUFFIXES)) if images.is_dir() else []
    pairs = [(path, masks / path.relative_to(images).with_suffix(".png")) for path in pictures]
    pairs = [(picture, mask) for picture, mask in pairs if mask.is_file() and mask != picture]
    if not pairs:
        raise DataError(
            "no picture with a mask",
            where=f"{images} and {masks}",
            found=f"{len(pictures)} picture{'s' * (len(pictures) != 1)}",
            allowed="masks NAME.png for pictures NAME.jpg, in which the class's pixels are not 0",
        )
    return pairs


@torch.no_grad()
def read_examples(segmenter: Segmenter, pairs: list[tuple[Path, Path]]) -> Examples:
    """Read pictures and masks and run the network on them.

    Args:
        segmenter: in evaluation mode.
        pairs: from `find_pairs`.

    Raises:
        DataError: a file that cannot be read, a mask of another size, or no pixel of the class at all.
        MemoryLimitError: a picture too large for the device.
    """
    outputs, positive, weights = [], [], []
    pictures = 0
    for picture, mask in pairs:
        pixels = read_picture(picture)
        inside = _read_mask(mask, pixels.shape[:2])
        pictures += bool(inside.any())
        output = _output(segmenter, pixels, picture)
        for flag in (True, False):
            places = np.flatnonzero(inside == flag)
            if len(places) == 0:
                continue
            taken = places[np.linspace(0, len(places) - 1, min(len(places), _PIXELS)).round().astype(int)]
            chosen = torch.from_numpy(taken).to(output.device)
            outputs.append(rows_of_pixels(output, pixels.shape[:2], chosen))
            positive.append(torch.full((len(taken),), flag, device=output.device))
            weights.append(torch.full((len(taken),), len(places) / len(taken), device=output.device))
    if not pictures:
        raise DataError(
            "no pixel of the class", where=pairs[0][1].parent, allowed="pixels that are not 0 in a mask"
        )
    rows = torch.cat(outputs)
    best, best_ids = _best_known(segmenter, rows)
    return Examples(rows, torch.cat(positive), torch.cat(weights), best, best_ids, pictures)


def _output(segmenter: Segmenter, pixels: np.ndarray, picture: Path) -> Tensor:
    try:
        return averaged_output(segmenter, [as_tensor(pixels)], Views())[0]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryLimitError(
            "out of memory",
            where=f"{picture}, {pixels.shape[1]} x {pixels.shape[0]} (width x height)",
            found=str(error).partition("\n")[0],
            hint="cut the part with the class out of the picture, and of its mask alike",
        ) from error


def _read_mask(path: Path, size: tuple[int, ...]) -> np.ndarray:
    with open_image(path, kind="mask") as opened:
        values = np.asarray(opened.convert("L") if opened.mode in ("1", "LA", "RGB", "RGBA") else opened)
    if values.shape != size:
        raise DataError(
            "a mask of another size than its picture",
            where=path,
            found=f"{values.shape[1]} x {values.shape[0]} (width x height)",
            allowed=f"{size[1]} x {size[0]}, the upright picture's",
        )
    return values != 0


def _best_known(segmenter: Segmenter, rows: Tensor) -> tuple[Tensor, Tensor]:
    head = segmenter.head
    if isinstance(head, EmbeddingHead):
        classes = head.class_embeddings
        ids = nearest_classes(rows, classes, 1)[:, 0]
        return -(rows - classes[ids]).norm(dim=1), ids
    weight, bias = head.classifier.weight[:, :, 0, 0], head.classifier.bias
    assert bias is not None
    found = [
        torch.addmm(bias, part, weight.T).max(dim=1) for part in rows.split(max(1, _SCORES // len(weight)))
    ]
    return torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])
