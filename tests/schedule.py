"""How pytest-xdist deals out the tests: what shares an expensive fixture stays on one worker.

Tests of a file stay together. Files that share a session fixture of half a minute form one unit, and files
whose tests take long by themselves are dealt out test by test. Long units come first, so that no worker is
left with one at the end.
"""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

# one worker each, in this order, before all others: the parts of a path that name a unit
TOGETHER = {
    "the chain": ("tests/stages/",),
    "the sweep": (
        "tests/pipeline/cli/test_tune.py",
        "tests/pipeline/tuning/test_mlflow_sync.py",
    ),
}
ONE_BY_ONE = (
    "tests/pipeline/tuning/test_survival.py",
    "tests/pipeline/training/test_interruption.py",
)
EARLY = (
    *ONE_BY_ONE,
    "tests/models/fused/test_kernels_compile.py",
    "tests/test_benchmark_gpu.py",
    "tests/pipeline/tuning/",
    "tests/pipeline/inference/test_cluster.py",
    "tests/pipeline/memory/",
    "tests/pipeline/tracking/",
    "tests/pipeline/export/",
    "tests/pipeline/registry/",
    "tests/pipeline/training/",
    "tests/pipeline/data/layouts/test_whole_chain.py",
    "tests/pipeline/cli/",
    "tests/models/test_",
    "tests/test_repository.py",
)


def unit_of(node_id: str) -> str:
    """Return the name of the unit in which a test runs."""
    path = node_id.partition("::")[0]
    for name, places in TOGETHER.items():
        if path.startswith(places):
            return name
    return node_id if path in ONE_BY_ONE else path


def rank(unit: str) -> int:
    """Return the place of a unit in the order: the smaller, the earlier."""
    path = unit.partition("::")[0]
    names = [*TOGETHER, *EARLY]
    return next((place for place, name in enumerate(names) if path.startswith(name)), len(names))


class Schedule(LoadScopeScheduling):
    """Deal out units of tests in the order in which they were collected."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)
