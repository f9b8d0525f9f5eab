"""Measure time and memory of one forward and backward pass of every loss, the dense one and peers.

    python -m benchmarks.loss --device cpu --pixels 65536 --classes 1284 --classes 10000
    python -m benchmarks.loss --device cuda --pixels 4194304 --save

One table for one set of inputs: the candidates take turns, and the fastest turn counts. The peers know inner
products only, so they are in the tables of `--similarity cosine`. Extra memory is what was held beyond the
inputs: CUDA's own peak, or on the CPU the allocator's events under torch.profiler (a run apart, not timed),
or the resident memory's peak where those events would be too many. The last column is the time over a bound:
on a GPU the least the hardware needs (`lower_bound`), on the CPU one exponential a logit (`loss_bound`).
Torch and triton, or numba on the CPU, are all it needs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch

from benchmarks.loss_candidates import BOUND, Candidate, Inputs, make_candidates, make_inputs
from benchmarks.loss_measure import available_bytes, gpu_speed, lower_bound, measure
from benchmarks.record import describe_machine, save
from benchmarks.targets import verdict
from models.embeddings import SIMILARITIES

CLASS_COUNTS = (150, 1_284, 10_000, 100_000, 1_000_000)
PEERS = ("F.linear_cross_entropy", "cut_cross_entropy", "liger_kernel")


def table(inputs: Inputs, candidates: list[Candidate], bound: float | None) -> str:
    """Lay the results out as text; `bound` is in seconds."""
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
        lighter = f"{dense.extra_bytes / extra:.1f}" if dense.extra_bytes and extra > 2**10 else "-"
        over = f"{seconds / bound:.2f}" if bound is not None else "-"
        lines.append(
            f"{candidate.name:34}{seconds * 1e3:>10,.2f} ms{faster:>10}"
            f"{extra / 2**20:>12,.1f}{lighter:>10}{over:>9}"
        )
    return "\n".join(lines)


def verdicts(inputs: Inputs, candidates: list[Candidate], bound: float | None) -> Iterator[str]:
    """Judge by `benchmarks.targets` what they say something about."""
    classes = len(inputs.classes)
    where, device = f"{classes:,} classes, {inputs.similarity}", inputs.pixels.device.type
    fastest = {one.name: min(one.seconds) for one in candidates if one.seconds and not one.left_out}
    maps, tiled = fastest.get("exact of maps (compiled)"), fastest.get("exact of maps (tiled)")
    peer = fastest.get("F.linear_cross_entropy, chunked")
    if maps is not None and tiled is not None and classes == 1_284:
        yield verdict("compiled maps beside tiled", tiled / maps, where, device)
    if maps is not None and tiled is not None and classes >= 10_000:
        yield verdict("compiled maps beside tiled at 10,000 classes and more", tiled / maps, where, device)
    if maps is not None and bound is not None and classes == 1_284:
        yield verdict("compiled maps beside the exponentials", maps / bound, where, device)
    if maps is not None and peer is not None and classes == 150:
        yield verdict("compiled maps beside torch's chunks at 150 classes", peer / maps, where, device)
    fused = fastest.get("exact (fused)")
    if fused is None or classes != 1_284:
        return
    if bound is not None:
        yield verdict("fused beside the bound", fused / bound, where, device)
    extra = next(one.extra_bytes for one in candidates if one.name == "exact (fused)") or 0
    yield verdict("fused: extra memory beside the inputs", extra / inputs.bytes, where, device)
    peers = [seconds for name, seconds in fastest.items() if name.startswith(PEERS)]
    if peers:
        yield verdict("fused beside the fastest peer", min(peers) / fused, where, device)


def cpu_bound(candidates: list[Candidate]) -> float | None:
    """Return the seconds of the exponentials alone; None where they were not measured."""
    return next((min(one.seconds) for one in candidates if one.name == BOUND and one.seconds), None)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    has_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loss",
        description="Compare the losses at several numbers of classes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cuda" if has_gpu else "cpu", help="where to run")
    add("--pixels", type=positive, help="P; 65,536 on the CPU, 16 x 512 x 512 on a GPU, where none is given")
    add("--dim", type=positive, default=16, help="D")
    add("--classes", type=positive, action="append", help="C; repeat for several; from 150 to 1,000,000 else")
    add(
        "--similarity",
        choices=SIMILARITIES,
        action="append",
        help="repeat for both; both where none is given",
    )
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the embeddings")
    add("--num-negatives", type=positive, default=256, help="K of the sampled loss")
    add("--repeats", type=positive, default=4, help="turns of each; the fastest counts")
    add("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")
    add("--most-logits", type=float, default=1e13, help="leave out losses that form more logits than this")
    add("--side", type=positive, default=512, help="most rows and columns of the images of maps")
    add("--save", action="store_true", help="write to benchmarks/results")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not has_gpu:
        parser.error("--device cuda: torch sees no GPU here; take --device cpu")
    return options


def main() -> None:
    options = parse_arguments()
    device = options.device
    if options.threads > 0:
        torch.set_num_threads(options.threads)
    num_pixels = options.pixels or (65_536 if device == "cpu" else 16 * 512 * 512)
    speed = gpu_speed() if device == "cuda" else None
    sections = [describe_machine(device) + ("" if speed is None else f"\n{speed}")]
    judged: list[str] = []
    print(sections[0], flush=True)
    for num_classes in options.classes or CLASS_COUNTS:
        for name in options.similarity or SIMILARITIES:
            inputs = make_inputs(
                num_pixels, num_classes, options.dim, name, getattr(torch, options.dtype), device
            )
            candidates = make_candidates(inputs, options.num_negatives, options.side)
            measure(candidates, options.repeats, available_bytes(device), options.most_logits)
            bound = cpu_bound(candidates) if speed is None else lower_bound(inputs, speed)
            sections.append(table(inputs, candidates, bound))
            print("\n" + sections[-1], flush=True)
            judged.extend(verdicts(inputs, candidates, bound))
    sections.append("\n".join(judged))
    print("\n" + sections[-1], flush=True)
    if options.save:
        print(f"\nwritten to {save('loss', device, sections)}")


if __name__ == "__main__":
    main()
