"""Time and memory of one forward and backward pass of every loss, against the dense one and its peers.

    python -m benchmarks.loss --device cpu --pixels 65536 --classes 1284 --classes 10000
    python -m benchmarks.loss --device cuda --pixels 4194304 --save

One table for one set of inputs: the candidates take turns, and the fastest turn counts. Extra memory is what
was held beyond the inputs: CUDA's own peak, or on the CPU the allocator's events under torch.profiler (a run
apart, not timed), or the resident memory's peak where those events would be too many. On a GPU the last
column is the time over the least the hardware needs (`lower_bound`).
"""

from __future__ import annotations

import gc
import importlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from benchmarks.record import describe_machine, save
from models.exact import ExactCrossEntropy
from models.losses import knn_cross_entropy, sampled_cross_entropy

TEMPERATURE = 0.05
GIB = 2**30
MOST_PRESENT = 256  # classes present among the targets
MOST_PROFILED = 2e9  # logits; with more, the profiler's own events would fill the memory
UPSAMPLED_SIDE = 512  # pixels of the square image that the folded upsampling is given


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
    """Cross-entropy on all logits; the distances as a matrix product, which is faster than torch.cdist."""
    pixels, classes = inputs.pixels.float(), inputs.classes.float()
    if inputs.similarity == "cosine":
        logits = pixels @ classes.T / TEMPERATURE
    else:
        squares = torch.addmm(classes.square().sum(dim=1), pixels, classes.T, alpha=-2)
        squares = squares + pixels.square().sum(dim=1, keepdim=True)
        logits = squares.clamp_min(1e-12).sqrt() / -TEMPERATURE
    return F.cross_entropy(logits, inputs.target)


def exact_in_torch(inputs: Inputs) -> Tensor:
    """The pure-torch function even where the public one would choose the fused kernels."""
    return ExactCrossEntropy.apply(
        inputs.pixels, inputs.classes, inputs.target, None, TEMPERATURE, inputs.similarity, -1, 2**25, True
    )


def make_candidates(inputs: Inputs, num_negatives: int) -> list[Candidate]:
    both = (inputs.pixels, inputs.classes)
    logits = len(inputs.pixels) * len(inputs.classes)
    copies = 4 if inputs.similarity == "distance" else 3  # of all logits, held at once by autograd
    options = {"temperature": TEMPERATURE, "similarity": inputs.similarity}
    ours = (inputs.pixels, inputs.classes, inputs.target)
    candidates = [
        Candidate("dense", lambda: dense_cross_entropy(inputs), both, 4 * copies * logits, 3 * logits),
        Candidate("exact (torch)", lambda: exact_in_torch(inputs), both, 0, 3 * logits),
        Candidate("knn K=7", lambda: knn_cross_entropy(*ours, num_negatives=7, **options), both, 0, logits),
        Candidate(
            f"sampled K={num_negatives}",
            lambda: sampled_cross_entropy(*ours, num_negatives=num_negatives, **options),
            both,
            0,
            3 * len(inputs.pixels) * min(MOST_PRESENT + num_negatives, len(inputs.classes)),
        ),
    ]
    candidates += fused_candidates(inputs, options)
    if inputs.similarity == "cosine":
        candidates += peer_candidates(inputs)
    return candidates


def fused_candidates(inputs: Inputs, options: dict) -> list[Candidate]:
    names = ("exact (fused)", "exact (fused + upsample)")
    both = (inputs.pixels, inputs.classes)
    missing = None if inputs.pixels.is_cuda else "needs a GPU"
    try:
        fused = importlib.import_module("models.fused")
    except ImportError as error:
        missing = f"not importable: {error}"
    if missing:
        return [Candidate(name, lambda: torch.zeros(()), both, left_out=missing) for name in names]
    flat = Candidate(
        names[0],
        lambda: fused.fused_exact_cross_entropy(
            inputs.pixels, inputs.classes, inputs.target, ignore_index=-1, **options
        ),
        both,
    )
    side, num_images = UPSAMPLED_SIDE, len(inputs.pixels) // UPSAMPLED_SIDE**2
    if num_images == 0 or len(inputs.pixels) % side**2:
        reason = f"needs a multiple of {side}x{side} pixels"
        return [flat, Candidate(names[1], lambda: torch.zeros(()), both, left_out=reason)]
    # Every fourth row and column of the very pixels above, so that both see like similarities.
    maps = inputs.pixels.detach().view(num_images, side, side, -1)[:, ::4, ::4]
    maps = maps.permute(0, 3, 1, 2).contiguous().requires_grad_()
    images = inputs.target.view(num_images, side, side)
    folded = Candidate(
        names[1],
        lambda: fused.fused_exact_cross_entropy_upsampled(
            maps, inputs.classes, images, ignore_index=-1, **options
        ),
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
        found.append(
            Candidate(
                f"cut_cross_entropy {implementation}",
                lambda: cut.linear_cross_entropy(
                    scaled(), inputs.classes, inputs.target, impl=implementation
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


def turn(candidate: Candidate) -> float:
    """Run forward and backward once and return the seconds."""
    on_gpu = candidate.leaves[0].is_cuda
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    torch.autograd.grad(candidate.loss(), candidate.leaves)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_extra_bytes(candidate: Candidate) -> int:
    """Most bytes held at once beyond those before the call."""
    if candidate.leaves[0].is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        turn(candidate)
        return torch.cuda.max_memory_allocated() - before
    if candidate.predicted_steps > MOST_PROFILED:
        return peak_resident_bytes(candidate)
    gc.collect()  # what was left over from before must not be freed while counting
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as record:
        turn(candidate)
    events = record.profiler.kineto_results.events()
    held = most = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def peak_resident_bytes(candidate: Candidate) -> int:
    """Most resident memory beyond that before the call (Linux only, which lets a process reset its peak)."""

    def resident(field_name: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field_name))

    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident("VmRSS")
    candidate.seconds.append(turn(candidate))
    return max(0, resident("VmHWM") - before)


def measure(candidates: Iterable[Candidate], repeats: int, free_bytes: int, most_steps: float) -> None:
    """Fill in times and memory; leave out what would not fit, would take too long, or fails."""
    running = []
    for candidate in candidates:
        if candidate.left_out is None and candidate.predicted_bytes > 0.8 * free_bytes:
            candidate.left_out = f"does not fit (predicted {candidate.predicted_bytes / GIB:,.1f} GiB)"
        elif candidate.left_out is None and candidate.predicted_steps > most_steps:
            candidate.left_out = f"{candidate.predicted_steps:.0e} logits: left out by --most-logits"
        if candidate.left_out is None:
            try:  # also the warm-up: compiling and tuning happen here
                if candidate.leaves[0].is_cuda:
                    turn(candidate)
                candidate.extra_bytes = peak_extra_bytes(candidate)
                running.append(candidate)
            except Exception as error:  # a peer may fail in any way, and the others still count
                candidate.left_out = f"failed: {type(error).__name__}: {str(error).splitlines()[:1]}"
    for _ in range(repeats):
        for candidate in running:
            if sum(candidate.seconds) < 60:  # one turn is enough of what takes minutes
                candidate.seconds.append(turn(candidate))


def copy_bandwidth() -> float:
    """Measure the bytes per second of a large copy on the GPU, read and written."""
    source = torch.empty(2**28, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    best = math.inf
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best


def lower_bound(inputs: Inputs, bandwidth: float) -> float:
    """Return the least seconds forward and backward can take on this GPU.

    Two exponentials a logit (one in each pass) at 16 a clock and multiprocessor, for distances as many
    reciprocal roots again; and at least each input read and each gradient written at the speed of a copy.
    """
    properties = torch.cuda.get_device_properties(0)
    clock_hz = getattr(properties, "clock_rate", 0) * 1e3 or torch.cuda.clock_rate() * 1e6
    special = 2 * len(inputs.pixels) * len(inputs.classes)
    if inputs.similarity == "distance":
        special *= 2
    moved = 2 * inputs.bytes
    return max(special / (16 * properties.multi_processor_count * clock_hz), moved / bandwidth)


def table(inputs: Inputs, candidates: list[Candidate], bound: float | None) -> str:
    """Lay the results out as text."""
    dense = candidates[0]
    title = (
        f"{inputs.similarity}, {inputs.pixels.dtype}: P = {len(inputs.pixels):,}, "
        f"C = {len(inputs.classes):,}, D = {inputs.pixels.shape[1]}; inputs {inputs.bytes / 2**20:,.1f} MiB"
    )
    if bound is not None:
        title += f"; bound {bound * 1e3:,.3f} ms"
    heads = f"{'loss':34}{'time':>13}{'x faster':>10}{'extra MiB':>12}{'1/memory':>10}{'x bound':>9}"
    lines = [title, heads]
    for candidate in candidates:
        if candidate.left_out:
            lines.append(f"{candidate.name:34}  {candidate.left_out}")
            continue
        seconds, extra = min(candidate.seconds), candidate.extra_bytes or 0
        faster = f"{min(dense.seconds) / seconds:.2f}" if dense.seconds else "-"
        lighter = f"{dense.extra_bytes / extra:.1f}" if dense.extra_bytes and extra else "-"
        over = f"{seconds / bound:.2f}" if bound is not None else "-"
        lines.append(
            f"{candidate.name:34}{seconds * 1e3:>10,.2f} ms{faster:>10}"
            f"{extra / 2**20:>12,.1f}{lighter:>10}{over:>9}"
        )
    return "\n".join(lines)


def available_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def main(
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cuda" if torch.cuda.is_available() else "cpu",
    pixels: Annotated[int | None, typer.Option(help="P; 65,536 on the CPU, 16 x 512 x 512 on a GPU")] = None,
    dim: Annotated[int, typer.Option(help="D")] = 16,
    classes: Annotated[list[int] | None, typer.Option(help="C; repeat for several")] = None,
    similarity: Annotated[list[str] | None, typer.Option(help="distance, cosine; repeat for both")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16")] = "float32",
    num_negatives: Annotated[int, typer.Option(help="K of the sampled loss")] = 256,
    repeats: Annotated[int, typer.Option(help="turns of each; the fastest counts")] = 4,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's choice")] = 0,
    most_logits: Annotated[
        float, typer.Option(help="leave out losses that form more logits than this")
    ] = 1e13,
    save_results: Annotated[bool, typer.Option("--save", help="write to benchmarks/results")] = False,
) -> None:
    """Compare the losses at several numbers of classes."""
    if threads:
        torch.set_num_threads(threads)
    num_pixels = pixels or (65_536 if device == "cpu" else 16 * 512 * 512)
    bandwidth = copy_bandwidth() if device == "cuda" else None
    sections = [describe_machine(device)]
    if bandwidth is not None:
        sections[0] += f"\ncopy bandwidth {bandwidth / 1e9:,.0f} GB/s"
    print(sections[0], flush=True)
    for num_classes in classes or [150, 1_284, 10_000, 100_000, 1_000_000]:
        for name in similarity or ["distance", "cosine"]:
            inputs = make_inputs(num_pixels, num_classes, dim, name, getattr(torch, dtype), device)
            candidates = make_candidates(inputs, num_negatives)
            measure(candidates, repeats, available_bytes(device), most_logits)
            bound = None if bandwidth is None else lower_bound(inputs, bandwidth)
            sections.append(table(inputs, candidates, bound))
            print("\n" + sections[-1], flush=True)
    if save_results:
        print(f"\nwritten to {save('loss', device, sections)}")


if __name__ == "__main__":
    typer.run(main)
