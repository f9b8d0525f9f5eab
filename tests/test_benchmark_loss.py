"""The benchmark of the losses: what it needs, what it lists, and the least time it compares a GPU's with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import loss_candidates, loss_measure
from benchmarks.loss import table
from benchmarks.loss_candidates import Candidate, make_inputs
from benchmarks.loss_measure import Speed, gpu_speed, lower_bound, peak_resident_bytes
from tests.interpreter import WHY_NOT
from tests.paths import ROOT

# Everything the project depends on but torch and triton, and the peers, which take long to compile.
ALONE = """
import sys

REFUSED = set(
    "timm torchvision safetensors PIL pyarrow lvis pycocotools ray optuna ruamel mlflow dvc pydantic yaml "
    "typer rich requests urllib3 jinja2 markupsafe matplotlib pipeline cut_cross_entropy liger_kernel".split()
)


class Refuse:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in REFUSED:
            raise ImportError(f"{name} is refused here")


sys.meta_path.insert(0, Refuse())

from benchmarks import loss, loss_candidates

loss_candidates.UPSAMPLED_SIDE = 8
loss.main()
"""


@pytest.mark.slow
@pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
def test_with_torch_and_triton_alone_every_loss_has_its_row_and_what_is_missing_its_reason() -> None:
    """The fused kernels run in Triton's interpreter here, through the very calls that a GPU gets."""
    options = "--device cpu --pixels 64 --classes 5 --repeats 1 --similarity cosine"
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *options.split()],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {line[:34].strip(): line[34:].split() for line in done.stdout.splitlines()}
    ours = (
        "dense",
        "exact (tiled)",
        "exact of maps (tiled)",
        "exact (compiled)",
        "exact of maps (compiled)",
        "exponentials alone",
        "exact (fused)",
        "exact (fused + upsample)",
        "knn K=7",
        "sampled K=256",
    )
    for name in ours:
        assert rows[name][1] == "ms", (name, rows[name])
        assert float(rows[name][0].replace(",", "")) > 0
    assert rows["cut_cross_entropy"] == rows["liger_kernel"] == ["not", "installed"]
    chunked = rows["F.linear_cross_entropy, chunked"]
    assert chunked[1] == ("ms" if hasattr(torch.nn, "LinearCrossEntropyOptions") else "torch")
    assert "P = 64, C = 5, D = 16" in done.stdout


def test_without_a_gpu_the_fused_rows_say_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    inputs = make_inputs(8, 3, 4, "cosine", torch.float32, "cpu")
    for candidate in loss_candidates.fused_candidates(inputs):
        assert candidate.left_out is not None
        assert "the fused kernels need" in candidate.left_out
        assert candidate.left_out in table(inputs, [candidate], None)


def test_the_bound_is_that_of_the_special_functions_or_of_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, for an H200: 132 multiprocessors at 1.98 GHz do 4.18e12 special functions a second."""
    properties = SimpleNamespace(multi_processor_count=132, clock_rate=1_980_000)  # kHz
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(loss_measure, "copy_bandwidth", lambda: 4e12)
    speed = gpu_speed()
    assert speed == Speed(132, 1.98e9, 4e12)
    for similarity, functions in (("cosine", 2), ("distance", 4)):
        inputs = make_inputs(4096, 1000, 16, similarity, torch.float32, "cpu")
        seconds = functions * 4096 * 1000 / (16 * 132 * 1.98e9)
        assert lower_bound(inputs, speed) == pytest.approx(seconds)
        read, written = 4096 * (16 * 4 + 8) + 1000 * 16 * 4, (4096 + 1000) * 16 * 4
        assert lower_bound(inputs, Speed(132, 1.98e9, 1e9)) == pytest.approx((read + written) / 1e9)
        candidate = Candidate("mine", lambda: torch.zeros(()), (), seconds=[3 * seconds, 2 * seconds])
        candidate.extra_bytes = 2**20
        assert table(inputs, [candidate], seconds).splitlines()[-1].split()[-1] == "2.00"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux resets a process's peak")
def test_resident_memory_counts_what_was_freed_before_and_is_taken_again() -> None:
    leaf = torch.zeros(1, requires_grad=True)

    def hungry() -> torch.Tensor:
        pieces = [torch.ones(2**18) for _ in range(24)]  # a MiB each, which the C library keeps when freed
        return leaf.sum() + sum(piece[0] for piece in pieces)

    candidate = Candidate("hungry", hungry, (leaf,))
    hungry()
    for _ in range(3):
        assert 22 * 2**20 < peak_resident_bytes(candidate) < 80 * 2**20
