"""Make the steps that `benchmarks.training` compares: ours, one with all logits, and the peer's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.loss_candidates import dense_logits
from models.upsampling import full_resolution_rows
from pipeline.config.schema import Settings
from pipeline.data.loading.batch import Batch
from pipeline.memory.predict import HEADS, predict_bytes, with_changes, with_head
from pipeline.train_step.loss import segmentation_losses
from pipeline.train_step.model import build_model
from pipeline.train_step.precision import autocast
from pipeline.train_step.step import TrainStep

try:
    import segmentation_models_pytorch as smp
except ImportError:
    smp = None

Step = Callable[[], object]
_DENSE_COPIES = 5  # of all logits of distances, held at once by autograd


@dataclass(frozen=True)
class Candidate:
    """One way to train: what makes its step and its loss alone, and the bytes that it needs at least."""

    name: str
    make_step: Callable[[], Step]
    make_loss: Callable[[], Step] | None
    bytes_needed: int


def make_candidates(
    settings: Settings, budget: int | None, classes: int, device: torch.device
) -> list[Candidate]:
    """Ours of `HEADS`, at all pixels and with a budget; `distances`, the network, `smp` where installed."""
    found = []
    for pixels in (None, budget) if budget else (None,):
        for head in HEADS:
            own = with_changes(with_head(settings, head), loss={"pixel_budget": pixels})
            name = head if pixels is None else f"{head}, {pixels:,} px"
            make = partial(own_step, own, classes, device), partial(own_loss, own, classes, device)
            found.append(Candidate(name, *make, predict_bytes(own, classes)))
    options = settings.train
    logits = options.images_per_step * options.crop_size**2 * classes
    dense = partial(dense_step, settings, classes, device)
    found.append(Candidate("distances", dense, None, 4 * _DENSE_COPIES * logits))
    alone = partial(network_step, settings, classes, device)
    found.append(Candidate("network alone", alone, None, predict_bytes(settings, classes)))
    if smp is None:
        print("smp is left out: segmentation-models-pytorch is not installed", file=sys.stderr)
    else:
        as_dense = predict_bytes(with_head(settings, "dense"), classes)
        found.append(Candidate("smp", partial(smp_step, settings, classes, device), None, as_dense))
    return found


def synthetic(settings: Settings, classes: int) -> Batch:
    """Make a batch of noise, every pixel labeled."""
    options, generator = settings.train, torch.Generator().manual_seed(0)
    size = (options.images_per_step, options.crop_size, options.crop_size)
    images = torch.randint(256, (size[0], 3, *size[1:]), dtype=torch.uint8, generator=generator)
    return Batch(images, torch.randint(classes, size, generator=generator), tuple(range(size[0])))


def own_step(settings: Settings, classes: int, device: torch.device) -> Step:
    """Make the step that the training takes."""
    segmenter = build_model(settings.model, classes).to(device).train()
    optimization = TrainStep(segmenter, settings, accumulation_steps=settings.train.accumulation_steps)
    batch = synthetic(settings, classes)
    return lambda: optimization(batch, 0)


def own_loss(settings: Settings, classes: int, device: torch.device) -> Step:
    """Make the part of that step after the network's output: upsampling and loss, forward and backward."""
    segmenter = build_model(settings.model, classes).to(device)
    batch, generator = synthetic(settings, classes), torch.Generator(device).manual_seed(0)
    target, channels = batch.target.to(device), segmenter.head.class_embeddings.shape[1]
    size = segmenter.output_size(target.shape[1:])
    values = torch.randn(len(target), channels, *size, generator=generator, device=device)
    output = F.normalize(values).requires_grad_()

    def step() -> None:
        losses = segmentation_losses(segmenter, output, target, settings.loss, generator)
        torch.autograd.grad(losses.total, [output])

    return step


def dense_step(settings: Settings, classes: int, device: torch.device) -> Step:
    """Make a step of the embedding network and its cross-entropy, on all distances."""
    segmenter = build_model(settings.model, classes).to(device).train()
    loss_settings = settings.loss

    def loss(output: Tensor, target: Tensor) -> Tensor:
        pixels = full_resolution_rows(output, target.shape[1:])
        embeddings = segmenter.head.class_embeddings
        logits = dense_logits(pixels, embeddings, loss_settings.similarity, loss_settings.temperature)
        return F.cross_entropy(logits, target.flatten())

    return _plain_step(segmenter, loss, settings, classes, device)


def network_step(settings: Settings, classes: int, device: torch.device) -> Step:
    """Make a step of the embedding network that differentiates its mean square: what no loss can undercut."""
    segmenter = build_model(settings.model, classes).to(device).train()

    def loss(output: Tensor, _: Tensor) -> Tensor:
        return output.square().mean()

    return _plain_step(segmenter, loss, settings, classes, device)


def smp_step(settings: Settings, classes: int, device: torch.device) -> Step:
    """Make a step of the peer's network with full-resolution logits; its ASPP is as separable as ours."""
    model = settings.model
    network = smp.DeepLabV3Plus(
        f"tu-{model.backbone}",
        encoder_weights=None,
        encoder_output_stride=model.output_stride,
        decoder_channels=model.decoder_channels,
        decoder_aspp_separable=model.decoder == "deeplabv3plus_separable",
        classes=classes,
    )
    return _plain_step(network.to(device).train(), F.cross_entropy, settings, classes, device)


def _plain_step(
    network: nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    settings: Settings,
    classes: int,
    device: torch.device,
) -> Step:
    options = settings.train
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    network = network.to(memory_format=layout)
    optimizer = torch.optim.SGD(network.parameters(), lr=options.learning_rate, momentum=options.momentum)
    batch = synthetic(settings, classes)

    def step() -> None:
        images = (batch.images.to(device).float() / 255).contiguous(memory_format=layout)
        target = batch.target.to(device)
        with autocast(options.precision, device.type):
            loss = loss_of(network(images), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step
