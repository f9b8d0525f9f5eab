"""The fused kernels say what the plain formulas say; without a GPU, in Triton's interpreter and fp32."""

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from models import fused, fused_launch, fused_loss, losses, nearest
from tests.interpreter import WHY_NOT

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
needs_triton = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


@pytest.fixture(autouse=True)
def runs_on_this_machine(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """On the CPU the functions insist on the interpreter, which conftest.py has prepared."""
    if HAS_GPU or find_spec("triton") is None:
        return
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The interpreter gains nothing from threads and loses much where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def unit_rows(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    rows = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return F.normalize(rows, dim=1).to(DEVICE)


def labels(count: int, num_classes: int, seed: int = 0, ignored: int = -1) -> torch.Tensor:
    """Random classes; every fifth pixel is unlabelled."""
    target = torch.randint(0, num_classes, (count,), generator=torch.Generator().manual_seed(seed))
    target[::5] = ignored
    return target.to(DEVICE)


def plain_logits(
    pixels: torch.Tensor, classes: torch.Tensor, similarity: str, temperature: float
) -> torch.Tensor:
    if similarity == "cosine":
        return pixels @ classes.T / temperature
    differences = pixels[:, None] - classes[None]
    return -differences.square().sum(2).clamp(min=1e-30).sqrt() / temperature


def plain_loss(
    pixels: torch.Tensor,
    classes: torch.Tensor,
    target: torch.Tensor,
    *,
    similarity: str = "distance",
    temperature: float = 0.05,
    ignore_index: int = -1,
) -> torch.Tensor:
    """The definition, in float64, with all pixels x classes logits."""
    logits = plain_logits(pixels.double(), classes.double(), similarity, temperature)
    return F.cross_entropy(logits, target, ignore_index=ignore_index)


def with_gradients(function: Any, *inputs: torch.Tensor, **options: Any) -> tuple[torch.Tensor, ...]:
    """(loss, gradient of the first input, gradient of the second) for the loss times 3."""
    first, second = (tensor.detach().clone().requires_grad_() for tensor in inputs[:2])
    loss = function(first, second, *inputs[2:], **options)
    (3 * loss).backward()
    assert first.grad is not None
    assert second.grad is not None
    return loss.detach(), first.grad, second.grad


def assert_same(
    found: tuple[torch.Tensor, ...], wanted: tuple[torch.Tensor, ...], tolerance: float = 3e-5
) -> None:
    """The loss to 1e-5; gradients to `tolerance` of their largest entry (see `fused_launch.arithmetic`)."""
    torch.testing.assert_close(found[0].double(), wanted[0].double(), rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(found[1:], wanted[1:], strict=True):
        largest = float(theirs.abs().max())
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=tolerance * largest)


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
        found = with_gradients(
            fused.fused_exact_cross_entropy, pixels, classes, target, similarity=similarity
        )
        assert_same(found, with_gradients(plain_loss, pixels, classes, target, similarity=similarity))

    @pytest.mark.parametrize("dim", [100, 256])
    def test_equals_it_too_where_a_gpu_has_little_shared_memory(
        self, dim: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fused_launch, "shared_memory", lambda device: 99 * 1024)
        tile = fused_launch.small_tile(fused_launch.arithmetic(torch.float32, torch.float32, dim), DEVICE)
        assert tile in fused_launch.SMALL_TILES.values()
        inputs = unit_rows(67, dim, 1), unit_rows(37, dim, 2), labels(67, 37)
        assert_same(
            with_gradients(fused.fused_exact_cross_entropy, *inputs), with_gradients(plain_loss, *inputs)
        )
        found = fused.fused_nearest_classes(inputs[0], inputs[1], 2)
        assert torch.equal(found, torch.cdist(inputs[0].double(), inputs[1].double()).sort(1).indices[:, :2])

    def test_equals_the_torch_twin(self) -> None:
        losses = pytest.importorskip("models.losses", reason="models/losses.py is not there yet")
        inputs = unit_rows(90, 12, 1), unit_rows(70, 12, 2), labels(90, 70)
        found = with_gradients(fused.fused_exact_cross_entropy, *inputs, temperature=0.1)
        assert_same(found, with_gradients(losses.exact_cross_entropy, *inputs, temperature=0.1))

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
        found = with_gradients(
            fused.fused_exact_cross_entropy, pixels, classes, target, similarity=similarity
        )
        assert [tensor.dtype for tensor in found] == [torch.float32, pixel_dtype, class_dtype]
        doubled = pixels.double(), classes.double()
        wanted = with_gradients(plain_loss, *doubled, target, similarity=similarity)
        assert_same(found, wanted, tolerance=1e-2)  # the gradients are rounded to the inputs' precision

    @pytest.mark.parametrize("similarity", ["distance", "cosine"])
    def test_does_not_need_unit_vectors(self, similarity: str) -> None:
        inputs = 5 * unit_rows(40, 8, 1), 3 * unit_rows(20, 8, 2), labels(40, 20)
        options: dict[str, Any] = {"similarity": similarity, "temperature": 0.7}
        found = with_gradients(fused.fused_exact_cross_entropy, *inputs, **options)
        assert_same(found, with_gradients(plain_loss, *inputs, **options))

    @pytest.mark.parametrize("similarity", ["distance", "cosine"])
    def test_survives_logits_whose_exponentials_do_not(self, similarity: str) -> None:
        """At temperature 1e-4 the logits span 20,000: naive exponentials are 0 or infinite."""
        inputs = unit_rows(40, 8, 1), unit_rows(20, 8, 2), labels(40, 20)
        options: dict[str, Any] = {"similarity": similarity, "temperature": 1e-4}
        found = with_gradients(fused.fused_exact_cross_entropy, *inputs, **options)
        assert all(torch.isfinite(tensor).all() for tensor in found)
        torch.testing.assert_close(found[0].double(), plain_loss(*inputs, **options), rtol=1e-5, atol=1e-3)

    def test_many_slices_and_chunks_sum_to_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        inputs = unit_rows(300, 8, 1), unit_rows(70, 8, 2), labels(300, 70)
        wanted = with_gradients(plain_loss, *inputs)
        monkeypatch.setattr(fused_loss, "CHUNK_PIXELS", 128)
        monkeypatch.setattr(fused_loss, "SLICE_PIXELS", 40)
        assert (
            fused_loss.number_of_slices(
                70, 8, 128, fused_loss.WORK_BYTES, fused_loss.exchanged(fused_loss.FORWARD_TILES[16, False])
            )
            == 4
        )
        assert_same(with_gradients(fused.fused_exact_cross_entropy, *inputs), wanted)

    def test_a_pixel_on_its_own_class_has_no_pull_and_loses_no_precision(self) -> None:
        """e = w for the target: the distance is 0, and the loss is what the other classes share."""
        classes = unit_rows(5, 6, 2)
        loss, gradient, class_gradient = with_gradients(
            fused.fused_exact_cross_entropy, classes.clone(), classes, torch.arange(5, device=DEVICE)
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
        found = with_gradients(fused.fused_exact_cross_entropy, classes.clone(), classes, target)
        assert all(torch.isfinite(tensor).all() for tensor in found)
        torch.testing.assert_close(found[0].double(), plain_loss(classes, classes, target), rtol=1e-3, atol=0)

    def test_ignored_pixels_count_for_nothing_even_where_the_index_is_a_class(self) -> None:
        pixels, classes, target = unit_rows(60, 6, 1), unit_rows(9, 6, 2), labels(60, 9, ignored=3)
        found = with_gradients(fused.fused_exact_cross_entropy, pixels, classes, target, ignore_index=3)
        assert not found[1][target == 3].any()
        assert_same(found, with_gradients(plain_loss, pixels, classes, target, ignore_index=3))

    @pytest.mark.parametrize("num_pixels", [0, 70])
    def test_without_a_labelled_pixel_it_is_a_finite_zero_with_zero_gradients(self, num_pixels: int) -> None:
        target = torch.full((num_pixels,), -1, device=DEVICE)
        found = with_gradients(
            fused.fused_exact_cross_entropy, unit_rows(num_pixels, 6), unit_rows(9, 6), target
        )
        assert all(torch.equal(tensor, torch.zeros_like(tensor)) for tensor in found)

    def test_a_class_that_does_not_exist_makes_the_loss_nan(self) -> None:
        target = torch.tensor([0, 9, 1], device=DEVICE)
        assert fused.fused_exact_cross_entropy(unit_rows(3, 6), unit_rows(9, 6), target).isnan()

    def test_same_input_same_bits(self) -> None:
        inputs = unit_rows(150, 16, 1), unit_rows(40, 16, 2), labels(150, 40)
        first = with_gradients(fused.fused_exact_cross_entropy, *inputs)
        second = with_gradients(fused.fused_exact_cross_entropy, *inputs)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    @pytest.mark.parametrize("wanted", [0, 1])
    def test_a_single_gradient_is_the_same_as_with_both(
        self, wanted: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        inputs = [unit_rows(70, 6, 1), unit_rows(9, 6, 2)]
        target = labels(70, 9)
        both = with_gradients(fused.fused_exact_cross_entropy, *inputs, target)
        launched = count_launches(monkeypatch)
        inputs[wanted] = inputs[wanted].clone().requires_grad_()
        (3 * fused.fused_exact_cross_entropy(*inputs, target)).backward()
        assert torch.equal(inputs[wanted].grad, both[1 + wanted])
        assert launched == {"loss_forward": 1, "class_backward": wanted}

    def test_without_gradients_only_the_loss_is_computed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        launched = count_launches(monkeypatch)
        with torch.no_grad():
            loss = fused.fused_exact_cross_entropy(
                unit_rows(70, 6, 1).requires_grad_(), unit_rows(9, 6, 2).requires_grad_(), labels(70, 9)
            )
        assert not loss.requires_grad
        assert launched == {"loss_forward": 1, "class_backward": 0}

    def test_a_retained_graph_gives_the_same_gradients_again(self) -> None:
        pixels, classes = unit_rows(70, 6, 1).requires_grad_(), unit_rows(9, 6, 2).requires_grad_()
        loss = fused.fused_exact_cross_entropy(pixels, classes, labels(70, 9))
        first = torch.autograd.grad(loss, (pixels, classes), retain_graph=True)
        kept = [gradient.clone() for gradient in first]
        second = torch.autograd.grad(2 * loss, (pixels, classes))
        for once, twice, copy in zip(first, second, kept, strict=True):
            assert torch.equal(once, copy)
            torch.testing.assert_close(twice, 2 * copy)

    def test_strided_inputs_are_taken_as_they_are(self) -> None:
        maps = unit_rows(48, 6, 1).reshape(6, 8, 6).permute(2, 0, 1)  # (D, H, W), strided
        pixels, classes, target = maps.reshape(6, -1).T, unit_rows(9, 6, 2), labels(48, 9)
        found = with_gradients(fused.fused_exact_cross_entropy, pixels, classes, target)
        assert_same(found, with_gradients(plain_loss, pixels.contiguous(), classes, target))


def count_launches(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts the launches of the two heavy kernels from here on."""
    from models import fused_kernels

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


def upsampled_plain_loss(
    maps: torch.Tensor, classes: torch.Tensor, target: torch.Tensor, **options: Any
) -> torch.Tensor:
    full = F.interpolate(maps.double(), size=target.shape[1:], mode="bilinear", align_corners=False)
    return plain_loss(
        full.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]), classes, target.reshape(-1), **options
    )


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
        found = with_gradients(
            fused.fused_exact_cross_entropy_upsampled, *inputs, similarity=similarity, work_bytes=work_bytes
        )
        assert found[1].shape == maps.shape
        assert_same(found, with_gradients(upsampled_plain_loss, *inputs, similarity=similarity))

    @pytest.mark.parametrize("dim", [4, 33, 256])
    def test_of_any_size_of_embedding(self, dim: int) -> None:
        maps = unit_rows(6, dim, 1).reshape(1, 2, 3, dim).permute(0, 3, 1, 2)
        inputs = maps, unit_rows(9, dim, 2), labels(96, 9).reshape(1, 8, 12)
        found = with_gradients(fused.fused_exact_cross_entropy_upsampled, *inputs)
        assert_same(found, with_gradients(upsampled_plain_loss, *inputs))

    def test_same_input_same_bits_whatever_the_memory_format(self) -> None:
        maps = unit_rows(6, 5, 1).reshape(1, 2, 3, 5).permute(0, 3, 1, 2)
        target = labels(30, 7).reshape(1, 5, 6)
        first = with_gradients(fused.fused_exact_cross_entropy_upsampled, maps, unit_rows(7, 5, 2), target)
        second = with_gradients(
            fused.fused_exact_cross_entropy_upsampled, maps.contiguous(), unit_rows(7, 5, 2), target
        )
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    def test_a_band_keeps_to_the_byte_budget(self) -> None:
        from models.fused_upsample import rows_per_band

        rows = rows_per_band(512, 16 * 512, 16, 4, 32 * 2**20, True)
        assert 100 < rows < 16 * 512
        assert rows * 512 * (16 * (4 + 4) + 12) <= 32 * 2**20


@needs_triton
class TestAsTheLossesOfTensorsOnCuda:
    """`models.losses` chooses the kernels for CUDA tensors; here it is told that it may, on any device."""

    @pytest.mark.parametrize("similarity", ["distance", "cosine"])
    def test_the_loss_of_maps_is_that_of_the_torch_twin(
        self, similarity: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        maps = unit_rows(2 * 3 * 4, 6, 1).reshape(2, 3, 4, 6).permute(0, 3, 1, 2)
        inputs = maps, unit_rows(37, 6, 2), labels(2 * 9 * 13, 37).reshape(2, 9, 13)
        wanted = with_gradients(losses.exact_cross_entropy_of_maps, *inputs, similarity=similarity)
        self._allow(monkeypatch, "fused_exact_cross_entropy_upsampled")
        found = with_gradients(losses.exact_cross_entropy_of_maps, *inputs, similarity=similarity)
        assert self.calls == 1
        assert_same(found, wanted)

    def test_the_loss_of_rows_is_that_of_the_torch_twin(self, monkeypatch: pytest.MonkeyPatch) -> None:
        inputs = unit_rows(50, 6, 1), unit_rows(37, 6, 2), labels(50, 37)
        wanted = with_gradients(losses.exact_cross_entropy, *inputs)
        self._allow(monkeypatch, "fused_exact_cross_entropy")
        found = with_gradients(losses.exact_cross_entropy, *inputs)
        assert self.calls == 1
        assert_same(found, wanted)

    def test_a_target_that_is_no_class_makes_the_loss_nan(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._allow(monkeypatch, "fused_exact_cross_entropy")
        target = torch.full((5,), 37, device=DEVICE)
        assert losses.exact_cross_entropy(unit_rows(5, 6, 1), unit_rows(37, 6, 2), target).isnan()

    def _allow(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.calls, function = 0, getattr(fused, name)

        def counting(*arguments: Any, **options: Any) -> torch.Tensor:
            self.calls += 1
            return function(*arguments, **options)

        monkeypatch.setattr(fused, name, counting)
        monkeypatch.setattr(losses, "fused_kernels", lambda pixels, classes: fused)


@needs_triton
class TestTheSearch:
    @pytest.mark.parametrize("similarity", ["distance", "cosine"])
    @pytest.mark.parametrize(
        ("dim", "num_classes", "k"),
        [(4, 2, 1), (6, 37, 1), (16, 130, 7), (33, 70, 1), (64, 37, 3), (17, 9, 9), (256, 20, 2)],
    )
    def test_equals_sorting_all_classes(self, dim: int, num_classes: int, k: int, similarity: str) -> None:
        pixels, classes = unit_rows(67, dim, 1), 1.5 * unit_rows(num_classes, dim, 2)
        found = fused.fused_nearest_classes(pixels, classes, k, similarity=similarity)
        logits = plain_logits(pixels.double(), classes.double(), similarity, 1.0)
        assert found.dtype == torch.int64
        assert torch.equal(found, logits.sort(1, descending=True).indices[:, :k])

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
        """As on a GPU: `nearest_classes` has the kernels, and is asked for more than they can list."""
        monkeypatch.setattr(nearest, "fused_kernels", lambda *_: fused)
        pixels, classes = unit_rows(5, 4, 1), unit_rows(fused.MAX_NEAREST + 6, 4, 2)
        found = nearest.nearest_classes(pixels, classes, k)
        assert torch.equal(found, torch.cdist(pixels.double(), classes.double()).sort(1).indices[:, :k])

    def test_of_no_pixels_finds_none(self) -> None:
        assert fused.fused_nearest_classes(unit_rows(0, 6), unit_rows(9, 6), 2).shape == (0, 2)

    @pytest.mark.parametrize(("num_classes", "k"), [(9, 0), (9, 10), (200, fused.MAX_NEAREST + 1)])
    def test_a_list_that_is_too_long_is_refused_with_the_limit(self, num_classes: int, k: int) -> None:
        with pytest.raises(
            ValueError, match=rf"k is {k}; allowed here: 1..{min(num_classes, fused.MAX_NEAREST)}"
        ):
            fused.fused_nearest_classes(unit_rows(5, 6), unit_rows(num_classes, 6), k)


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no CUDA device: half precision and large sizes need one")
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
        found = with_gradients(fused.fused_exact_cross_entropy, *inputs, target, similarity=similarity)
        doubled = [tensor.double() for tensor in inputs]
        wanted = with_gradients(plain_loss, *doubled, target, similarity=similarity)
        assert_same(found, wanted, tolerance=1e-4 if dtype == torch.float32 else 1e-2)

    def test_pixels_in_bf16_and_classes_in_fp32_go_together(self) -> None:
        inputs = unit_rows(3001, 16, 1).bfloat16(), unit_rows(1284, 16, 2), labels(3001, 1284)
        found = with_gradients(fused.fused_exact_cross_entropy, *inputs)
        assert [tensor.dtype for tensor in found] == [torch.float32, torch.bfloat16, torch.float32]
        assert_same(found, with_gradients(plain_loss, inputs[0].double(), *inputs[1:]), tolerance=1e-2)

    def test_a_large_input_gives_the_same_bits_twice_in_memory_the_size_of_the_inputs(self) -> None:
        inputs = unit_rows(2**20, 16, 1), unit_rows(1284, 16, 2), labels(2**20, 1284)
        first = with_gradients(fused.fused_exact_cross_entropy, *inputs)
        second = with_gradients(fused.fused_exact_cross_entropy, *inputs)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        del first, second
        pixels, classes = (tensor.requires_grad_() for tensor in inputs[:2])
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        fused.fused_exact_cross_entropy(pixels, classes, inputs[2]).backward()
        extra = torch.cuda.max_memory_allocated() - before
        sizes = sum(tensor.numel() * tensor.element_size() for tensor in inputs)
        assert extra <= sizes + fused_loss.WORK_BYTES

    @pytest.mark.parametrize("similarity", ["distance", "cosine"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_the_upsampled_loss_agrees_at_stride_4(self, dtype: torch.dtype, similarity: str) -> None:
        maps = unit_rows(2 * 40 * 30, 16, 1).reshape(2, 40, 30, 16).permute(0, 3, 1, 2).to(dtype)
        classes, target = unit_rows(150, 16, 2).to(dtype), labels(2 * 160 * 120, 150).reshape(2, 160, 120)
        found = with_gradients(
            fused.fused_exact_cross_entropy_upsampled,
            maps, classes, target, similarity=similarity, work_bytes=2**20,
        )  # fmt: skip
        wanted = with_gradients(
            upsampled_plain_loss, maps.double(), classes.double(), target, similarity=similarity
        )
        if dtype == torch.float32:
            assert_same(found, wanted, tolerance=1e-4)
        else:  # the interpolated embeddings are rounded to bf16, as F.interpolate rounds them
            torch.testing.assert_close(found[0].double(), wanted[0].double(), rtol=1e-3, atol=1e-3)

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


class TestWhatIsRefused:
    @needs_triton
    @pytest.mark.parametrize(
        ("arguments", "options", "message"),
        [
            ((unit_rows(5, 3), unit_rows(4, 3), labels(5, 4)), {}, "D is 3; allowed: 4..256"),
            ((unit_rows(5, 6), unit_rows(4, 8), labels(5, 4)), {}, r"allowed: \(P, 8\)"),
            ((unit_rows(5, 6), unit_rows(4, 6), labels(6, 4)), {}, r"target has shape \(6,\)"),
            (
                (unit_rows(5, 6).double(), unit_rows(4, 6), labels(5, 4)),
                {},
                "pixel_embeddings is torch.float64",
            ),
            ((unit_rows(5, 6), unit_rows(4, 6), labels(5, 4)), {"temperature": 0.0}, "temperature is 0.0"),
            ((unit_rows(5, 6), unit_rows(4, 6), labels(5, 4)), {"similarity": "dot"}, "similarity is 'dot'"),
        ],
    )
    def test_a_wrong_call_names_what_is_allowed(
        self, arguments: Any, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            fused.fused_exact_cross_entropy(*arguments, **options)

    def test_cpu_tensors_are_refused_outside_the_interpreter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        pixels, classes = unit_rows(5, 6).cpu(), unit_rows(4, 6).cpu()
        assert not fused.supports(pixels, classes)
        with pytest.raises(RuntimeError, match=r"Triton|CUDA device"):
            fused.fused_exact_cross_entropy(pixels, classes, labels(5, 4).cpu())

    def test_without_triton_the_module_imports_and_the_functions_say_so(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fused_launch, "TRITON_INSTALLED", False)
        assert not fused.supports(unit_rows(5, 6), unit_rows(4, 6))
        with pytest.raises(RuntimeError, match="need Triton, which is not installed"):
            fused.fused_nearest_classes(unit_rows(5, 6), unit_rows(4, 6), 1)

    def test_importing_the_module_does_not_import_triton(self) -> None:
        program = "import sys, models.fused; sys.exit('triton' in sys.modules)"
        root = Path(__file__).parents[2]
        assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0
