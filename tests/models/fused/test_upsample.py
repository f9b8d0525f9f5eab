"""The fused loss of maps says what interpolating first says; without a GPU, in the interpreter and fp32."""

from __future__ import annotations

import pytest
import torch

from tests.models.fused.comparison import (
    assert_same,
    fused_loss,
    labels,
    needs_gpu,
    needs_triton,
    unit_rows,
    upsampled_plain_loss,
    with_gradients,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fused_kernels_run_here", "one_thread")]


@needs_triton
class TestTheUpsampledLoss:
    @pytest.mark.parametrize(
        ("images", "size", "full_size", "similarity", "work_bytes"),
        [
            (2, (2, 3), (8, 12), "distance", 12000),
            (1, (2, 3), (8, 12), "cosine", 2**20),
            (1, (3, 2), (7, 5), "distance", 2**20),
            (1, (3, 3), (3, 3), "distance", 2**20),
            (2, (5, 4), (3, 2), "cosine", 200),
            (1, (1, 1), (5, 3), "distance", 2**20),
        ],
    )
    def test_equals_interpolating_first(
        self, images: int, size: tuple[int, int], full_size: tuple[int, int], similarity: str, work_bytes: int
    ) -> None:
        """At stride 4, at odd ratios, at the same size and downwards; in one band and in many."""
        maps = unit_rows(images * size[0] * size[1], 6, 1).reshape(images, *size, 6).permute(0, 3, 1, 2)
        target = labels(images * full_size[0] * full_size[1], 9).reshape(images, *full_size)
        inputs = maps, unit_rows(9, 6, 2), target
        found = with_gradients(fused_loss, *inputs, similarity=similarity, work_bytes=work_bytes)
        assert found[1].shape == maps.shape
        assert_same(found, with_gradients(upsampled_plain_loss, *inputs, similarity=similarity))

    @pytest.mark.parametrize("dim", [4, 33, 256])
    def test_of_any_size_of_embedding(self, dim: int) -> None:
        maps = unit_rows(6, dim, 1).reshape(1, 2, 3, dim).permute(0, 3, 1, 2)
        inputs = maps, unit_rows(9, dim, 2), labels(96, 9).reshape(1, 8, 12)
        found = with_gradients(fused_loss, *inputs)
        assert_same(found, with_gradients(upsampled_plain_loss, *inputs))

    def test_same_input_same_bits_whatever_the_memory_format(self) -> None:
        maps = unit_rows(6, 5, 1).reshape(1, 2, 3, 5).permute(0, 3, 1, 2)
        target = labels(30, 7).reshape(1, 5, 6)
        first = with_gradients(fused_loss, maps, unit_rows(7, 5, 2), target)
        second = with_gradients(fused_loss, maps.contiguous(), unit_rows(7, 5, 2), target)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    def test_a_band_keeps_to_the_byte_budget(self) -> None:
        from models.fused.upsample import rows_per_band

        rows = rows_per_band(512, 16 * 512, 16, 4, 32 * 2**20, True)
        assert 100 < rows < 16 * 512
        assert rows * 512 * (16 * (4 + 4) + 12) <= 32 * 2**20


@needs_triton
@needs_gpu
class TestOnAGpu:
    @pytest.mark.parametrize("similarity", ["distance", "cosine"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_the_upsampled_loss_agrees_at_stride_4(self, dtype: torch.dtype, similarity: str) -> None:
        maps = unit_rows(2 * 40 * 30, 16, 1).reshape(2, 40, 30, 16).permute(0, 3, 1, 2).to(dtype)
        classes, target = unit_rows(150, 16, 2).to(dtype), labels(2 * 160 * 120, 150).reshape(2, 160, 120)
        found = with_gradients(
            fused_loss,
            maps, classes, target, similarity=similarity, work_bytes=2**20,
        )  # fmt: skip
        wanted = with_gradients(
            upsampled_plain_loss, maps.double(), classes.double(), target, similarity=similarity
        )
        if dtype == torch.float32:
            assert_same(found, wanted, tolerance=1e-4)
        else:  # the interpolated embeddings are rounded to bf16, as F.interpolate rounds them
            torch.testing.assert_close(found[0].double(), wanted[0].double(), rtol=1e-3, atol=1e-3)
