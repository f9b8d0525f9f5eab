"""When the compiled code applies, what happens without numba, and where compiled code is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import exact_cross_entropy, nearest_classes
from models.compiled import launch, machine_code, reason_against, supports
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


def make_kernel() -> Callable[..., Any]:
    """One that nothing has compiled or loaded yet."""

    @launch.kernel("float64(float32[:,::1], int64, float32)")
    def add_to_row(values: np.ndarray, row: int, number: float) -> float:
        for place in range(values.shape[1]):
            values[row, place] += number
        return values.shape[1]

    return add_to_row


def is_right(kernel: Callable[..., Any]) -> bool:
    values = np.zeros((2, 3), np.float32)
    return kernel(values, 1, 2.5) == 3 and values.tolist() == [[0, 0, 0], [2.5, 2.5, 2.5]]


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Where compiled code may be kept: at first one that cannot be made, and one that can."""
    pytest.importorskip("numba")
    (tmp_path / "file").write_text("no folder can be made below a file")
    found = [tmp_path / "file" / "cache", tmp_path / "cache"]
    monkeypatch.setattr(launch, "_cache_places", lambda: iter(found))
    launch.cache_folder.cache_clear()
    yield found
    launch.cache_folder.cache_clear()


def refuse_to_compile(*_: Any) -> None:
    raise AssertionError("this is compiled")


def test_compiled_code_is_kept_and_loaded_without_numba(
    places: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_right(make_kernel())
    (kept,) = places[1].rglob("*.o")
    kept.write_bytes(kept.read_bytes()[:-1])
    assert is_right(make_kernel())  # a damaged file is made anew
    monkeypatch.setattr(machine_code, "make_object", refuse_to_compile)
    assert is_right(make_kernel())
    kept.unlink()
    with pytest.raises(AssertionError, match="this is compiled"):
        make_kernel()(np.zeros((2, 3), np.float32), 0, 1.0)


def test_where_nothing_can_be_written_it_is_compiled_all_the_same(places: list[Path], tmp_path: Path) -> None:
    del places[1]
    assert is_right(make_kernel())
    assert not list(tmp_path.rglob("*.o"))


@pytest.mark.usefixtures("places")
def test_another_way_of_calling_is_left_to_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_code, "_is_called_as_expected", lambda *_: False)
    assert is_right(make_kernel())


@pytest.mark.usefixtures("places")
def test_arrays_of_another_kind_are_refused() -> None:
    kernel = make_kernel()
    for wrong in (np.zeros((2, 3)), np.zeros((3, 2), np.float32).T, np.zeros(3, np.float32)):
        with pytest.raises(TypeError, match="takes a contiguous float32 array of 2 dimensions"):
            kernel(wrong, 0, 1.0)


@pytest.mark.usefixtures("fresh_cache_folder")
def test_a_folder_of_somebody_else_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_cache_places", lambda: iter([tmp_path / "theirs"]))
    monkeypatch.setattr(launch.os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    assert launch.cache_folder() is None
