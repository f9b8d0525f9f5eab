"""Find each pixel's class and its probability at full resolution, a band of rows at a time.

The map at stride 4 is upsampled for the rows of one band only, and scores exist for one tile of pixels x
classes, so that memory beyond the result is constant in the size of the picture and in the classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.compiled.search import Softmax, can_search, search_bands
from models.embeddings import WORK_BYTES, Similarity, full_precision
from models.heads import EmbeddingHead, SoftmaxHead
from models.implementation import implementation_for
from models.nearest import nearest_classes
from models.tiled.search import class_keys

_TILE = 2**19  # scores held at a time: 2 MiB, which caches like
_ROWS = 256  # pixels of a tile, at least


class ClassSearch:
    """The search among some classes of a head.

    Args:
        head: the trained head.
        train_ids: the classes to search, ascending; None for all.
        temperature: divides the similarity of an embedding head, as in its loss.
        similarity: "distance" or "cosine", as in its loss.
        work_bytes: budget of the upsampled band, and of a softmax head's upsampled logits.
    """

    def __init__(
        self,
        head: EmbeddingHead | SoftmaxHead,
        train_ids: Sequence[int] | None = None,
        *,
        temperature: float = 1.0,
        similarity: str = "distance",
        work_bytes: int = WORK_BYTES,
    ) -> None:
        self.temperature, self.similarity, self.work_bytes = temperature, similarity, work_bytes
        self.bias: Tensor | None = None
        if isinstance(head, EmbeddingHead):
            weight = head.class_embeddings.detach()  # (C, D)
        else:
            weight = head.classifier.weight.detach()[:, :, 0, 0]  # (C, K)
            assert head.classifier.bias is not None
            self.bias = head.classifier.bias.detach()
        ids = torch.arange(len(weight)) if train_ids is None else torch.as_tensor(train_ids)
        self.train_ids = ids.to(weight.device)
        if train_ids is not None:
            weight = weight[self.train_ids]
            self.bias = None if self.bias is None else self.bias[self.train_ids]
        self.weight = weight

    @torch.no_grad()
    def __call__(
        self, output: Tensor, size: tuple[int, int], *, min_confidence: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search one picture.

        Args:
            output: (1, K, h, w) embeddings or decoded features at stride 4.
            size: (H, W) of the result.
            min_confidence: pixels of a smaller probability become unlabeled.

        Returns:
            (H, W) uint16 class ids, 0 for unlabeled; and (H, W) float16 softmax probability, among the
            classes searched, of the class found.
        """
        class_map = np.empty(size, dtype=np.uint16)
        confidence = np.empty(size, dtype=np.float16)
        for rows, places, probability in self._compiled(output, size) or self._found(output, size):
            class_ids = self.train_ids[places] + 1
            if min_confidence > 0:
                class_ids[probability < min_confidence] = 0
            shape = (rows.stop - rows.start, size[1])
            class_map[rows] = class_ids.view(shape).cpu().numpy()
            confidence[rows] = probability.view(shape).cpu().numpy()
        return class_map, confidence

    def _compiled(self, output: Tensor, size: tuple[int, int]) -> Iterator[_Band] | None:
        """Return what `_found` does, of compiled code; None where it does not apply."""
        if implementation_for(output, self.weight, fused_knows=self.bias is None) != "compiled":
            return None
        similarity = cast(Similarity, self.similarity if self.bias is None else "dot")
        keys = class_keys(output[0].flatten(1).T, self.weight, self.bias, similarity)
        if not can_search(output.shape[2:], size, keys, self.work_bytes):
            return None
        softmax = Softmax(similarity, self.temperature if self.bias is None else 1.0)
        bands = search_bands(output[0], keys, size, softmax=softmax, work_bytes=self.work_bytes)
        return ((band.rows, band.ids.flatten(), band.probability.flatten()) for band in bands)

    def _found(self, output: Tensor, size: tuple[int, int]) -> Iterator[_Band]:
        """Yield bands of rows, and the place in the table and the probability of each of their pixels."""
        find = self._nearest if self.bias is None else self._largest
        for rows in self._bands(size):
            low_res, upsample = _rows_of(output, size, rows)
            yield rows, *find(low_res, upsample, (rows.stop - rows.start, size[1]))

    def _bands(self, size: tuple[int, int]) -> Iterator[slice]:
        channels = self.weight.shape[1] if self.bias is None else 1
        height = max(1, self.work_bytes // (4 * channels * size[1]))
        for first in range(0, size[0], height):
            yield slice(first, min(first + height, size[0]))

    def _nearest(self, low_res: Tensor, upsample: Upsample, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the place in the table and the probability of each pixel's nearest class: (P,) each."""
        pixels = upsample(low_res)[0].flatten(1).T  # (P, D)
        found = nearest_classes(pixels, self.weight, 1, work_bytes=self.work_bytes)[:, 0]
        return found, self._probability(pixels, found)

    def _probability(self, pixels: Tensor, found: Tensor) -> Tensor:
        """1 / sum over classes of exp(logit - logit of the class found), a tile at a time: (P,).

        The class found has the largest logit, so no exponential exceeds 1 and one pass suffices.
        """
        keys = self._keys(self.weight)
        rows = max(_ROWS, _TILE // len(keys))
        columns = max(1, _TILE // rows)
        total = pixels.new_zeros(len(pixels))
        with full_precision(pixels):
            for first in range(0, len(pixels), rows):
                queries = self._queries(pixels[first : first + rows])
                best = (queries * keys[found[first : first + rows]]).sum(dim=1, keepdim=True)
                best = self._scores(best)
                for start in range(0, len(keys), columns):
                    scores = self._scores(queries @ keys[start : start + columns].T)
                    total[first : first + rows] += torch.sub(best, scores, out=scores).exp_().sum(dim=1)
        return total.clamp_(min=1).reciprocal_()

    def _keys(self, classes: Tensor) -> Tensor:
        """Rows whose product with `_queries` is a negative inner product, or a squared distance.

        |e - w|^2 = |e|^2 + |w|^2 - 2 e.w is one product of (e, 1, |e|^2) and (-2 w, |w|^2, 1). The
        temperature is divided out here, where it costs nothing.
        """
        if self.similarity == "cosine":
            return classes / -self.temperature
        ones = classes.new_ones(len(classes), 1)
        keys = torch.cat([-2 * classes, classes.square().sum(dim=1, keepdim=True), ones], dim=1)
        return keys / self.temperature**2

    def _queries(self, pixels: Tensor) -> Tensor:
        if self.similarity == "cosine":
            return pixels.contiguous()
        ones = pixels.new_ones(len(pixels), 1)
        return torch.cat([pixels, ones, pixels.square().sum(dim=1, keepdim=True)], dim=1)

    def _scores(self, products: Tensor) -> Tensor:
        """Negative logits from products, in place."""
        return products if self.similarity == "cosine" else products.clamp_(min=0).sqrt_()

    def _largest(self, low_res: Tensor, upsample: Upsample, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the place and the probability of each pixel's largest logit: (P,) each.

        Logits are formed at low resolution and upsampled, a slice of the classes at a time.
        """
        assert self.bias is not None
        pixels = size[0] * size[1]
        best = low_res.new_full((pixels,), -torch.inf)
        place = torch.zeros(pixels, dtype=torch.int64, device=low_res.device)
        total = torch.zeros_like(best)  # sum of exp(logit - best)
        classes = max(1, self.work_bytes // (8 * pixels))
        for first in range(0, len(self.weight), classes):
            part = slice(first, first + classes)
            logits = F.conv2d(low_res, self.weight[part, :, None, None], self.bias[part])
            logits = upsample(logits)[0].flatten(1)  # (C', P)
            value, index = logits.max(dim=0)  # of equal values the first
            place = torch.where(value > best, index + first, place)
            largest = torch.maximum(best, value)
            total.mul_((best - largest).exp_()).add_(logits.sub_(largest).exp_().sum(dim=0))
            best = largest
        return place, total.reciprocal_()


_Band = tuple[slice, Tensor, Tensor]
Upsample = Callable[[Tensor], Tensor]


def _rows_of(output: Tensor, size: tuple[int, int], rows: slice) -> tuple[Tensor, Upsample]:
    """Return the part of a map at stride 4 that some rows need, and what upsamples it to them.

    As `F.interpolate(mode="bilinear", align_corners=False)` of the whole map, cut to the rows.
    """
    height = output.shape[-2]
    if rows == slice(0, size[0]):
        return output, lambda part: F.interpolate(part, size=size, mode="bilinear", align_corners=False)
    centers = torch.arange(rows.start, rows.stop, device=output.device, dtype=torch.float32) + 0.5
    positions = (centers * (height / size[0]) - 0.5).clamp_(min=0)
    above = positions.long().clamp_(max=height - 1)
    below = (above + 1).clamp_(max=height - 1)
    share = (positions - above).clamp_(0, 1)[:, None]  # of the row below
    first, end = int(above[0]), int(below[-1]) + 1

    def upsample(part: Tensor) -> Tensor:
        wide = F.interpolate(
            part, size=(end - first, size[1]), mode="bilinear", align_corners=False
        )  # across only: each row stays its own
        return torch.lerp(wide[:, :, above - first], wide[:, :, below - first], share)

    return output[:, :, first:end], upsample
