"""The rule for when the kernels apply, what they refuse, and that importing them needs no Triton."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models import fused
from models.fused import launch as fused_launch
from models.fused import loss_pass, search
from models.losses import exact
from tests.models.fused.comparison import (
    DEVICE,
    assert_same,
    fused_loss,
    labels,
    needs_triton,
    tiled_loss,
    unit_rows,
    with_gradients,
)

pytestmark = pytest.mark.usefixtures("fused_kernels_run_here", "one_thread")


@needs_triton
class TestTheRule:
    """`supports` alone decides whether losses and search use the kernels; here it may say yes on the CPU."""

    @pytest.mark.slow
    @pytest.mark.parametrize("similarity", ["distance", "cosine"])
    def test_the_loss_of_maps_is_the_kernels(self, similarity: str, monkeypatch: pytest.MonkeyPatch) -> None:
        maps = unit_rows(2 * 3 * 4, 6, 1).reshape(2, 3, 4, 6).permute(0, 3, 1, 2)
        inputs = maps, unit_rows(37, 6, 2), labels(2 * 9 * 13, 37).reshape(2, 9, 13)
        calls = count_calls(monkeypatch)
        found = with_gradients(exact.exact_cross_entropy, *inputs, similarity=similarity)
        assert len(calls) == 1
        assert_same(found, with_gradients(tiled_loss, *inputs, similarity=similarity))

    def test_the_loss_of_some_pixels_of_maps_is_the_kernels_of_their_rows(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        maps = unit_rows(2 * 3 * 4, 6, 1).reshape(2, 3, 4, 6).permute(0, 3, 1, 2)
        classes, target = unit_rows(37, 6, 2), labels(2 * 9 * 13, 37).reshape(2, 9, 13)
        pixels = (target.flatten() >= 0).nonzero()[::7, 0]
        alone = torch.full_like(target, -100)
        alone.view(-1)[pixels] = target.flatten()[pixels]
        calls = count_calls(monkeypatch)
        found = with_gradients(exact.exact_cross_entropy, maps, classes, target, pixels=pixels)
        assert [call.shape for call in calls] == [(len(pixels), 6)]
        assert_same(found, with_gradients(tiled_loss, maps, classes, alone))

    def test_the_loss_of_rows_is_the_kernels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        inputs = unit_rows(50, 6, 1), unit_rows(37, 6, 2), labels(50, 37)
        calls = count_calls(monkeypatch)
        found = with_gradients(exact.exact_cross_entropy, *inputs)
        assert len(calls) == 1
        assert_same(found, with_gradients(tiled_loss, *inputs))

    def test_a_target_that_is_no_class_makes_the_loss_nan(self) -> None:
        target = torch.full((5,), 37, device=DEVICE)
        assert exact.exact_cross_entropy(unit_rows(5, 6, 1), unit_rows(37, 6, 2), target).isnan()

    def test_float16_is_handed_to_the_kernels_as_float32(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = count_calls(monkeypatch)
        loss = exact.exact_cross_entropy(unit_rows(5, 6).half(), unit_rows(9, 6).half(), labels(5, 9))
        assert loss.dtype == torch.float32
        assert [call.dtype for call in calls] == [torch.float32]

    @pytest.mark.parametrize(
        ("dim", "dtypes"),
        [(3, ("float32",) * 2), (513, ("float32",) * 2), (6, ("float64",) * 2), (6, ("float32", "float64"))],
    )
    def test_other_sizes_and_float64_stay_in_torch(
        self, dim: int, dtypes: tuple[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pixels, classes = (
            unit_rows(count, dim).to(getattr(torch, dtype))
            for count, dtype in zip((5, 9), dtypes, strict=True)
        )
        assert not fused.supports(pixels, classes)
        calls = count_calls(monkeypatch)
        assert exact.exact_cross_entropy(pixels, classes, labels(5, 9)).isfinite()
        assert calls == []

    @pytest.mark.parametrize("dim", [4, 512])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_the_smallest_and_the_largest_size_are_the_kernels_in_three_precisions(
        self, dim: int, dtype: torch.dtype
    ) -> None:
        assert fused.supports(unit_rows(5, dim).to(dtype), unit_rows(9, dim))

    @pytest.mark.parametrize("dim", [64, 65])
    def test_long_classes_beside_pixels_in_bf16_are_rounded_as_autocast_rounds_a_weight(
        self, dim: int
    ) -> None:
        pixels, classes = unit_rows(5, dim).bfloat16(), unit_rows(9, dim)
        kept, rounded = fused.to_kernel_dtypes(pixels, classes)
        assert kept is pixels
        assert rounded.dtype == (torch.float32 if dim == 64 else torch.bfloat16)


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The pixel embeddings of every call of the fused loss from here on."""
    calls: list[torch.Tensor] = []
    function = exact.fused_exact_cross_entropy

    def counting(pixels: torch.Tensor, *arguments: Any) -> torch.Tensor:
        calls.append(pixels)
        return function(pixels, *arguments)

    monkeypatch.setattr(exact, "fused_exact_cross_entropy", counting)
    return calls


class TestWhatIsRefused:
    @needs_triton
    @pytest.mark.parametrize(
        ("arguments", "options", "message"),
        [
            ((unit_rows(5, 3), unit_rows(4, 3), labels(5, 4)), {}, "D is 3; allowed: 4..512"),
            ((unit_rows(5, 6), unit_rows(4, 8), labels(5, 4)), {}, r"allowed: \(P, 8\) or \(N, 8, h, w\)"),
            ((unit_rows(5, 6), unit_rows(4, 6), labels(6, 4)), {}, r"target has shape \(6,\)"),
            (
                (unit_rows(5, 6).double(), unit_rows(4, 6), labels(5, 4)),
                {},
                "pixel_embeddings is torch.float64",
            ),
            ((unit_rows(5, 6), unit_rows(4, 6), labels(5, 4)), {"temperature": 0.0}, "temperature is 0.0"),
            (
                (unit_rows(5, 6), unit_rows(4, 6), labels(5, 4)),
                {"similarity": "sine"},
                "similarity is 'sine'",
            ),
        ],
    )
    def test_a_wrong_call_names_what_is_allowed(
        self, arguments: Any, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            fused_loss(*arguments, **options)

    def test_cpu_tensors_are_refused_outside_the_interpreter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        pixels, classes = unit_rows(5, 6).cpu(), unit_rows(4, 6).cpu()
        assert not fused.supports(pixels, classes)
        with pytest.raises(RuntimeError, match=r"Triton|CUDA device"):
            fused_loss(pixels, classes, labels(5, 4).cpu())

    def test_without_triton_the_module_imports_and_the_functions_say_so(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fused_launch, "TRITON_INSTALLED", False)
        assert not fused.supports(unit_rows(5, 6), unit_rows(4, 6))
        with pytest.raises(RuntimeError, match="need Triton, which is not installed"):
            fused.fused_nearest_classes(unit_rows(5, 6), unit_rows(4, 6), 1)


def test_no_tile_is_one_for_wgmma() -> None:
    """ptxas before 13.3 miscompiles those; see `models.fused.launch.Tile`."""
    keeps_pixels = [*loss_pass.FORWARD_TILES.values(), *search.NEAREST_TILES.values()]
    keeps_pixels += search.LIST_TILES.values()
    small = list(fused_launch.SMALL_TILES.values())
    rows = [(tile.pixels, tile.warps) for tile in keeps_pixels + small]
    rows += [(tile.classes, tile.warps) for tile in [*loss_pass.CLASS_TILES.values(), *small]]
    assert all(kept < 64 or warps % 4 for kept, warps in rows)
