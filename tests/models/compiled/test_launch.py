"""When the compiled code applies, what happens without numba, and where compiled code is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import exact_cross_entropy, nearest_classes
from models.compiled import launch, reason_against, supports
from models.implementation import NAMES, forced, implementation_for, implementation_on
from pipeline.doctor.software import KERNELS

PIXELS, CLASSES = torch.randn(6, 4), torch.randn(5, 4)


@pytest.fixture
def _no_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "reason_against_numba", lambda: "numba is not installed")


@pytest.fixture
def fresh_cache_folder() -> Iterator[None]:
    """What was found before is forgotten, before and after the test."""
    launch.cache_folder.cache_clear()
    yield
    launch.cache_folder.cache_clear()


def test_it_applies_to_single_and_half_precision_on_the_cpu() -> None:
    pytest.importorskip("numba")
    assert supports(PIXELS, CLASSES)
    assert supports(PIXELS.bfloat16(), CLASSES)
    assert "float64" in str(reason_against(PIXELS, CLASSES.double()))
    assert "meta" in str(reason_against(PIXELS.to("meta"), CLASSES))


@pytest.mark.usefixtures("_no_numba")
def test_without_numba_the_same_comes_from_plain_torch() -> None:
    assert implementation_for(PIXELS, CLASSES) == "tiled"
    target = torch.tensor([0, 1, 2, 3, 4, -100])
    loss = exact_cross_entropy(PIXELS, CLASSES, target)
    expected = exact_cross_entropy(PIXELS.double(), CLASSES.double(), target)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    assert nearest_classes(CLASSES, CLASSES, 1)[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_the_variable_forces_one_and_names_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KILOSEG_KERNELS", "tiled")
    assert implementation_for(PIXELS, CLASSES) == implementation_on(torch.device("cuda")) == "tiled"
    monkeypatch.setenv("KILOSEG_KERNELS", "fast")
    with pytest.raises(ValueError, match="is 'fast'; allowed are 'tiled', 'compiled', 'fused'"):
        exact_cross_entropy(PIXELS, CLASSES, torch.zeros(6, dtype=torch.int64))
    monkeypatch.setenv("KILOSEG_KERNELS", "compiled")
    with pytest.raises(ValueError, match=r"does not apply: class_embeddings are torch\.float64"):
        nearest_classes(PIXELS, CLASSES.double(), 1)
    assert KERNELS == NAMES


def test_one_is_forced_for_a_while_unless_the_variable_says_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with forced("tiled"):
        assert implementation_for(PIXELS, CLASSES) == "tiled"
    monkeypatch.setenv("KILOSEG_KERNELS", "compiled")
    with forced("tiled"):
        assert implementation_on(torch.device("cpu")) == "compiled"


def kernel_that_adds(one: float) -> Callable[..., Any]:
    @launch.kernel("void(float32[::1], float32)")
    def add(values: np.ndarray, number: float) -> None:
        for place in range(values.shape[0]):
            values[place] += number * one

    return add


@pytest.mark.usefixtures("fresh_cache_folder")
@pytest.mark.parametrize("writable", [True, False])
def test_compiled_code_is_kept_in_the_first_folder_that_can_be_written(
    writable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numba = pytest.importorskip("numba")
    before = numba.config.CACHE_DIR
    (tmp_path / "file").write_text("no folder can be made below a file")
    places = [tmp_path / "file" / "cache", *([tmp_path / "cache"] if writable else [])]
    monkeypatch.setattr(launch, "_cache_places", lambda: iter(places))
    values = np.zeros(3, np.float32)
    kernel_that_adds(1.0)(values, np.float32(2))
    assert values.tolist() == [2, 2, 2]
    kept = list(tmp_path.rglob("*.nbc"))
    assert len(kept) == writable
    assert all(tmp_path / "cache" in path.parents for path in kept)
    assert before == numba.config.CACHE_DIR


@pytest.mark.usefixtures("fresh_cache_folder")
def test_a_folder_of_somebody_else_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_cache_places", lambda: iter([tmp_path / "theirs"]))
    monkeypatch.setattr(launch.os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    assert launch.cache_folder() is None
