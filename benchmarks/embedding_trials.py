"""Try what is not in the product: changes of the embedding head's training, put in around a training.

None of them changes how a class is found: the largest cosine wins whatever the temperature, the margin or the
length of a pixel's embedding. So a trial's checkpoint is evaluated as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from models.heads import EmbeddingHead
from models.losses.exact import exact_cross_entropy
from models.segmenter import Segmenter
from models.upsampling import full_resolution_rows
from pipeline.config.schema import LossSettings
from pipeline.data.loading.batch import IGNORE_INDEX
from pipeline.train_step import loss
from pipeline.train_step.loss import Classes
from pipeline.training import trainer

CrossEntropy = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""Of an output (N, D, h, w), class embeddings (C, D), a target (N, H, W) and the temperature."""


@contextmanager
def with_loss(cross_entropy: CrossEntropy) -> Iterator[None]:
    """Train with another cross-entropy; the separation of the classes is as before."""

    def of_maps(
        output: Tensor, classes: Classes, target: Tensor, settings: LossSettings, generator: object
    ) -> Tensor:
        return cross_entropy(output, classes.embeddings, target, settings.temperature)

    with patch.object(loss, "map_cross_entropy", of_maps):
        yield


class LearnedTemperature:
    """Learn the logarithm of the temperature by plain gradient descent at a rate of its own.

    Args:
        rate: of the logarithm.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.logarithm: Tensor | None = None

    def __call__(self, output: Tensor, classes: Tensor, target: Tensor, temperature: float) -> Tensor:
        """Take the step that the last backward pass asks for; return the loss at the new temperature."""
        if self.logarithm is None:
            self.logarithm = torch.tensor(temperature).log().requires_grad_()
        if self.logarithm.grad is not None:
            with torch.no_grad():
                self.logarithm -= self.rate * self.logarithm.grad
            self.logarithm.grad = None
        scaled = output * (-self.logarithm).exp()
        return exact_cross_entropy(
            scaled, classes, target, similarity="dot", temperature=1.0, ignore_index=IGNORE_INDEX
        )


def with_margin(margin: float) -> CrossEntropy:
    """Return the cross-entropy whose target must win by a margin of cosine, from all logits at once."""

    def cross_entropy(output: Tensor, classes: Tensor, target: Tensor, temperature: float) -> Tensor:
        labeled = target.flatten() != IGNORE_INDEX
        cosines = full_resolution_rows(output, target.shape[1:])[labeled] @ classes.T
        targets = target.flatten()[labeled]
        behind = F.one_hot(targets, len(classes)) * margin
        return F.cross_entropy((cosines - behind) / temperature, targets)

    return cross_entropy


def normalized_again(output: Tensor, classes: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Compute the exact cross-entropy of embeddings that have length 1 after the upsampling too."""
    rows = F.normalize(full_resolution_rows(output, target.shape[1:]), dim=1)
    return exact_cross_entropy(
        rows,
        classes,
        target.flatten(),
        similarity="cosine",
        temperature=temperature,
        ignore_index=IGNORE_INDEX,
    )


@contextmanager
def with_table(make: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Start from another class table, made of the one (C, D) that there would be."""
    build = trainer.build_model

    def build_with_table(*arguments: Any) -> Segmenter:
        segmenter = build(*arguments)
        assert isinstance(segmenter.head, EmbeddingHead)
        table = segmenter.head.class_table
        made = make(table.detach())
        with torch.no_grad():
            table.copy_(made)
        return segmenter

    with patch.object(trainer, "build_model", build_with_table):
        yield


def rows_of_length(length: float) -> Callable[[Tensor], Tensor]:
    """Return what gives rows this length; the shorter a row is, the further a step turns it."""
    return lambda table: F.normalize(table, dim=1) * length


def rows_as_long_as_in_the_paper(table: Tensor) -> Tensor:
    """Return rows of the mean length of rows drawn uniformly from -1 to 1."""
    return F.normalize(table, dim=1) * (table.shape[1] / 3) ** 0.5


def orthogonal_rows(table: Tensor) -> Tensor:
    """Return rows as long, orthogonal within each block of D, the blocks turned at random."""
    num_classes, dim = table.shape
    blocks = [torch.linalg.qr(torch.randn(dim, dim)).Q for _ in range(-(-num_classes // dim))]
    return torch.cat(blocks)[:num_classes] * table.norm(dim=1).mean()


def spread_rows(table: Tensor, steps: int = 300) -> Tensor:
    """Return rows as long that repel one another until the nearest two are far apart."""
    num_classes = len(table)
    rows = torch.randn_like(table).requires_grad_()
    optimizer = torch.optim.Adam([rows], lr=0.05)
    itself = torch.eye(num_classes, dtype=torch.bool)
    for _ in range(steps):
        unit = F.normalize(rows, dim=1)
        cosines = (unit @ unit.T).masked_fill(itself, -1.0)
        optimizer.zero_grad()
        (cosines * 30).logsumexp(dim=1).mean().backward()
        optimizer.step()
    return F.normalize(rows.detach(), dim=1) * table.norm(dim=1).mean()
