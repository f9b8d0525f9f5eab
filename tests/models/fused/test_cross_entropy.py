"""The fused loss says what the plain formulas say; without a GPU, in Triton's interpreter and fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from models import fused
from models.embeddings import WORK_BYTES, LossOptions
from models.fused import launch as fused_launch
from models.fused import loss_pass
from tests.models.fused.comparison import (
    DEVICE,
    HAS_GPU,
    assert_same,
    fused_loss,
    labels,
    needs_gpu,
    needs_triton,
    plain_loss,
    tiled_loss,
    unit_rows,
    with_gradients,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fused_kernels_run_here", "one_thread")]


@needs_triton
class TestTheLoss:
    @pytest.mark.parametrize("similarity", ["distance", "cosine"])
    @pytest.mark.parametrize(
        ("dim", "num_classes", "num_pixels"),
        [(4, 2, 7), (6, 37, 65), (16, 130, 201), (17, 3, 1), (33, 37, 66), (64, 130, 70), (256, 37, 67)],
    )
    def test_equals_cross_entropy_on_all_logits_with_both_gradients(
        self, dim: int, num_classes: int, num_pixels: int, similarity: str
    ) -> None:
        pixels, classes = unit_rows(num_pixels, dim, 1), unit_rows(num_classes, dim, 2)
        target = labels(num_pixels + 1, num_classes)[1:]
        found = with_gradients(fused_loss, pixels, classes, target, similarity=similarity)
        assert_same(found, with_gradients(plain_loss, pixels, classes, target, similarity=similarity))

    @pytest.mark.parametrize("needed", ["all", "bias alone"])
    @pytest.mark.parametrize("dim", [17, 512])
    @pytest.mark.parametrize("of_maps", [False, True])
    def test_a_bias_is_that_of_a_classifier_with_its_gradient(
        self, of_maps: bool, dim: int, needed: str
    ) -> None:
        """Against float64 cross-entropy of all logits, upsampled for maps, at a temperature that is not 1."""
        generator = torch.Generator().manual_seed(0)
        shape = (1, dim, 4, 5) if of_maps else (70, dim)
        leaves = [torch.randn(size, generator=generator).to(DEVICE) for size in (shape, (37, dim), (37,))]
        for leaf, wanted in zip(leaves, (needed == "all", needed == "all", True), strict=True):
            leaf.requires_grad_(wanted)
        embeddings, classes, bias = leaves
        target = labels(8 * 10, 37)[:80].view(1, 8, 10) if of_maps else labels(70, 37)
        options = LossOptions(temperature=0.5, similarity="dot")
        loss = fused.fused_exact_cross_entropy(embeddings, classes, target, options, bias)
        rows = embeddings.double()
        if of_maps:
            rows = F.interpolate(rows, size=(8, 10), mode="bilinear").permute(0, 2, 3, 1).flatten(0, 2)
        exact = F.cross_entropy(rows @ classes.double().T / 0.5 + bias.double(), target.flatten())
        inputs = [leaf for leaf in leaves if leaf.requires_grad]
        found = loss, *torch.autograd.grad(loss, inputs)
        assert_same(found, (exact, *torch.autograd.grad(exact, inputs)), tolerance=1e-4)

    def test_a_bias_of_distances_is_refused(self) -> None:
        inputs = unit_rows(5, 8), unit_rows(4, 8), labels(5, 4), None, torch.zeros(4, device=DEVICE)
        with pytest.raises(ValueError, match="bias is given and similarity is 'distance'"):
            fused.fused_exact_cross_entropy(*inputs)

    @pytest.mark.parametrize("dim", [100, 256])
    def test_equals_it_too_where_a_gpu_has_little_shared_memory(
        self, dim: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fused_launch, "shared_memory", lambda device: 99 * 1024)
        tile = fused_launch.small_tile(
            fused_launch.kernel_constants(torch.float32, torch.float32, dim), DEVICE
        )
        assert tile in fused_launch.SMALL_TILES.values()
        inputs = unit_rows(67, dim, 1), unit_rows(37, dim, 2), labels(67, 37)
        assert_same(with_gradients(fused_loss, *inputs), with_gradients(plain_loss, *inputs))
        found = fused.fused_nearest_classes(inputs[0], inputs[1], 2)
        assert torch.equal(found, torch.cdist(inputs[0].double(), inputs[1].double()).sort(1).indices[:, :2])

    def test_equals_the_torch_twin(self) -> None:
        inputs = unit_rows(90, 12, 1), unit_rows(70, 12, 2), labels(90, 70)
        found = with_gradients(fused_loss, *inputs, temperature=0.1)
        assert_same(found, with_gradients(tiled_loss, *inputs, temperature=0.1))

    @pytest.mark.parametrize("similarity", ["distance", "cosine"])
    @pytest.mark.parametrize(
        ("pixel_dtype", "class_dtype"),
        [(torch.float16, torch.float16), (torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)],
    )
    def test_half_precision_inputs_are_read_as_they_are_and_summed_in_fp32(
        self, pixel_dtype: torch.dtype, class_dtype: torch.dtype, similarity: str
    ) -> None:
        """All but bf16 with bf16, which the interpreter multiplies wrongly."""
        pixels, classes = unit_rows(90, 12, 1).to(pixel_dtype), unit_rows(70, 12, 2).to(class_dtype)
        target = labels(90, 70)
        found = with_gradients(fused_loss, pixels, classes, target, similarity=similarity)
        assert [tensor.dtype for tensor in found] == [torch.float32, pixel_dtype, class_dtype]
        doubled = pixels.double(), classes.double()
        wanted = with_gradients(plain_loss, *doubled, target, similarity=similarity)
        assert_same(found, wanted, tolerance=1e-2)  # the gradients are rounded to the inputs' precision

    @pytest.mark.parametrize("similarity", ["distance", "cosine"])
    def test_does_not_need_unit_vectors(self, similarity: str) -> None:
        inputs = 5 * unit_rows(40, 8, 1), 3 * unit_rows(20, 8, 2), labels(40, 20)
        options: dict[str, Any] = {"similarity": similarity, "temperature": 0.7}
        found = with_gradients(fused_loss, *inputs, **options)
        assert_same(found, with_gradients(plain_loss, *inputs, **options))

    @pytest.mark.parametrize("similarity", ["distance", "cosine"])
    def test_survives_logits_whose_exponentials_do_not(self, similarity: str) -> None:
        """At temperature 1e-4 the logits span 20,000: naive exponentials are 0 or infinite."""
        inputs = unit_rows(40, 8, 1), unit_rows(20, 8, 2), labels(40, 20)
        options: dict[str, Any] = {"similarity": similarity, "temperature": 1e-4}
        found = with_gradients(fused_loss, *inputs, **options)
        assert all(torch.isfinite(tensor).all() for tensor in found)
        torch.testing.assert_close(found[0].double(), plain_loss(*inputs, **options), rtol=1e-5, atol=1e-3)

    def test_many_slices_and_chunks_sum_to_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        inputs = unit_rows(300, 8, 1), unit_rows(70, 8, 2), labels(300, 70)
        wanted = with_gradients(plain_loss, *inputs)
        monkeypatch.setattr(loss_pass, "CHUNK_PIXELS", 128)
        monkeypatch.setattr(loss_pass, "SLICE_PIXELS", 40)
        assert loss_pass.number_of_slices(70, 8, 128, WORK_BYTES, loss_pass.CLASS_TILES[16, False]) == 4
        assert_same(with_gradients(fused_loss, *inputs), wanted)

    def test_a_pixel_on_its_own_class_has_no_pull_and_loses_no_precision(self) -> None:
        """e = w for the target: the distance is 0, and the loss is what the other classes share."""
        classes = unit_rows(5, 6, 2)
        loss, gradient, class_gradient = with_gradients(
            fused_loss, classes.clone(), classes, torch.arange(5, device=DEVICE)
        )
        assert 0 <= float(loss) < 1e-3
        assert torch.isfinite(gradient).all()
        assert torch.isfinite(class_gradient).all()
        pulls = torch.autograd.functional.jacobian(
            lambda pixels: plain_loss(pixels, classes, torch.arange(5, device=DEVICE)), classes.double()
        )
        torch.testing.assert_close(gradient.double(), 3 * pulls, rtol=1e-4, atol=1e-9)

    def test_a_pixel_on_another_class_is_finite(self) -> None:
        classes = unit_rows(5, 6, 2)
        target = torch.tensor([1, 2, 3, 4, 0], device=DEVICE)
        found = with_gradients(fused_loss, classes.clone(), classes, target)
        assert all(torch.isfinite(tensor).all() for tensor in found)
        torch.testing.assert_close(found[0].double(), plain_loss(classes, classes, target), rtol=1e-3, atol=0)

    def test_ignored_pixels_count_for_nothing_even_where_the_index_is_a_class(self) -> None:
        pixels, classes, target = unit_rows(60, 6, 1), unit_rows(9, 6, 2), labels(60, 9, ignored=3)
        found = with_gradients(fused_loss, pixels, classes, target, ignore_index=3)
        assert not found[1][target == 3].any()
        assert_same(found, with_gradients(plain_loss, pixels, classes, target, ignore_index=3))

    @pytest.mark.parametrize("num_pixels", [0, 70])
    def test_without_a_labeled_pixel_it_is_a_finite_zero_with_zero_gradients(self, num_pixels: int) -> None:
        target = torch.full((num_pixels,), -100, device=DEVICE)
        found = with_gradients(fused_loss, unit_rows(num_pixels, 6), unit_rows(9, 6), target)
        assert all(torch.equal(tensor, torch.zeros_like(tensor)) for tensor in found)

    def test_a_class_that_does_not_exist_makes_the_loss_nan(self) -> None:
        target = torch.tensor([0, 9, 1], device=DEVICE)
        assert fused_loss(unit_rows(3, 6), unit_rows(9, 6), target).isnan()

    def test_same_input_same_bits(self) -> None:
        inputs = unit_rows(150, 16, 1), unit_rows(40, 16, 2), labels(150, 40)
        first = with_gradients(fused_loss, *inputs)
        second = with_gradients(fused_loss, *inputs)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    @pytest.mark.parametrize("wanted", [0, 1])
    def test_a_single_gradient_is_the_same_as_with_both(
        self, wanted: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        inputs = [unit_rows(70, 6, 1), unit_rows(9, 6, 2)]
        target = labels(70, 9)
        both = with_gradients(fused_loss, *inputs, target)
        launched = count_launches(monkeypatch)
        inputs[wanted] = inputs[wanted].clone().requires_grad_()
        (3 * fused_loss(*inputs, target)).backward()
        # another kernel: on a GPU its multiplications and additions may be fused otherwise
        near = {"rtol": 1e-5, "atol": 5e-6} if HAS_GPU else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(inputs[wanted].grad, both[1 + wanted], **near)
        assert launched == {"loss_forward": 1, "class_backward": wanted}

    def test_without_gradients_only_the_loss_is_computed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        launched = count_launches(monkeypatch)
        with torch.no_grad():
            loss = fused_loss(
                unit_rows(70, 6, 1).requires_grad_(), unit_rows(9, 6, 2).requires_grad_(), labels(70, 9)
            )
        assert not loss.requires_grad
        assert launched == {"loss_forward": 1, "class_backward": 0}

    def test_a_retained_graph_gives_the_same_gradients_again(self) -> None:
        pixels, classes = unit_rows(70, 6, 1).requires_grad_(), unit_rows(9, 6, 2).requires_grad_()
        loss = fused_loss(pixels, classes, labels(70, 9))
        first = torch.autograd.grad(loss, (pixels, classes), retain_graph=True)
        kept = [gradient.clone() for gradient in first]
        second = torch.autograd.grad(2 * loss, (pixels, classes))
        for once, twice, copy in zip(first, second, kept, strict=True):
            assert torch.equal(once, copy)
            torch.testing.assert_close(twice, 2 * copy)

    def test_strided_inputs_are_taken_as_they_are(self) -> None:
        maps = unit_rows(48, 6, 1).reshape(6, 8, 6).permute(2, 0, 1)  # (D, H, W), strided
        pixels, classes, target = maps.reshape(6, -1).T, unit_rows(9, 6, 2), labels(48, 9)
        found = with_gradients(fused_loss, pixels, classes, target)
        assert_same(found, with_gradients(plain_loss, pixels.contiguous(), classes, target))


def count_launches(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts the launches of the two heavy kernels from here on."""
    from models.fused import loss_kernels as fused_kernels

    counts = {}
    for name in ("loss_forward", "class_backward"):
        counts[name] = 0
        monkeypatch.setattr(fused_kernels, name, _Counting(name, getattr(fused_kernels, name), counts))
    return counts


class _Counting:
    def __init__(self, name: str, kernel: Any, counts: dict[str, int]) -> None:
        self.name, self.kernel, self.counts = name, kernel, counts

    def __getitem__(self, grid: Any) -> Any:
        self.counts[self.name] += 1
        return self.kernel[grid]


@needs_triton
@needs_gpu
class TestOnAGpu:
    @pytest.mark.parametrize("similarity", ["distance", "cosine"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize(
        ("dim", "num_classes"), [(6, 150), (16, 1284), (33, 1284), (64, 300), (128, 130), (256, 130)]
    )
    def test_every_precision_agrees_with_float64_on_the_same_numbers(
        self, dim: int, num_classes: int, dtype: torch.dtype, similarity: str
    ) -> None:
        inputs = unit_rows(3001, dim, 1).to(dtype), unit_rows(num_classes, dim, 2).to(dtype)
        target = labels(3001, num_classes)
        found = with_gradients(fused_loss, *inputs, target, similarity=similarity)
        doubled = [tensor.double() for tensor in inputs]
        wanted = with_gradients(plain_loss, *doubled, target, similarity=similarity)
        assert_same(found, wanted, tolerance=1e-4 if dtype == torch.float32 else 1e-2)

    def test_pixels_in_bf16_and_classes_in_fp32_go_together(self) -> None:
        inputs = unit_rows(3001, 16, 1).bfloat16(), unit_rows(1284, 16, 2), labels(3001, 1284)
        found = with_gradients(fused_loss, *inputs)
        assert [tensor.dtype for tensor in found] == [torch.float32, torch.bfloat16, torch.float32]
        assert_same(found, with_gradients(plain_loss, inputs[0].double(), *inputs[1:]), tolerance=1e-2)

    def test_a_large_input_gives_the_same_bits_twice_in_memory_the_size_of_the_inputs(self) -> None:
        inputs = unit_rows(2**20, 16, 1), unit_rows(1284, 16, 2), labels(2**20, 1284)
        first = with_gradients(fused_loss, *inputs)
        second = with_gradients(fused_loss, *inputs)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        del first, second
        pixels, classes = (tensor.requires_grad_() for tensor in inputs[:2])
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        fused_loss(pixels, classes, inputs[2]).backward()
        extra = torch.cuda.max_memory_allocated() - before
        sizes = sum(tensor.numel() * tensor.element_size() for tensor in inputs)
        assert extra <= sizes + WORK_BYTES
