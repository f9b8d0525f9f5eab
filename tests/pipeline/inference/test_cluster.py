"""A Ray cluster writes the same files as one machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.inference.cluster import _fields, _rebuilt
from pipeline.runtime.errors import DataError, KilosegError, MemoryLimitError
from tests.command import pipeline_here
from tests.pipeline.inference.checkpoints import saved


def test_errors_come_back_from_workers_as_they_were() -> None:
    for problem in (
        DataError("a", where="b", found="c", allowed="d", hint="e"),
        MemoryLimitError("f"),
        KilosegError("g"),
    ):
        again = _rebuilt(json.loads(json.dumps(_fields(problem))))
        assert type(again) is type(problem)
        assert str(again) == str(problem)


@pytest.mark.process
@pytest.mark.slow
def test_a_cluster_writes_the_same_files(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    monkeypatch.chdir(tmp_path)
    source = str(saved(tmp_path))
    (photos / "foreign.png").write_text("hello")
    arguments = ["predict", "photos", "--checkpoint", source, "--rle", "--window", "48", "--device", "cpu"]
    assert pipeline_here(*arguments, "--out", "alone") == 3
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        # a process of its own: what other tests left of Ray in this one ends its workers early
        command = [sys.executable, "-m", "pipeline.cli.main", *arguments, "--out", "together"]
        command += ["--address", cluster.address]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    finally:
        cluster.shutdown()
    assert done.returncode == 3, done.stderr
    assert "1 of 4 pictures could not be read" in done.stderr
    assert "foreign.png" in done.stderr
    alone = {path.relative_to("alone"): path.read_bytes() for path in Path("alone").rglob("*.*")}
    together = {path.relative_to("together"): path.read_bytes() for path in Path("together").rglob("*.*")}
    assert len(alone) == 12
    assert together == alone
