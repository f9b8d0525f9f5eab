"""Choose which evaluated images are kept as pictures, and draw them side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from pipeline.data.loading.batch import Batch
from pipeline.data.loading.palette import colorize, picture_colors
from pipeline.evaluation.picture_file import Picture, PictureWriter

POOL = 200
"""Images drawn at random, with a fixed seed: the report's best and worst are the best and worst of them."""
_SEED = 0
_RIGHT = (226, 228, 231)  # a right pixel in a picture of errors
_GAP = 6


def drawn_positions(total: int, wanted: int) -> list[int]:
    """Return positions of the images to keep, in the order drawn; the same for every model.

    Args:
        total: how many images are evaluated.
        wanted: of each kind (random, best, worst); 0 for none at all.
    """
    if not wanted:
        return []
    order = np.random.default_rng(_SEED).permutation(total)
    return [int(one) for one in order[: max(POOL, wanted)]]


class PictureKeeper:
    """Keep the drawn images of an evaluation.

    Args:
        writer: of the file.
        positions: of the images in the order of evaluation, as `drawn_positions` gives them.
    """

    def __init__(self, writer: PictureWriter, positions: Sequence[int]) -> None:
        self._writer, self._positions, self._seen = writer, positions, 0
        self._chosen = frozenset(positions)
        self._ids: dict[int, int] = {}

    def add(self, batch: Batch, prediction: Tensor) -> None:
        """Go through the images of a batch and its prediction (N, H, W), and keep the drawn ones."""
        for index, image_id in enumerate(batch.image_ids):
            if self._seen in self._chosen:
                image = batch.images[index].permute(1, 2, 0).numpy()
                class_ids = (1 + one[index].numpy() for one in (batch.target, prediction))
                self._writer.add(int(image_id), image, *class_ids)
                self._ids[self._seen] = int(image_id)
            self._seen += 1

    def image_ids(self) -> list[int]:
        """Return the ids of the kept images in the order in which they were drawn."""
        return [self._ids[position] for position in self._positions if position in self._ids]


def side_by_side(picture: Picture, *, scale: int = 1) -> Image.Image:
    """Draw image, truth, prediction and errors side by side, with one palette.

    Among the errors a right pixel is gray, a wrong one has the color of what was predicted; unlabeled pixels
    are white.

    Args:
        picture: what to draw.
        scale: side of the square that each pixel becomes.
    """
    truth, prediction = (ids.astype(np.int64) for ids in (picture.truth, picture.prediction))
    colors = picture_colors(*(np.setdiff1d(ids, 0).tolist() for ids in (truth, prediction)))
    panels = [picture.photograph, *(colorize(ids - 1, colors) for ids in (truth, prediction))]
    errors = panels[-1].copy()
    errors[(truth == prediction) & (truth > 0)] = _RIGHT
    panels = [one.repeat(scale, 0).repeat(scale, 1) for one in (*panels, errors)]
    gap = np.full((len(panels[0]), _GAP, 3), 255, np.uint8)
    return Image.fromarray(np.concatenate(list(_between(panels, gap)), axis=1))


def sheet(pictures: Sequence[Picture]) -> Image.Image:
    """Draw pictures below one another, each as `side_by_side` does."""
    rows = [side_by_side(picture) for picture in pictures]
    width, height = max(row.width for row in rows), sum(row.height + _GAP for row in rows) - _GAP
    whole, top = Image.new("RGB", (width, height), "white"), 0
    for row in rows:
        whole.paste(row, (0, top))
        top += row.height + _GAP
    return whole


def _between(panels: Sequence[np.ndarray], gap: np.ndarray) -> Iterator[np.ndarray]:
    for position, panel in enumerate(panels):
        if position:
            yield gap
        yield panel
