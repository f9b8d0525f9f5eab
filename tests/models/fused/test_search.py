"""The fused search finds what sorting all classes finds; without a GPU, in the interpreter and fp32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models import fused, nearest
from tests.models.fused.comparison import (
    DEVICE,
    needs_gpu,
    needs_triton,
    plain_logits,
    unit_rows,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fused_kernels_run_here", "one_thread")]


@needs_triton
class TestTheSearch:
    @pytest.mark.parametrize("similarity", ["distance", "cosine"])
    @pytest.mark.parametrize(
        ("dim", "num_classes", "k"),
        [(4, 2, 1), (6, 37, 1), (16, 130, 7), (33, 70, 1), (64, 37, 3), (17, 9, 9), (512, 20, 2)],
    )
    def test_equals_sorting_all_classes(self, dim: int, num_classes: int, k: int, similarity: str) -> None:
        pixels, classes = unit_rows(67, dim, 1), 1.5 * unit_rows(num_classes, dim, 2)
        found = fused.fused_nearest_classes(pixels, classes, k, similarity=similarity)
        logits = plain_logits(pixels.double(), classes.double(), similarity, 1.0)
        assert found.dtype == torch.int64
        assert torch.equal(found, logits.sort(1, descending=True).indices[:, :k])

    @pytest.mark.parametrize("k", [1, 3])
    def test_a_bias_is_added_to_inner_products(self, k: int) -> None:
        pixels, classes = unit_rows(67, 17, 1), unit_rows(70, 17, 2)
        bias = torch.linspace(-1, 1, 70, device=DEVICE)
        found = fused.fused_nearest_classes(pixels, classes, k, similarity="dot", bias=bias)
        scores = pixels.double() @ classes.double().T + bias.double()
        assert torch.equal(found, scores.sort(1, descending=True).indices[:, :k])
        with pytest.raises(ValueError, match="a search takes a bias with 'dot' only"):
            fused.fused_nearest_classes(pixels, classes, k, bias=bias)

    @pytest.mark.parametrize("k", [1, 5])
    def test_among_equals_the_lower_id_comes_first(self, k: int) -> None:
        """Every class three times, in the same tile of classes and in later ones.

        In sixteenths, so that every product is exact: rounded, it may depend on where a class stands.
        """
        pixels, once = ((unit_rows(count, 6, seed) * 16).round() / 16 for count, seed in ((33, 1), (40, 2)))
        classes = torch.cat([once, once, once])
        found = fused.fused_nearest_classes(pixels, classes, k)
        remoteness = classes.square().sum(1) - 2 * pixels @ classes.T  # (33, 120)
        assert torch.equal(found, remoteness.sort(dim=1, stable=True).indices[:, :k])

    def test_finds_as_many_as_it_promises(self) -> None:
        pixels, classes = unit_rows(5, 4, 1), unit_rows(70, 4, 2)
        found = fused.fused_nearest_classes(pixels, classes, fused.MAX_NEAREST)
        wanted = torch.cdist(pixels.double(), classes.double()).sort(1).indices[:, : fused.MAX_NEAREST]
        assert torch.equal(found, wanted)

    def test_a_pixel_that_is_not_a_number_gets_ids_that_exist(self) -> None:
        pixels = torch.full((3, 6), float("nan"), device=DEVICE)
        for k in (1, 4):
            found = fused.fused_nearest_classes(pixels, unit_rows(9, 6), k)
            assert ((found >= 0) & (found < 9)).all()

    @pytest.mark.parametrize("k", [fused.MAX_NEAREST, fused.MAX_NEAREST + 1])
    def test_longer_lists_are_left_to_the_portable_search(
        self, k: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`nearest_classes` may use the kernels here, and is asked for more than they can list."""
        calls: list[int] = []

        def counting(pixels: torch.Tensor, classes: torch.Tensor, k: int, **options: str) -> torch.Tensor:
            calls.append(k)
            return fused.fused_nearest_classes(pixels, classes, k, **options)

        monkeypatch.setattr(nearest, "fused_nearest_classes", counting)
        pixels, classes = unit_rows(5, 4, 1), unit_rows(fused.MAX_NEAREST + 6, 4, 2)
        found = nearest.nearest_classes(pixels, classes, k)
        assert calls == ([k] if k <= fused.MAX_NEAREST else [])
        assert torch.equal(found, torch.cdist(pixels.double(), classes.double()).sort(1).indices[:, :k])

    @pytest.mark.parametrize(("similarity", "work_bytes"), [("distance", 2**25), ("dot", 1_000)])
    def test_of_upsampled_maps_equals_interpolating_first(self, similarity: str, work_bytes: int) -> None:
        """In one band, and in bands of a row or two."""
        maps = unit_rows(2 * 3 * 5, 6, 1).reshape(2, 3, 5, 6).permute(0, 3, 1, 2)
        classes = unit_rows(37, 6, 2)
        bias = torch.linspace(-1, 1, 37, device=DEVICE) if similarity == "dot" else None
        found = nearest.predict_classes(
            maps, classes, (12, 17), similarity=similarity, bias=bias, work_bytes=work_bytes
        )
        rows = F.interpolate(maps.double(), size=(12, 17), mode="bilinear").permute(0, 2, 3, 1).flatten(0, 2)
        scores = plain_logits(rows, classes.double(), "cosine" if bias is not None else similarity, 1.0)
        scores = scores if bias is None else scores + bias.double()
        assert torch.equal(found, scores.argmax(1).view(2, 12, 17))
        assert nearest.predict_classes(maps[:0], classes, (12, 17)).shape == (0, 12, 17)

    def test_of_maps_with_aligned_corners_equals_interpolating_first(self) -> None:
        maps, classes = unit_rows(15, 6, 1).reshape(1, 3, 5, 6).permute(0, 3, 1, 2), unit_rows(37, 6, 2)
        found = nearest.predict_classes(maps, classes, (12, 17), align_corners=True)
        upsampled = F.interpolate(maps.double(), size=(12, 17), mode="bilinear", align_corners=True)
        scores = plain_logits(upsampled.permute(0, 2, 3, 1).flatten(0, 2), classes.double(), "distance", 1.0)
        assert torch.equal(found, scores.argmax(1).view(1, 12, 17))

    def test_of_no_pixels_finds_none(self) -> None:
        assert fused.fused_nearest_classes(unit_rows(0, 6), unit_rows(9, 6), 2).shape == (0, 2)

    @pytest.mark.parametrize(("num_classes", "k"), [(9, 0), (9, 10), (200, fused.MAX_NEAREST + 1)])
    def test_a_list_that_is_too_long_is_refused_with_the_limit(self, num_classes: int, k: int) -> None:
        with pytest.raises(
            ValueError, match=rf"k is {k}; allowed here: 1..{min(num_classes, fused.MAX_NEAREST)}"
        ):
            fused.fused_nearest_classes(unit_rows(5, 6), unit_rows(num_classes, 6), k)


@needs_triton
@needs_gpu
class TestOnAGpu:
    @pytest.mark.parametrize("k", [1, 7, fused.MAX_NEAREST])
    def test_the_search_finds_classes_as_near_as_any(self, k: int) -> None:
        """Compared by distance: rounding may swap two classes that are equally far to seven digits."""
        pixels, classes = unit_rows(20001, 16, 1), unit_rows(1284, 16, 2)
        found = fused.fused_nearest_classes(pixels, classes, k)
        distances = torch.cdist(pixels.double(), classes.double())
        torch.testing.assert_close(
            distances.gather(1, found), distances.topk(k, largest=False).values, rtol=0, atol=1e-4
        )
        assert (found.sort(1).values.diff(dim=1) > 0).all()
