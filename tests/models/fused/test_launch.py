"""The fused kernels as others call them: chosen by `models.losses.exact`, and refusing what they cannot do."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from models import fused
from models.fused import launch as fused_launch
from models.losses import exact as losses
from tests.models.fused.comparison import (
    DEVICE,
    assert_same,
    labels,
    needs_triton,
    unit_rows,
    with_gradients,
)
from tests.paths import ROOT

pytestmark = pytest.mark.usefixtures("fused_kernels_run_here", "one_thread")


@needs_triton
class TestAsTheLossesOfTensorsOnCuda:
    """`models.losses.exact` chooses the kernels for CUDA tensors; here it is told that it may, on any device."""

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
        program = "import sys, models.fused.cross_entropy; sys.exit('triton' in sys.modules)"
        root = ROOT
        assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0
