"""Hold an exported model to the product's own prediction, pixel by pixel.

Class ids must be equal wherever the two best classes differ by more than `TIE`, and on `SHARE` of all pixels.
Scores are distances (embedding head), or logits in units of the largest one where that exceeds 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.upsampling import rows_of_pixels
from pipeline.inference.images import as_tensor
from pipeline.inference.predictor import Predictor
from pipeline.inference.windows import Views, averaged_output
from pipeline.runtime.errors import KilosegError, MemoryLimitError

TIE = 1e-5
SHARE = 0.9999
CONFIDENCE = 0.01  # largest difference of confidences
_LOOKED_AT = 2_000  # differing pixels of a picture, at most

Run = Callable[[np.ndarray], tuple[np.ndarray, ...]]
"""Map (N, 3, H, W) uint8 to what `SegmenterGraph` returns."""


@dataclass
class Agreement:
    """How far an exported model agrees with the product.

    Attributes:
        pixels: compared.
        different: of another class.
        margin: the two best classes' widest difference at such a pixel.
        confidence: the largest difference of confidences, at pixels of the same class.
    """

    pixels: int = 0
    different: int = 0
    margin: float = 0.0
    confidence: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether the model may be used in place of the product."""
        return (
            self.different <= (1 - SHARE) * self.pixels
            and self.margin <= TIE
            and self.confidence <= CONFIDENCE
        )

    def __str__(self) -> str:
        text = f"{self.different:,} of {self.pixels:,} pixels of another class"
        return text + (f", the widest margin {self.margin:.1e}" if self.different else "")


def verify(run: Run, predictor: Predictor, shapes: Sequence[tuple[int, int, int]]) -> Agreement:
    """Compare an exported model with the product on generated pictures.

    Args:
        run: the exported model.
        predictor: of the same checkpoint.
        shapes: batch, height and width of each trial.

    Raises:
        KilosegError: they do not agree.
        MemoryLimitError: a picture does not fit.
    """
    found = Agreement()
    for seed, (batch, height, width) in enumerate(shapes):
        pictures = list(_pictures(batch, height, width, seed))
        results = run(np.stack([picture.transpose(2, 0, 1) for picture in pictures]))
        for index, picture in enumerate(pictures):
            _compare(found, predictor, picture, [result[index] for result in results])
    if not found.holds:
        raise KilosegError(
            "the exported model does not give the product's prediction; it was not kept",
            found=f"{found}; confidence differs by up to {found.confidence:.3f}",
            allowed=f"equal where the two best classes differ by more than {TIE:g}, and on {SHARE:.2%}; "
            f"confidence within {CONFIDENCE}",
            hint="train some more if the network is untrained, choose another --format, or report it",
        )
    return found


def _pictures(batch: int, height: int, width: int, seed: int) -> Iterator[np.ndarray]:
    """(height, width, 3) uint8: patches of color of several sizes, with noise."""
    random = np.random.default_rng(seed)
    for _ in range(batch):
        total = np.zeros((height, width, 3))
        for side in (2, 7, 31):
            coarse = random.uniform(-1, 1, (height // side + 1, width // side + 1, 3))
            total += coarse.repeat(side, axis=0).repeat(side, axis=1)[:height, :width]
        yield (128 + 60 * total).clip(0, 255).astype(np.uint8)


def _compare(
    found: Agreement, predictor: Predictor, picture: np.ndarray, results: Sequence[np.ndarray]
) -> None:
    try:
        expected = predictor(picture)
    except MemoryLimitError as error:  # its fix, a window, is none of an exported graph
        hint = "free some memory, or fix a smaller --size"
        raise MemoryLimitError(error.what, where=error.where, found=error.found, hint=hint) from error
    same = results[0] == expected.class_map
    found.pixels += same.size
    found.different += int((~same).sum())
    if not same.all():
        found.margin = max(found.margin, _widest_margin(predictor, picture, np.flatnonzero(~same)))
    if len(results) > 1 and same.any():
        difference = np.abs(results[1] - expected.confidence.astype(np.float32))[same]
        found.confidence = max(found.confidence, float(difference.max()))


@torch.no_grad()
def _widest_margin(predictor: Predictor, picture: np.ndarray, places: np.ndarray) -> float:
    output = averaged_output(predictor.segmenter, [as_tensor(picture)], Views())[0]
    chosen = torch.from_numpy(places[:_LOOKED_AT])
    rows = rows_of_pixels(output.cpu(), picture.shape[:2], chosen).double()
    scores = class_scores(predictor, rows)
    best = scores.topk(min(2, scores.shape[1]), dim=1).values
    scale = 1.0 if predictor.search.bias is None else max(1.0, float(scores.abs().max()))
    return float((best[:, 0] - best[:, -1]).max()) / scale


def class_scores(predictor: Predictor, rows: Tensor) -> Tensor:
    """Return minus the distances, or the logits, of (P, D) rows and all classes: (P, C) float64."""
    weight = predictor.search.weight.double().cpu()
    if predictor.search.bias is None:
        return -torch.cdist(rows, weight, compute_mode="donot_use_mm_for_euclid_dist")
    return rows @ weight.T + predictor.search.bias.double().cpu()
