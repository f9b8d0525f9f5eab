"""Find the row of a new class from the labeled pixels of a few pictures, without training.

An embedding head's row is the mean direction of the class's pixels. Its table has no offset per class, so
what keeps the new class from swallowing others is its direction: it is turned away from the pixels that it
would take wrongly, as far as gives the best IoU on the pictures given.

A softmax head's row starts from the class that the pixels are taken for so far, and adds the difference of
means; how steeply, and from which threshold on, is what gives the best IoU on the pictures given.

With `tune`, the row alone is then fitted to these pixels (logistic regression against the best known class,
L-BFGS), and kept where that is better still.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.heads import EmbeddingHead
from models.segmenter import Segmenter
from pipeline.classes.examples import Examples

_TURNS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
_STEEPNESS = (1.0, 3.0, 10.0, 30.0)
_QUANTILES = (0.0, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5)
_STEPS = 60  # of L-BFGS


class NewRow(NamedTuple):
    """The rows of the head's tables by name, and the IoU of the class on the pictures it came from."""

    rows: dict[str, Tensor]
    iou: float


@torch.no_grad()
def find_row(segmenter: Segmenter, examples: Examples, *, temperature: float, tune: bool = False) -> NewRow:
    """Return the row of the new class.

    Args:
        segmenter: whose head gets the row.
        examples: the pixels.
        temperature: of the loss, by which distances are divided; only tuning depends on it.
        tune: fit the row afterwards.
    """
    head = segmenter.head
    if isinstance(head, EmbeddingHead):
        row, iou = _direction(examples)
        if tune:
            row, iou = _better((row, iou), _fitted(examples, row, _distance_score, 1 / temperature), examples)
        length = head.class_table.norm(dim=1).mean()  # as its neighbors have: steps of fine-tuning are alike
        return NewRow({"head.class_table": (F.normalize(row, dim=0) * length).cpu()}, iou)
    weight, bias = head.classifier.weight[:, :, 0, 0], head.classifier.bias
    assert bias is not None
    row, iou = _offset_row(examples, torch.cat([weight, bias[:, None]], dim=1))
    if tune:
        row, iou = _better((row, iou), _fitted(examples, row, _linear_score, 1.0), examples, _linear_score)
    return NewRow(
        {"head.classifier.weight": row[:-1, None, None].cpu(), "head.classifier.bias": row[-1].cpu()}, iou
    )


def _distance_score(outputs: Tensor, row: Tensor) -> Tensor:
    """Minus the distance, formed without a (P, D) difference."""
    unit = F.normalize(row, dim=0)
    return -(outputs.square().sum(dim=1) + 1 - 2 * outputs @ unit).clamp(min=1e-12).sqrt()


def _linear_score(outputs: Tensor, row: Tensor) -> Tensor:
    return outputs @ row[:-1] + row[-1]


def _direction(examples: Examples) -> tuple[Tensor, float]:
    weights = examples.weights[:, None]
    mean = F.normalize((examples.outputs * weights)[examples.positive].sum(dim=0), dim=0)
    wrong = (_distance_score(examples.outputs, mean) > examples.best) & ~examples.positive
    away = torch.zeros_like(mean)
    if wrong.any():
        away = mean - F.normalize((examples.outputs * weights)[wrong].sum(dim=0), dim=0)
    rows = [F.normalize(mean + turn * away, dim=0) for turn in _TURNS]
    return max(
        ((row, examples.iou(_distance_score(examples.outputs, row))) for row in rows), key=lambda x: x[1]
    )


def _offset_row(examples: Examples, table: Tensor) -> tuple[Tensor, float]:
    """(K + 1,) weight and bias."""
    positive = examples.outputs[examples.positive]
    start = table[examples.best_ids[examples.positive].mode().values]
    mean = positive.mean(dim=0)
    others = examples.outputs[~examples.positive]
    difference = mean - (others.mean(dim=0) if len(others) else torch.zeros_like(mean))
    difference = difference / difference.square().sum().clamp(min=1e-12)
    along = (positive @ difference).sort().values
    found = []
    for steepness in _STEEPNESS:
        for quantile in _QUANTILES:
            row = start.clone()
            row[:-1] += steepness * difference
            row[-1] -= steepness * along[int(quantile * (len(along) - 1))]
            found.append((row, examples.iou(_linear_score(examples.outputs, row))))
    return max(found, key=lambda x: x[1])


def _fitted(
    examples: Examples, row: Tensor, score: Callable[[Tensor, Tensor], Tensor], factor: float
) -> Tensor:
    """Fit the row: the margin over the best known class is the logit of "this is the new class"."""
    weights = examples.weights / examples.weights.sum()
    with torch.enable_grad():
        fitted = row.clone().requires_grad_()
        optimizer = torch.optim.LBFGS([fitted], max_iter=_STEPS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            margin = (score(examples.outputs, fitted) - examples.best) * factor
            wrong = F.binary_cross_entropy_with_logits(margin, examples.positive.float(), reduction="none")
            total = (wrong * weights).sum() + 1e-4 * (fitted - row).square().sum()
            total.backward()
            return total

        optimizer.step(loss)
    return fitted.detach()


def _better(
    before: tuple[Tensor, float],
    fitted: Tensor,
    examples: Examples,
    score: Callable[[Tensor, Tensor], Tensor] = _distance_score,
) -> tuple[Tensor, float]:
    iou = examples.iou(score(examples.outputs, fitted))
    return (fitted, iou) if iou > before[1] else before
