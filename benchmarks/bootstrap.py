"""Bootstrapping beside the reference's procedure: time per image and core, both cores, reading, memory.

    python -m benchmarks.bootstrap ../shared/data/coco_lvis_mini --save
    python -m benchmarks.bootstrap ../shared/data/coco_lvis_mini --full-size --save

Both make the same masks and write them, in turns of some images, in one process: the reference's procedure
from annotations in memory, ours from their places in the files. What counts is the processor's time, which
others on the machine disturb less than the clock's. The whole command is then run with one worker and with
two. With --full-size, an LVIS file of 100,000 images and 1.27 million annotations is generated, and the
memory of all processes is watched.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from benchmarks.record import describe_machine, save
from benchmarks.reference_masks import Annotated as Content
from benchmarks.reference_masks import draw_as_reference
from benchmarks.repeated_dataset import full_size, repeat
from pipeline.data.annotations.index import RowReader
from pipeline.data.annotations.validation import ImageEntry
from pipeline.data.bootstrap.build import _draw_batch
from pipeline.data.bootstrap.options import BootstrapOptions
from pipeline.data.labels.label_space import STUFF
from pipeline.data.layouts.coco_lvis import OfficialLayout
from pipeline.data.layouts.layout import Region
from pipeline.data.loading.dataset import SegmentationDataset
from pipeline.data.loading.visualize import export_masks
from pipeline.data.store.shards import ROWS_PER_BATCH, write_shard
from pipeline.runtime.device import GIB
from pipeline.runtime.signals import run_command

ROUNDS = 5


def main(
    source: Annotated[Path, typer.Argument(help="A small real dataset in the official layout.")],
    images: Annotated[int, typer.Option(help="Images to repeat it to.", min=1)] = 5_000,
    whole: Annotated[
        bool, typer.Option("--full-size", help="The memory at LVIS's full size instead.")
    ] = False,
    keep: Annotated[bool, typer.Option("--save", help="Write the tables to benchmarks/results/.")] = False,
) -> None:
    """Measure and print; see the module."""
    warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools' decode under NumPy 2
    with tempfile.TemporaryDirectory() as folder:
        root, load = Path(folder) / "root", os.getloadavg()[0]
        if whole:
            parts = [memory_at_full_size(source, root)]
        else:
            number = repeat(source, root, images)
            parts = [beside_the_reference(root), whole_command(root, number), reading(root)]
    load_text = f"load of the machine before {load:.2f}, after {os.getloadavg()[0]:.2f} (ours included)"
    for part in parts:
        print(f"\n{part}")
    print(f"\n{load_text}")
    if keep:
        name = "bootstrap-full-size" if whole else "bootstrap"
        print(f"saved {save(name, 'cpu', [describe_machine('cpu'), load_text, *parts])}")


def beside_the_reference(root: Path) -> str:
    """Processor time an image: ours, and the reference's with and without its renumbering."""
    layout = OfficialLayout(root)
    table = layout.label_space.lookup(STUFF)
    entries = [entry for images in layout.splits(0.1, 0).images.values() for entry in images]
    with_stuff = [image_id for file in layout.stuff for image_id in file.by_image]
    spent = dict.fromkeys(("ours", "reference", "reference, renumbering as it draws"), 0.0)
    out = root.parent / "masks"
    out.mkdir()
    for first in range(0, len(entries), ROWS_PER_BATCH):
        work = [(entry, layout.content(entry)) for entry in entries[first : first + ROWS_PER_BATCH]]
        with RowReader() as reader:
            contents = [_content(layout, entry, reader) for entry, _ in work]
        began = time.process_time()
        _ours(work, root, layout.label_space.num_classes, out / "shard.arrow")
        spent["ours"] += time.process_time() - began
        for key, renumber in zip(list(spent)[1:], (True, False), strict=True):
            began = time.process_time()
            for content in contents:
                path = out / f"{content.image_id}.png"
                draw_as_reference(content, with_stuff, table, path, renumber=renumber)
            spent[key] += time.process_time() - began
    lines = [f"{len(entries)} images drawn and written, one core, milliseconds of processor time an image"]
    for key, seconds in spent.items():
        ratio = seconds / spent["ours"]
        lines.append(f"  {key:38}{1000 * seconds / len(entries):8.2f}{ratio:8.1f} x")
    return "\n".join(lines)


def _ours(work: list[tuple[ImageEntry, list[Region]]], root: Path, num_classes: int, path: Path) -> None:
    drawn = _draw_batch(list(work), root=root, options=BootstrapOptions(), num_classes=num_classes)
    write_shard(path, [drawn.rows])


def _content(layout: OfficialLayout, entry: ImageEntry, reader: RowReader) -> Content:
    def rows(files: list[object]) -> list[tuple[int, object]]:
        return [
            (row.category_id, reader.read(row.segmentation, file.name))  # type: ignore[attr-defined]
            for file in files
            for row in file.by_image.get(entry.image_id, ())  # type: ignore[attr-defined]
        ]

    things, stuff = rows(list(layout.lvis.values())), rows(list(layout.stuff))
    return Content(entry.image_id, entry.height, entry.width, things, stuff)


COMMAND = """
from pipeline.cli.main import main
if __name__ == '__main__':
    main()
"""
READING = """
import sys
from pathlib import Path
from pipeline.runtime.workers import worker_pool
if __name__ == '__main__':
    with worker_pool(int(sys.argv[2]), 'pipeline.data.bootstrap.build') as pool:
        from pipeline.data.layouts.opening import open_layout
        open_layout('coco_lvis', Path(sys.argv[1]), pool=pool).splits(0.1, 0)
"""


def whole_command(root: Path, number: int) -> str:
    """Time the command from start to end, with one worker and with two, the fastest of some rounds each.

    What is not drawing is timed by itself, with as many workers. Two commands of one worker each, at once,
    tell what the machine's second core is worth to work that shares nothing.
    """
    times: dict[str, list[tuple[float, float]]] = defaultdict(list)
    outputs = set()
    for _ in range(ROUNDS):
        commands = []
        for workers in (1, 2):
            out = root.parent / ("out" if workers == 1 else "out-of-two")
            arguments = ["data", "bootstrap", str(root), str(out), "--workers"]
            commands.append([COMMAND, *arguments, "1"])
            times[f"command {workers}"].append(_timed([COMMAND, *arguments, str(workers)]))
            times[f"reading {workers}"].append(_timed([READING, str(root), str(workers)]))
            outputs.add(tuple(path.read_bytes() for path in sorted(out.iterdir())))
        times["two commands"].append(_timed(*commands))
    assert len(outputs) == 1, "the number of workers changed the result"
    best = {what: min(rounds) for what, rounds in times.items()}
    lines = [f"pipeline data bootstrap, {number} images, seconds (fastest of {ROUNDS}, taking turns)"]
    for what, key in (("", "command"), (", start and reading", "reading")):
        for workers in ("1", "2"):
            elapsed, processor = best[f"{key} {workers}"]
            lines.append(f"  workers: {workers}{what:20}{elapsed:8.2f} elapsed {processor:8.2f} processor")
    command, reading = ([best[f"{key} {workers}"][0] for workers in (1, 2)] for key in ("command", "reading"))
    drawing = (command[0] - reading[0]) / (command[1] - reading[1])
    twice = best["two commands"]
    return "\n".join(
        [
            *lines,
            f"  two commands of one worker at once{twice[0]:5.2f} elapsed {twice[1]:8.2f} processor",
            f"  two workers do drawing and writing {drawing:.2f} x as fast as one, start and reading "
            f"{reading[0] / reading[1]:.2f} x, all {command[0] / command[1]:.2f} x",
            f"  two commands at once, which share nothing, take {2 * command[0] / twice[0]:.2f} x less than "
            "one after the other",
        ]
    )


def _timed(*commands: list[str]) -> tuple[float, float]:
    """Seconds elapsed, and of processor time, of Python programs at once: each its code and its arguments."""
    before, began = os.times(), time.perf_counter()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for command in commands
    ]
    assert all([process.wait() == 0 for process in processes])  # noqa: C419  all are waited for
    elapsed, after = time.perf_counter() - began, os.times()
    processor = after.children_user - before.children_user + after.children_system - before.children_system
    return elapsed, processor


def reading(root: Path) -> str:
    """Time a mask at a random place: from the shards, and from a loose PNG."""
    out, loose = root.parent / "out", root.parent / "png"
    export_masks(out, loose, split="train")
    dataset = SegmentationDataset(out, root, "train")
    ids = dataset.image_ids()
    order = np.random.default_rng(0).permutation(len(ids))[:1000].tolist()
    spent = {"shard": [], "PNG": []}  # type: dict[str, list[float]]
    for _ in range(ROUNDS):
        began = time.process_time()
        for index in order:
            dataset.class_mask(index)
        spent["shard"].append(time.process_time() - began)
        began = time.process_time()
        for index in order:
            with Image.open(loose / f"{ids[index]:012d}.png") as opened:
                np.asarray(opened)
        spent["PNG"].append(time.process_time() - began)
    shard, png = (1000 * min(values) / len(order) for values in spent.values())
    size = sum(path.stat().st_size for path in out.glob("*.arrow")), len(list(out.iterdir()))
    return "\n".join(
        [
            f"reading {len(order)} masks at random, milliseconds of processor time each, best of {ROUNDS}",
            f"  from the shards {shard:8.3f}",
            f"  from a loose PNG{png:8.3f}   shards take {shard / png:.2f} of it",
            f"  the output is {size[1]} files, {size[0] / 2**20:.1f} MiB of masks",
        ]
    )


def memory_at_full_size(source: Path, root: Path) -> str:
    """Measure the most memory that all processes of the command take together, with two workers."""
    size = full_size(source, root, 100_000, 1_270_000)
    command = [
        sys.executable,
        "-m",
        "pipeline.cli.main",
        "data",
        "bootstrap",
        str(root),
        str(root.parent / "out"),
    ]
    began, before, peak = time.perf_counter(), os.times(), 0
    process = subprocess.Popen(
        [*command, "--workers", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None:
        peak = max(peak, _memory_of(process.pid))
        time.sleep(0.2)
    assert process.returncode == 0
    elapsed, after = time.perf_counter() - began, os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    files = list((root.parent / "out").iterdir())
    return "\n".join(
        [
            f"an LVIS train file: 100,000 images, 1,270,000 annotations, {size / GIB:.2f} GiB; two workers",
            f"  most memory of all processes together {peak / GIB:8.2f} GiB (proportional set size)",
            f"  seconds                               {elapsed:8.1f} elapsed {processor:8.1f} processor",
            f"  files made                            {len(files):8d}, "
            f"{sum(path.stat().st_size for path in files) / 2**20:.0f} MiB",
        ]
    )


def _memory_of(pid: int) -> int:
    """Bytes of a process and all below it: what they share is counted once."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total = int(line.split()[1]) * 1024
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has just ended
        return total
    return total + sum(_memory_of(int(child)) for child in children)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    sys.exit(run_command(app))
