"""One step: parts add up to the whole, the average and the loss scale are what they say, NaN is named."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from models.segmenter import Segmenter, SegmenterConfig, build_segmenter
from pipeline.checkpoint.format import load_checkpoint
from pipeline.config.load import load_settings
from pipeline.config.paths import checkpoint_folder
from pipeline.config.schema import LossSettings, Settings
from pipeline.data.loading.batch import IGNORE_INDEX
from pipeline.runtime.errors import KilosegError, UsageError
from pipeline.runtime.signals import Interrupted
from pipeline.tracking.tracker import NoTracker
from pipeline.train_step.ema import ModelEma
from pipeline.train_step.loss import Losses, segmentation_losses
from pipeline.train_step.step import accumulate_gradients
from pipeline.training.state import READ_EVERY
from pipeline.training.trainer import train
from tests.pipeline.training.recording import Recorder, same_weights


def build(head: str = "embedding") -> Segmenter:
    torch.manual_seed(0)
    arguments = {"backbone": "test_resnet", "decoder_channels": 8, "embedding_dim": 4, "head": head}
    return build_segmenter(SegmenterConfig(num_classes=300, **arguments))  # type: ignore[arg-type]


def gradients_of(segmenter: Segmenter, settings: Settings, target: torch.Tensor, parts: int):
    """Losses and gradients of five images in evaluation mode: batch norm sees no batch, nothing is random."""
    segmenter.eval()

    def losses(output: torch.Tensor, of_part: torch.Tensor, loss: LossSettings) -> Losses:
        return segmentation_losses(segmenter, output, of_part, loss)

    images = torch.randint(256, (5, 3, 32, 32), generator=torch.Generator().manual_seed(1)).byte()
    optimizer = torch.optim.SGD(segmenter.parameters(), lr=0.1)
    found = accumulate_gradients(segmenter, optimizer, images, target, settings, parts, losses)
    return found, [parameter.grad.clone() for parameter in segmenter.parameters()]


def some_target(unlabeled: slice) -> torch.Tensor:
    target = torch.randint(300, (5, 32, 32), generator=torch.Generator().manual_seed(2))
    target[:, 3:9] = IGNORE_INDEX
    target[unlabeled] = IGNORE_INDEX
    return target


@pytest.mark.parametrize("unlabeled", [slice(0, 0), slice(0, 2), slice(0, 5)], ids=["none", "a part", "all"])
@pytest.mark.parametrize("head", ["embedding", "softmax"])
@pytest.mark.parametrize("parts", [2, 3, 5])
def test_the_parts_of_a_batch_add_up_to_its_loss_and_gradient(
    project: Path, parts: int, head: str, unlabeled: slice
) -> None:
    settings, segmenter = load_settings(variant="exact"), build(head)
    target = some_target(unlabeled)
    whole, expected = gradients_of(segmenter, settings, target, 1)
    divided, found = gradients_of(segmenter, settings, target, parts)
    torch.testing.assert_close(divided.cross_entropy, whole.cross_entropy)
    torch.testing.assert_close(divided.separation, whole.separation)
    torch.testing.assert_close(divided.total, whole.total.detach())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_a_pixel_budget_is_of_a_step_not_of_its_parts(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(variant="exact", overrides={"loss.pixel_budget": 100})
    taken = []
    real = segmentation_losses.__globals__["exact_cross_entropy_of_maps"]

    def counted(*arguments: torch.Tensor, pixels: torch.Tensor, **options: object) -> torch.Tensor:
        taken.append(len(pixels))
        return real(*arguments, pixels=pixels, **options)

    monkeypatch.setattr("pipeline.train_step.loss.exact_cross_entropy_of_maps", counted)
    gradients_of(build(), settings, some_target(slice(0, 0)), 4)
    assert taken == [25, 25, 25, 25]


def test_a_divided_batch_trains_nearly_as_an_undivided_one(project: Path) -> None:
    recorders = {}
    for parts in (1, 2):
        overrides = {"train.batch_size": 4, "train.accumulation_steps": parts, "train.steps": 3}
        recorders[parts] = Recorder()
        result = train(load_settings(variant="exact", overrides=overrides), recorders[parts])
        assert result.accumulation_steps == parts
    assert recorders[1].losses != recorders[2].losses  # batch norm
    assert recorders[1].losses[1] == pytest.approx(recorders[2].losses[1], rel=0.05)


def test_the_average_follows_the_weights_as_its_formula_says() -> None:
    segmenter = build().train()
    average = ModelEma(segmenter, 0.8)
    expected = {name: tensor.clone() for name, tensor in segmenter.state_dict().items()}
    for step in range(40):
        with torch.no_grad():
            for parameter in segmenter.parameters():
                parameter.add_(torch.randn_like(parameter))
            for buffer in segmenter.buffers():
                buffer.add_(1)
        average.update(step)
        decay = min(0.8, (1 + step) / (10 + step))
        for name, tensor in segmenter.state_dict().items():
            floating = tensor.is_floating_point()
            expected[name] = decay * expected[name] + (1 - decay) * tensor if floating else tensor.clone()
    found = average.segmenter.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5)
    assert not average.segmenter.training
    assert not any(parameter.requires_grad for parameter in average.segmenter.parameters())


def test_the_average_is_what_is_judged_and_kept_and_the_weights_go_on(project: Path) -> None:
    plain, averaged = Recorder(), Recorder()
    train(load_settings(variant="exact"), plain, folder=project / "plain")
    settings = load_settings(variant="exact", overrides={"train.ema": 0.9, "train.validate_every": 8})
    result = train(settings, averaged)
    assert averaged.losses == plain.losses  # the average changes nothing that is trained
    last = load_checkpoint(checkpoint_folder(settings) / "last.safetensors")
    best = load_checkpoint(result.checkpoint)
    assert best.average == {}
    assert all(torch.equal(best.model[name], last.average[name]) for name in best.model)
    assert any(not torch.equal(best.model[name], last.model[name]) for name in best.model)


WAYS = {
    "average": {"train.ema": 0.9},
    "fused": {"train.fused_optimizer": True, "train.gradient_clip": 1.0},
    "fused AdamW": {"train.optimizer": "adamw", "train.fused_optimizer": True},
    "parts": {"train.batch_size": 3, "train.accumulation_steps": 2, "loss.pixel_budget": 500},
    "channels last": {"train.channels_last": True, "train.precision": "bf16"},
    "deterministic": {"train.deterministic": True},
    "one batch": {"train.debug": "one_batch"},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_train_resumes_exactly(project: Path, way: str) -> None:
    settings = load_settings(variant="sampled", overrides=WAYS[way])
    undisturbed = Recorder()
    train(settings, undisturbed, folder=project / "whole")

    def crash() -> None:
        raise MemoryError("as if killed")

    first, second = Recorder(at=6, do=crash), Recorder()
    with pytest.raises(MemoryError):
        train(settings, first)
    train(settings, second)
    assert min(second.losses) == 5
    assert {**first.losses, **second.losses} == undisturbed.losses
    for name in ("best", "last"):
        one, other = project / "whole", checkpoint_folder(settings)
        assert same_weights(one / f"{name}.safetensors", other / f"{name}.safetensors")


def test_a_loss_scale_is_restored_and_changes_no_loss(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fp16 needs a GPU, its scaler does not: powers of two scale float32 gradients without rounding."""
    settings = load_settings(variant="exact", overrides={"train.gradient_clip": 1.0})
    unscaled = Recorder()
    train(settings, unscaled, folder=project / "unscaled")
    real = torch.amp.GradScaler

    def scaler(device: str, *, enabled: bool) -> torch.amp.GradScaler:
        return real(device, init_scale=2.0**10, growth_interval=3)

    monkeypatch.setattr("pipeline.train_step.step.torch.amp.GradScaler", scaler)
    first, second = Recorder(at=5, do=lambda: (_ for _ in ()).throw(MemoryError())), Recorder()
    with pytest.raises(MemoryError):
        train(settings, first)
    last = checkpoint_folder(settings) / "last.safetensors"
    scale = load_checkpoint(last, header_only=True).progress["scale"]
    assert (scale["scale"], scale["_growth_tracker"]) == (2.0**11, 1)
    result = train(settings, second)
    assert {**first.losses, **second.losses} == unscaled.losses
    assert result.state.scale is not None
    assert (result.state.scale["scale"], result.state.scale["_growth_tracker"]) == (2.0**12, 2)


def test_half_precision_is_refused_on_the_cpu(project: Path) -> None:
    with pytest.raises(UsageError, match=r"train\.precision(.|\n)*bf16"):
        train(load_settings(variant="exact", overrides={"train.precision": "fp16"}), NoTracker())


def test_determinism_is_switched_on_for_the_training_alone(project: Path) -> None:
    seen = []
    recorder = Recorder(at=2, do=lambda: seen.append(torch.are_deterministic_algorithms_enabled()))
    train(load_settings(variant="exact", overrides={"train.deterministic": True}), recorder)
    assert seen == [True]
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_without_a_deterministic_kernel_is_refused_by_name(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*arguments: object) -> Losses:
        raise RuntimeError("some_backward_cuda does not have a deterministic implementation, but you set ...")

    monkeypatch.setattr("pipeline.train_step.step.segmentation_losses", refuses)
    with pytest.raises(UsageError, match=r"train\.deterministic(.|\n)*some_backward_cuda"):
        train(load_settings(variant="exact", overrides={"train.deterministic": True}), NoTracker())


def test_deterministic_runs_on_several_threads_are_equal_to_the_bit(project: Path) -> None:
    overrides = {"train.deterministic": True, "runtime.threads": 2, "train.steps": 2, "train.ema": 0.5}
    before = torch.get_num_threads()
    try:
        for name in "ab":
            train(load_settings(variant="exact", overrides=overrides), NoTracker(), folder=project / name)
    finally:
        torch.set_num_threads(before)
    one, other = (load_checkpoint(project / name / "last.safetensors") for name in "ab")
    for mine, theirs in ((one.model, other.model), (one.optimizer, other.optimizer)):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_compiled_network_trains_as_the_plain_one(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's capture of the network but not its code generation, which takes minutes on two cores."""
    real = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda network, **options: real(network, backend="eager", **options)
    )
    plain, compiled = Recorder(), Recorder()
    train(load_settings(variant="exact", overrides={"train.steps": 2}), plain, folder=project / "plain")
    settings = load_settings(variant="exact", overrides={"train.steps": 2, "train.compile": True})
    result = train(settings, compiled)
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-5)
    assert load_checkpoint(result.checkpoint).segmenter() is not None


def test_a_network_that_cannot_be_compiled_is_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*arguments: object) -> None:
        raise torch._dynamo.exc.BackendCompilerFailed(no_compiler, RuntimeError("no C++ compiler"), None)

    monkeypatch.setattr(torch, "compile", lambda network, **options: no_compiler)
    with pytest.raises(KilosegError, match=r"could not be compiled(.|\n)*train\.compile"):
        train(load_settings(variant="exact", overrides={"train.compile": True}), NoTracker())


def broken_from(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count(1)

    def broken(*arguments: object) -> Losses:
        losses = segmentation_losses(*arguments)  # type: ignore[arg-type]
        factor = float("nan") if next(calls) >= call else 1.0
        return Losses(losses.total * factor, losses.cross_entropy * factor, losses.separation)

    monkeypatch.setattr("pipeline.train_step.step.segmentation_losses", broken)


def test_a_nan_is_named_soon_though_the_loss_is_read_seldom(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    real = torch.Tensor.tolist
    reads = []
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: (reads.append(1), real(tensor))[1])
    broken_from(19, monkeypatch)
    from pipeline.train_step.step import TrainStep

    step = TrainStep.__call__
    monkeypatch.setattr(
        TrainStep,
        "__call__",
        lambda self, batch, at: (seen.append(batch.image_ids), step(self, batch, at))[1],
    )
    often = {"train.steps": 100_000, "train.validate_every": 50_000, "train.checkpoint_every": 50_000}
    with pytest.raises(KilosegError, match="no longer finite") as caught:
        train(load_settings(variant="exact", overrides=often), NoTracker())
    assert caught.value.exit_code == 1
    assert caught.value.where is not None
    ids = [", ".join(map(str, images)) for images in (seen[18], seen[17])]
    assert f"step 19, images {ids[0]}; the update before was step 18, images {ids[1]}" in caught.value.where
    assert 19 <= len(seen) <= 19 + READ_EVERY


@pytest.mark.parametrize("call", [5, 6])
def test_no_checkpoint_is_written_after_a_nan(
    project: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    settings = load_settings(variant="exact", overrides={"train.steps": 500, "train.validate_every": 3})
    broken_from(call, monkeypatch)
    with pytest.raises(KilosegError, match="no longer finite"):
        train(settings, NoTracker())
    for name, step in (("last", 4), ("previous", 2), ("best", 3)):
        checkpoint = load_checkpoint(checkpoint_folder(settings) / f"{name}.safetensors")
        assert checkpoint.step == step
        assert all(tensor.isfinite().all() for tensor in checkpoint.model.values())


def test_weights_that_an_update_spoilt_are_not_saved_though_the_loss_was_finite(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count(1)

    def spoils(*arguments: object) -> Losses:
        losses = segmentation_losses(*arguments)  # type: ignore[arg-type]
        return Losses(losses.total * (float("inf") if next(calls) == 4 else 1), *_scalars(losses))

    monkeypatch.setattr("pipeline.train_step.step.segmentation_losses", spoils)
    settings = load_settings(variant="exact")
    with pytest.raises(KilosegError, match=r"the weights are no longer finite(.|\n)*step 4, images \d+"):
        train(settings, NoTracker())
    assert load_checkpoint(checkpoint_folder(settings) / "last.safetensors", header_only=True).step == 2


def _scalars(losses: Losses) -> tuple[torch.Tensor, torch.Tensor]:
    return losses.cross_entropy, losses.separation


def test_a_stop_during_a_validation_is_answered_at_once_and_the_validation_done_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(variant="exact", overrides={"train.validate_every": 8})
    expected = train(settings, NoTracker(), folder=project / "whole")
    judged = []

    def stop_first(self: object, *prediction: object) -> None:
        judged.append(1)
        self.stop.signal_number = 15  # type: ignore[attr-defined]
        leave(self, *prediction)

    from pipeline.training.trainer import Trainer

    leave = Trainer._leave_if_stopped
    monkeypatch.setattr(Trainer, "_leave_if_stopped", stop_first)
    with pytest.raises(Interrupted):
        train(settings, NoTracker())
    assert len(judged) == 1
    monkeypatch.setattr(Trainer, "_leave_if_stopped", leave)
    recorder = Recorder()
    result = train(settings, recorder)
    assert recorder.losses == {}
    assert result.state.validation_curve == expected.state.validation_curve
    assert same_weights(result.checkpoint, expected.checkpoint)
