"""Make what `benchmarks.loss` compares: one problem, our losses, the dense one, and installed peers.

Nothing but torch is needed (and triton on a GPU); a peer that is missing, or cannot run here, stays in the
table with the reason.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models import compiled, fused
from models.compiled import cross_entropy as compiled_rows
from models.compiled import cross_entropy_of_maps as compiled_maps
from models.embeddings import LossOptions
from models.fused.launch import require
from models.gradients import keep_gradients
from models.losses.knn import knn_cross_entropy
from models.losses.sampled import sampled_cross_entropy
from models.tiled import cross_entropy as tiled_rows
from models.tiled import cross_entropy_of_maps as tiled_maps

TEMPERATURE = 0.05
BOUND = "exponentials alone"
MOST_PRESENT = 256  # classes present among the targets


@dataclass
class Inputs:
    """One problem: unit vectors near their classes, as half-trained ones are, and no ignored pixels.

    At most 256 classes are present, as in a batch of images, whatever the number of classes.
    """

    pixels: Tensor  # (P, D)
    classes: Tensor  # (C, D)
    target: Tensor  # (P,)
    similarity: str

    @property
    def bytes(self) -> int:
        """Size of the three tensors."""
        return sum(tensor.nbytes for tensor in (self.pixels, self.classes, self.target))


@dataclass
class Candidate:
    """A loss to measure: what to call, what to differentiate for, and why not if it is left out.

    `predicted_bytes` is asked before anything is allocated, so that what cannot fit is not tried.
    """

    name: str
    loss: Callable[[], Tensor]
    leaves: tuple[Tensor, ...]
    predicted_bytes: int = 0
    predicted_steps: float = 0.0  # logits formed, for the time limit
    seconds: list[float] = field(default_factory=list)
    extra_bytes: int | None = None
    left_out: str | None = None


def make_inputs(
    num_pixels: int, num_classes: int, dim: int, similarity: str, dtype: torch.dtype, device: str
) -> Inputs:
    generator = torch.Generator(device=device).manual_seed(0)

    def draw(rows: int) -> Tensor:
        return torch.randn(rows, dim, generator=generator, device=device)

    classes = F.normalize(draw(num_classes), dim=1)
    present = torch.randperm(num_classes, generator=generator, device=device)[:MOST_PRESENT]
    target = present[torch.randint(0, len(present), (num_pixels,), generator=generator, device=device)]
    pixels = F.normalize(classes[target] + 0.2 * draw(num_pixels), dim=1)
    return Inputs(pixels.to(dtype).requires_grad_(), classes.to(dtype).requires_grad_(), target, similarity)


def dense_cross_entropy(inputs: Inputs) -> Tensor:
    """Cross-entropy on all logits."""
    logits = dense_logits(inputs.pixels.float(), inputs.classes.float(), inputs.similarity, TEMPERATURE)
    return F.cross_entropy(logits, inputs.target)


def dense_logits(pixels: Tensor, classes: Tensor, similarity: str, temperature: float) -> Tensor:
    """(P, C); the distances as a matrix product, which is faster than torch.cdist."""
    if similarity == "cosine":
        return pixels @ classes.T / temperature
    squares = torch.addmm(classes.square().sum(dim=1), pixels, classes.T, alpha=-2)
    squares = squares + pixels.square().sum(dim=1, keepdim=True)
    return squares.clamp_min(1e-12).sqrt() / -temperature


def exact_of_rows(implementation: str, inputs: Inputs) -> Tensor:
    """Compute the loss by one implementation, even where the public function would use another."""
    module = compiled_rows if implementation == "compiled" else tiled_rows
    compute = functools.partial(
        module.cross_entropy_of_rows,
        target=inputs.target,
        class_weights=None,
        options=LossOptions(TEMPERATURE, inputs.similarity),
    )
    return keep_gradients(compute, inputs.pixels, inputs.classes, None)


def exact_of_maps(
    implementation: str, maps: Tensor, classes: Tensor, target: Tensor, similarity: Any
) -> Tensor:
    """Compute the loss of maps by one implementation."""
    module = compiled_maps if implementation == "compiled" else tiled_maps
    compute = functools.partial(
        module.cross_entropy_of_maps,
        target=target,
        pixels=None,
        class_weights=None,
        options=LossOptions(TEMPERATURE, similarity),
    )
    return keep_gradients(compute, maps, classes, None)


def make_candidates(inputs: Inputs, num_negatives: int, most_side: int = 512) -> list[Candidate]:
    """Make all of them; maps are of square images of at most this side, smaller where these do not fit."""
    both = (inputs.pixels, inputs.classes)
    logits = len(inputs.pixels) * len(inputs.classes)
    copies = 4 if inputs.similarity == "distance" else 3  # of all logits, held at once by autograd
    options = {"temperature": TEMPERATURE, "similarity": inputs.similarity}
    ours = (inputs.pixels, inputs.classes, inputs.target)
    candidates = [
        Candidate("dense", lambda: dense_cross_entropy(inputs), both, 4 * copies * logits, 3 * logits),
        *(row_candidate(name, inputs) for name in ("tiled", "compiled")),
        Candidate("knn K=7", lambda: knn_cross_entropy(*ours, num_negatives=7, **options), both, 0, logits),
        Candidate(
            f"sampled K={num_negatives}",
            lambda: sampled_cross_entropy(*ours, num_negatives=num_negatives, **options),
            both,
            0,
            3 * len(inputs.pixels) * min(MOST_PRESENT + num_negatives, len(inputs.classes)),
        ),
    ]
    candidates[3:3] = [map_candidate(name, inputs, most_side) for name in ("tiled", "compiled")]
    candidates += [*fused_candidates(inputs, most_side), bound_candidate(inputs)]
    if inputs.similarity == "cosine":
        candidates += peer_candidates(inputs)
    return candidates


def low_resolution(inputs: Inputs, side: int) -> tuple[Tensor, Tensor] | None:
    """Make maps (N, D, h, w) and a target (N, 4h, 4w); None where the pixels make no square image.

    They are every fourth row and column of the very pixels, so that both see like similarities.
    """
    while side >= 8 and (len(inputs.pixels) < side**2 or len(inputs.pixels) % side**2):
        side //= 2
    if side < 8:
        return None
    maps = inputs.pixels.detach().view(-1, side, side, inputs.pixels.shape[1])[:, ::4, ::4]
    maps = maps.permute(0, 3, 1, 2).contiguous().requires_grad_()
    return maps, inputs.target.view(-1, side, side)


def why_not(implementation: str, inputs: Inputs) -> str | None:
    """Say why an implementation cannot run here; None where it can."""
    return compiled.reason_against(inputs.pixels, inputs.classes) if implementation == "compiled" else None


def row_candidate(implementation: str, inputs: Inputs) -> Candidate:
    """Make the candidate for the exact loss of rows."""
    return Candidate(
        f"exact ({implementation})",
        lambda: exact_of_rows(implementation, inputs),
        (inputs.pixels, inputs.classes),
        0,
        3 * len(inputs.pixels) * len(inputs.classes),
        left_out=why_not(implementation, inputs),
    )


def bound_candidate(inputs: Inputs) -> Candidate:
    """Make the candidate that computes no loss but the exponentials of one."""
    leaf, reason = torch.zeros((), requires_grad=True), why_not("compiled", inputs)

    def alone() -> Tensor:
        from benchmarks.loss_bound import exponentials_alone

        return leaf + exponentials_alone(len(inputs.pixels), len(inputs.classes))

    return Candidate(BOUND, alone, (leaf,), left_out=reason)


def map_candidate(implementation: str, inputs: Inputs, most_side: int) -> Candidate:
    """Make the candidate for the exact loss of maps at a quarter of the target's resolution."""
    name, both = f"exact of maps ({implementation})", (inputs.pixels, inputs.classes)
    found = low_resolution(inputs, most_side)
    if found is None:
        return Candidate(name, lambda: torch.zeros(()), both, left_out="needs a multiple of 8x8 pixels")
    maps, target = found
    return Candidate(
        name,
        lambda: exact_of_maps(implementation, maps, inputs.classes, target, inputs.similarity),
        (maps, inputs.classes),
        0,
        3 * len(inputs.pixels) * len(inputs.classes),
        left_out=why_not(implementation, inputs),
    )


def fused_candidates(inputs: Inputs, most_side: int) -> list[Candidate]:
    names = ("exact (fused)", "exact (fused + upsample)")
    both = (inputs.pixels, inputs.classes)
    try:
        require(*both)
    except (RuntimeError, ValueError) as error:
        missing = str(error).split(";")[0]
        return [Candidate(name, lambda: torch.zeros(()), both, left_out=missing) for name in names]
    options = LossOptions(TEMPERATURE, inputs.similarity)
    flat = Candidate(
        names[0],
        lambda: fused.fused_exact_cross_entropy(inputs.pixels, inputs.classes, inputs.target, options),
        both,
    )
    found = low_resolution(inputs, most_side)
    if found is None:
        reason = "needs a multiple of 8x8 pixels"
        return [flat, Candidate(names[1], lambda: torch.zeros(()), both, left_out=reason)]
    maps, target = found
    folded = Candidate(
        names[1],
        lambda: fused.fused_exact_cross_entropy(maps, inputs.classes, target, options),
        (maps, inputs.classes),
    )
    return [flat, folded]


def peer_candidates(inputs: Inputs) -> list[Candidate]:
    """Other memory-light losses, of inner products only, as far as they are installed."""
    both = (inputs.pixels, inputs.classes)
    logits = len(inputs.pixels) * len(inputs.classes)

    def scaled() -> Tensor:
        return inputs.pixels / TEMPERATURE

    def absent(name: str, reason: str) -> Candidate:
        return Candidate(name, lambda: torch.zeros(()), both, left_out=reason)

    found = []
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        chunked = torch.nn.LinearCrossEntropyOptions()
        found.append(
            Candidate(
                "F.linear_cross_entropy, chunked",
                lambda: F.linear_cross_entropy(scaled(), inputs.classes, inputs.target, options=chunked),
                both,
                0,
                3 * logits,
            )
        )
    else:
        found.append(absent("F.linear_cross_entropy, chunked", "needs torch 2.13"))
    try:
        cut = importlib.import_module("cut_cross_entropy")
        implementation = "cce" if inputs.pixels.is_cuda else "torch_compile"
        rounded = implementation == "cce" and inputs.pixels.dtype == torch.float32  # its kernels refuse fp32
        dtype = torch.bfloat16 if rounded else inputs.pixels.dtype
        found.append(
            Candidate(
                f"cut_cross_entropy {implementation}{', in bf16' if rounded else ''}",
                lambda: cut.linear_cross_entropy(
                    scaled().to(dtype), inputs.classes.to(dtype), inputs.target, impl=implementation
                ),
                both,
                0 if inputs.pixels.is_cuda else 4 * 3 * logits,
                3 * logits,
            )
        )
    except ImportError:
        found.append(absent("cut_cross_entropy", "not installed"))
    try:
        liger = importlib.import_module("liger_kernel.transformers.fused_linear_cross_entropy")
        if inputs.pixels.is_cuda:
            fused_linear = liger.LigerFusedLinearCrossEntropyLoss()
            found.append(
                Candidate(
                    "liger_kernel",
                    lambda: fused_linear(inputs.classes, scaled(), inputs.target),
                    both,
                    0,
                    3 * logits,
                )
            )
        else:
            found.append(absent("liger_kernel", "needs a GPU"))
    except ImportError:
        found.append(absent("liger_kernel", "not installed"))
    return found
