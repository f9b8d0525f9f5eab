"""One network from bytes to class ids, as a graph whose memory does not grow with the number of classes.

Everything is inside: scaling of the pixels, mean and standard deviation, padding, backbone, decoder, head,
and the search. The search takes pixels in pieces of a fixed size: it interpolates their embeddings from the
map at stride 4, forms the scores of that piece only, and keeps class id and confidence. A scan runs the
pieces, so that batch, height and width stay free. Unrolled, they are written out, for one fixed size.

The nearest class is the largest e.w - |w|^2 / 2, which needs no distances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan

from models.backbone import LOW_STRIDE
from models.heads import EmbeddingHead
from models.segmenter import Segmenter, resized_side

_SCORES = 2**20  # of a piece: 4 MiB
_FEWEST, _MOST = 256, 4096  # pixels of a piece
_BANDS = 4  # a band is so much larger: there are fewer of them to write out


class SegmenterGraph(nn.Module):
    """Map pictures to class ids, and if wanted to confidences.

    Args:
        segmenter: the trained network; it is put into evaluation mode and frozen.
        temperature: divides the similarities of an embedding head, as in its loss.
        similarity: "distance" or "cosine", as in its loss; only the confidence depends on it.
        confidence: give the softmax probability of the class found too.
        unrolled: write the pieces out instead of scanning them.
    """

    weight: Tensor
    offset: Tensor

    def __init__(
        self,
        segmenter: Segmenter,
        *,
        temperature: float = 1.0,
        similarity: str = "distance",
        confidence: bool = False,
        unrolled: bool = False,
    ) -> None:
        super().__init__()
        self.segmenter = segmenter.eval().requires_grad_(False)
        self.temperature, self.similarity = temperature, similarity
        self.confidence, self.unrolled = confidence, unrolled
        self.embeds = isinstance(segmenter.head, EmbeddingHead)
        weight = segmenter.head.class_embeddings.detach()  # (C, D)
        bias = segmenter.head.bias
        offset = -weight.square().sum(dim=1) / 2 if bias is None else bias.detach()
        self.register_buffer("weight", weight.T.contiguous())  # (D, C)
        self.register_buffer("offset", offset.clone())
        self.pixels = max(_FEWEST, min(_MOST, _SCORES // len(weight)))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Predict.

        Args:
            images: (N, 3, H, W) uint8 RGB.

        Returns:
            (N, H, W) int32 class ids from 1, as `pipeline predict` writes them; with `confidence` also
            (N, H, W) float32.
        """
        height, width = images.shape[-2:]
        scale = self.segmenter.input_scale
        shown = [resized_side(side, scale) for side in (height, width)]
        pixels = images.float() / 255
        if scale != 1:
            pixels = F.interpolate(pixels, size=shown, mode="bilinear", antialias=True, align_corners=False)
        decoded = self.segmenter.decoder(self.segmenter.backbone(pixels))
        output = (self.segmenter.head(decoded) if self.embeds else decoded).float()
        # cells of the map beyond these show padding
        cells = tuple((side + LOW_STRIDE - 1) // LOW_STRIDE for side in shown)
        upsampling = Upsampling(
            stored=(output.shape[-2], output.shape[-1]),
            low_res=cells,
            full_res=(height, width),
        )
        return (self._unrolled if self.unrolled else self._scanned)(output, upsampling)

    def _scanned(self, output: Tensor, upsampling: Upsampling) -> tuple[Tensor, ...]:
        """Search pieces of pixels, whatever the shape of the pictures."""
        rows = output.permute(0, 2, 3, 1).flatten(0, 2)  # (N * h * w, D)
        size = (output.shape[0], *upsampling.full_res)
        total = math.prod(size)
        pieces = output.new_ones((total + self.pixels - 1) // self.pixels, dtype=torch.int64)
        firsts = (pieces.cumsum(0) - 1) * self.pixels  # torch.export.save refuses an arange of a free length

        def step(carry: Tensor, first: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            return carry.clone(), self._search(upsampling(rows, first + torch.arange(self.pixels)))

        found = scan(step, torch.zeros(1), firsts)[1]
        return tuple(one.reshape(-1)[:total].view(size) for one in found)

    def _unrolled(self, output: Tensor, upsampling: Upsampling) -> tuple[Tensor, ...]:
        """Search bands of rows, one after the other."""
        height, width = upsampling.full_res
        step = max(1, _BANDS * self.pixels // width)
        found = []
        for first in range(0, height, step):
            band = upsampling.band(output, first, min(first + step, height))
            rows = band.permute(0, 2, 3, 1)  # (N, rows, W, D)
            found.append([one.view(rows.shape[:3]) for one in self._search(rows.flatten(0, 2))])
        return tuple(torch.cat(parts, dim=1) for parts in zip(*found, strict=True))

    def _search(self, embeddings: Tensor) -> tuple[Tensor, ...]:
        """Return class ids and confidence of the pixels of a piece, (P, D) to (P,) each."""
        products = embeddings @ self.weight
        scores = products + self.offset
        if not self.confidence:
            return (scores.argmax(dim=1).to(torch.int32) + 1,)
        best, place = scores.max(dim=1, keepdim=True)
        if not self.embeds:
            logits, largest = scores, best
        elif self.similarity == "cosine":
            logits = products / self.temperature
            largest = logits.gather(1, place)
        else:
            squares = embeddings.square().sum(dim=1, keepdim=True)  # |e - w|^2 = |e|^2 - 2 (e.w - |w|^2 / 2)
            logits = (squares - 2 * scores).clamp(min=0).sqrt() / -self.temperature
            largest = (squares - 2 * best).clamp(min=0).sqrt() / -self.temperature
        confidence = 1 / (logits - largest).exp().sum(dim=1)
        return place[:, 0].to(torch.int32) + 1, confidence


@dataclass(frozen=True, kw_only=True)
class Upsampling:
    """Interpolate some pixels of maps at low resolution, as `F.interpolate` without aligned corners.

    Attributes:
        stored: height and width of the maps, as they lie in memory.
        low_res: of the part of them that counts.
        full_res: of the pictures.
    """

    stored: Sequence[int]
    low_res: Sequence[int]
    full_res: Sequence[int]

    def __call__(self, rows: Tensor, pixels: Tensor) -> Tensor:
        """Return the (P, D) values of pixels, of anything for those beyond the last.

        Args:
            rows: (N * h * w, D), of the maps as stored.
            pixels: (P,) int64, counted over all pictures.
        """
        height, width = self.full_res
        line = pixels // width
        image = line // height
        above, below, down = self._neighbors(line - image * height, 0)
        left, right, across = self._neighbors(pixels - line * width, 1)
        first = image * (self.stored[0] * self.stored[1])
        above, below = first + above * self.stored[1], first + below * self.stored[1]

        def between(one: Tensor, other: Tensor) -> Tensor:
            of_one, of_other = (rows[index.clamp(max=len(rows) - 1)] for index in (one, other))
            return of_one + across * (of_other - of_one)

        upper, lower = between(above + left, above + right), between(below + left, below + right)
        return upper + down * (lower - upper)

    def band(self, output: Tensor, first: int, end: int) -> Tensor:
        """Interpolate rows `first` to `end` of each picture from (N, D, h, w): (N, D, end - first, W)."""
        above, below, down = self._neighbors(torch.arange(first, end), 0)
        counted = output[..., : self.low_res[1]]
        upper, lower = counted.index_select(2, above), counted.index_select(2, below)
        size = (end - first, self.full_res[1])  # across only: each row stays its own
        mixed = upper + down * (lower - upper)
        return F.interpolate(mixed, size=size, mode="bilinear", align_corners=False)

    def _neighbors(self, places: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the cells before and after places along a side, and the share of the one after."""
        cells = self.low_res[side]
        position = ((places.float() + 0.5) * (cells / self.full_res[side]) - 0.5).clamp(min=0)
        first = position.long()
        return first, (first + 1).clamp(max=cells - 1), (position - first)[:, None]
