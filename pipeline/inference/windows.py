"""Run the network over whole pictures or sliding windows, several scales and flips, and average the output.

What is averaged is the network's output before the classes: D numbers a pixel for an embedding head, the
decoded features for a softmax head, whose logits are linear in them. Class scores are never averaged, so
neither memory nor time of the averaging grows with the number of classes. (This is not the average of the
probabilities, which other toolboxes take at C numbers a pixel.)

The average is taken at the stride-4 grid of the network's output, 1/16 of the pixels. Windows begin at
multiples of 4 pixels, so their grids coincide and nothing is resampled. Maps of other scales are resized to
the grid of the scale nearest to 1. The result is upsampled and searched once, in `pipeline.inference.search`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.backbone.backbone import LOW_STRIDE
from models.heads import EmbeddingHead
from models.segmenter import Segmenter, resized_side
from pipeline.runtime.errors import UsageError

SMALLEST_WINDOW = 32


@dataclass(frozen=True, kw_only=True)
class Views:
    """How a picture is shown to the network.

    Attributes:
        window: side of the square windows, in pixels that the network sees (after scaling); None: whole.
        overlap: share of a window that its neighbor covers too.
        scales: factors by which the picture is resized; the averages of all count the same.
        flip: show it mirrored as well.
        batch_size: windows that the network takes at once; changes speed and memory, never the result.

    Raises:
        UsageError: a value out of range.
    """

    window: int | None = None
    overlap: float = 0.25
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.window is not None and self.window < SMALLEST_WINDOW:
            raise UsageError("window is too small", found=self.window, allowed=f"{SMALLEST_WINDOW} and more")
        if not 0 <= self.overlap <= 0.9:
            raise UsageError("overlap is out of range", found=self.overlap, allowed="0 to 0.9")
        if not self.scales or not all(0 < scale <= 8 for scale in self.scales):
            raise UsageError("scales are out of range", found=self.scales, allowed="above 0, up to 8")
        if self.batch_size < 1:
            raise UsageError("batch_size is out of range", found=self.batch_size, allowed="1 and more")


@dataclass(frozen=True)
class _Piece:
    """A window of a view, and where its output is added."""

    pixels: Tensor  # (3, y, x) uint8, or float in [0, 1]
    target: Tensor  # (K, y/4, x/4), a part of the sum
    weights: tuple[Tensor, Tensor]  # (y/4, 1) and (x/4,)
    mirrored: bool


@torch.no_grad()
def averaged_output(segmenter: Segmenter, pictures: Sequence[Tensor], views: Views) -> list[Tensor]:
    """Return each picture's averaged output at stride 4.

    Args:
        segmenter: in evaluation mode.
        pictures: (3, H, W) uint8 each, of any sizes, on any device.
        views: how they are shown.

    Returns:
        (1, K, h, w) float32 each, on the segmenter's device: K is D, or the decoder's channels for a softmax
        head.
    """
    sums: list[dict[float, Tensor]] = [{} for _ in pictures]
    pieces = itertools.chain.from_iterable(
        _pieces(segmenter, picture, views, found) for picture, found in zip(pictures, sums, strict=True)
    )
    for batch in _batches(pieces, views.batch_size):
        output = network_output(segmenter, torch.stack([piece.pixels for piece in batch]))
        for piece, one in zip(batch, output, strict=True):
            down, across = piece.weights
            one = one.flip(-1) if piece.mirrored else one
            piece.target.add_(one * down * across)
    return [_average(found) for found in sums]


def network_output(segmenter: Segmenter, images: Tensor) -> Tensor:
    """Return what is averaged: pixel embeddings, or decoded features for a softmax head.

    Args:
        segmenter: in evaluation mode.
        images: (N, 3, H, W) uint8, or floats in [0, 1], as the backbone is to see them.

    Returns:
        (N, K, ceil(H/4), ceil(W/4)) float32.
    """
    device = next(segmenter.parameters()).device
    images = images.to(device, non_blocking=True)
    images = images if images.is_floating_point() else images.float() / 255
    height, width = (-(-side // LOW_STRIDE) for side in images.shape[-2:])
    features = segmenter.decoder(segmenter.backbone(images))[..., :height, :width]
    return (segmenter.head(features) if isinstance(segmenter.head, EmbeddingHead) else features).float()


def spans(length: int, window: int | None, overlap: float) -> list[tuple[int, int]]:
    """Return where windows begin and end along one side, evenly spread; they begin at multiples of 4.

    Args:
        length: of the side, in pixels.
        window: of the windows; None for one window.
        overlap: least share of a window that its neighbor covers too.
    """
    if window is None or window >= length:
        return [(0, length)]
    window -= window % LOW_STRIDE
    last = -(-(length - window) // LOW_STRIDE)  # where the last one begins, in cells of 4 pixels
    step = max(1, int(window * (1 - overlap)) // LOW_STRIDE)
    number = -(-last // step)  # steps from the first to the last
    starts = [last * index // number * LOW_STRIDE for index in range(number + 1)]
    return [(start, min(start + window, length)) for start in starts]


def blending(places: Sequence[tuple[int, int]], length: int) -> list[Tensor]:
    """Return each window's weights along one side, at stride 4: falling to its ends, in sum 1 everywhere."""
    cells = [(start // LOW_STRIDE, -(-stop // LOW_STRIDE)) for start, stop in places]
    total = torch.zeros(-(-length // LOW_STRIDE), dtype=torch.float64)
    raw = []
    for first, end in cells:
        rising = torch.arange(1, end - first + 1, dtype=torch.float64)
        raw.append(torch.minimum(rising, rising.flip(0)))
        total[first:end] += raw[-1]
    return [(one / total[first:end]).float() for one, (first, end) in zip(raw, cells, strict=True)]


def _pieces(
    segmenter: Segmenter, picture: Tensor, views: Views, sums: dict[float, Tensor]
) -> Iterator[_Piece]:
    """Yield the windows of all views of a picture; puts a sum of each scale's grid into `sums`."""
    parameter = next(segmenter.parameters())
    channels = segmenter.head.class_embeddings.shape[1]
    for scale in dict.fromkeys(views.scales):
        image = _resized(picture, scale * segmenter.input_scale, parameter.device)
        height, width = image.shape[-2:]
        down, across = (_windows(side, segmenter, views) for side in (height, width))
        total = parameter.new_zeros(
            channels, -(-height // LOW_STRIDE), -(-width // LOW_STRIDE), dtype=torch.float32
        )
        sums[scale] = total
        for mirrored in (False, True) if views.flip else (False,):
            shown = image.flip(-1) if mirrored else image
            share = 0.5 if views.flip else 1.0
            for (top, bottom, of_rows), (left, right, of_columns) in itertools.product(down, across):
                rows = slice(top // LOW_STRIDE, -(-bottom // LOW_STRIDE))
                first, end = left // LOW_STRIDE, -(-right // LOW_STRIDE)
                cells = total.shape[-1]
                columns = slice(cells - end, cells - first) if mirrored else slice(first, end)
                weights = (of_columns.flip(0) if mirrored else of_columns).to(total.device)
                yield _Piece(
                    shown[:, top:bottom, left:right],
                    total[:, rows, columns],
                    (of_rows[:, None].to(total.device) * share, weights),
                    mirrored,
                )


def _windows(side: int, segmenter: Segmenter, views: Views) -> list[tuple[int, int, Tensor]]:
    """Where windows begin and end, with their weights; never larger than a backbone of fixed size takes."""
    fixed = segmenter.backbone.image_size
    window = views.window if fixed is None else min(views.window or math.inf, *fixed)
    places = spans(side, None if window is None else int(window), views.overlap)
    return [(*place, weights) for place, weights in zip(places, blending(places, side), strict=True)]


def _resized(picture: Tensor, factor: float, device: torch.device) -> Tensor:
    """Resize as the segmenter itself does: bilinear, antialiased, in floats; unchanged for a factor of 1."""
    if factor == 1:
        return picture
    size = [resized_side(side, factor) for side in picture.shape[-2:]]
    values = picture[None].to(device).float() / 255
    return F.interpolate(values, size=size, mode="bilinear", antialias=True, align_corners=False)[0]


def _batches(pieces: Iterator[_Piece], size: int) -> Iterator[list[_Piece]]:
    """Group neighbors of one shape and type, in order: sums are formed alike for every batch size."""
    batch: list[_Piece] = []
    for piece in pieces:
        if batch and (len(batch) == size or not _alike(piece.pixels, batch[0].pixels)):
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _average(sums: dict[float, Tensor]) -> Tensor:
    """Return the mean over the scales, on the grid of the one nearest to 1."""
    number = len(sums)
    chosen = min(sums, key=lambda scale: abs(scale - 1))
    mean = sums.pop(chosen)[None]
    for other in list(sums):
        values = sums.pop(other)[None]
        antialias = values.shape[-1] > mean.shape[-1]
        mean += F.interpolate(
            values, size=mean.shape[-2:], mode="bilinear", align_corners=False, antialias=antialias
        )
    return mean.div_(number)
