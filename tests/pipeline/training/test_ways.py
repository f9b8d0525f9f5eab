"""Every way to train: divided, averaged, scaled, deterministic, compiled; each resumes exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models.implementation import implementation_on
from pipeline.checkpoint.format import load_checkpoint
from pipeline.config.load import load_settings
from pipeline.runtime.errors import KilosegError, UsageError
from pipeline.tracking.tracker import NoTracker
from pipeline.train_step import loss
from pipeline.train_step.loss import Losses
from pipeline.training.debug import training_folder
from pipeline.training.trainer import train
from tests.pipeline.training.recording import Recorder, UndisturbedRuns, assert_same_checkpoints, crash


@pytest.mark.training
def test_a_divided_batch_trains_nearly_as_an_undivided_one(project: Path) -> None:
    recorders = {}
    for parts in (1, 2):
        overrides = {"train.batch_size": 4, "train.accumulation_steps": parts, "train.steps": 3}
        recorders[parts] = Recorder()
        result = train(load_settings(variant="exact", overrides=overrides), recorders[parts])
        assert result.accumulation_steps == parts
    assert recorders[1].losses != recorders[2].losses  # batch norm
    assert recorders[1].losses[1] == pytest.approx(recorders[2].losses[1], rel=0.05)


@pytest.mark.training
def test_the_average_is_validated_and_kept_and_the_weights_go_on(
    project: Path, undisturbed: UndisturbedRuns
) -> None:
    averaged = Recorder()
    settings = load_settings(variant="exact", overrides={"train.ema": 0.9, "train.validate_every": 8})
    result = train(settings, averaged)
    assert averaged.losses == undisturbed("exact").losses  # the average changes nothing that is trained
    last = load_checkpoint(training_folder(settings) / "last.safetensors")
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
    "long tail": {
        "loss.name": "exact",
        "loss.logit_adjustment": 1.0,
        "loss.class_weights": "effective_number",
    },
    "one batch": {"train.debug": "one_batch"},
}


@pytest.mark.training
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_train_resumes_exactly(project: Path, way: str, undisturbed: UndisturbedRuns) -> None:
    overrides = {**WAYS[way], "train.steps": 5}
    settings, whole = load_settings(variant="sampled", overrides=overrides), undisturbed("sampled", overrides)
    first, second = Recorder(at=4, do=crash), Recorder()
    with pytest.raises(MemoryError):
        train(settings, first)
    train(settings, second)
    assert min(second.losses) == 3
    assert {**first.losses, **second.losses} == whole.losses
    assert_same_checkpoints(training_folder(settings), whole.folder)


@pytest.mark.training
def test_a_loss_scale_is_restored_and_changes_no_loss(
    project: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: UndisturbedRuns
) -> None:
    """fp16 needs a GPU, its scaler does not: powers of two scale float32 gradients without rounding."""
    overrides = {"train.gradient_clip": 1.0}
    settings, unscaled = load_settings(variant="exact", overrides=overrides), undisturbed("exact", overrides)
    real = torch.amp.GradScaler

    def scaler(device: str, *, enabled: bool) -> torch.amp.GradScaler:
        return real(device, init_scale=2.0**10, growth_interval=3)

    monkeypatch.setattr("pipeline.train_step.step.torch.amp.GradScaler", scaler)
    first, second = Recorder(at=5, do=crash), Recorder()
    with pytest.raises(MemoryError):
        train(settings, first)
    last = training_folder(settings) / "last.safetensors"
    scale = load_checkpoint(last, header_only=True).progress["scale"]
    assert (scale["scale"], scale["_growth_tracker"]) == (2.0**11, 1)
    result = train(settings, second)
    assert {**first.losses, **second.losses} == unscaled.losses
    assert result.state.scale is not None
    assert (result.state.scale["scale"], result.state.scale["_growth_tracker"]) == (2.0**12, 2)


def test_half_precision_is_refused_on_the_cpu(project: Path) -> None:
    with pytest.raises(UsageError, match=r"train\.precision(.|\n)*bf16"):
        train(load_settings(variant="exact", overrides={"train.precision": "fp16"}), NoTracker())


@pytest.mark.training
def test_determinism_is_switched_on_for_the_training_alone(project: Path) -> None:
    seen = []
    recorder = Recorder(at=2, do=lambda: seen.append(torch.are_deterministic_algorithms_enabled()))
    train(load_settings(variant="exact", overrides={"train.deterministic": True}), recorder)
    assert seen == [True]
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.training
def test_an_operation_without_a_deterministic_kernel_is_refused_by_name(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*arguments: object) -> Losses:
        raise RuntimeError("some_backward_cuda does not have a deterministic implementation, but you set ...")

    monkeypatch.setattr("pipeline.train_step.step.segmentation_losses", refuses)
    with pytest.raises(UsageError, match=r"train\.deterministic(.|\n)*some_backward_cuda"):
        train(load_settings(variant="exact", overrides={"train.deterministic": True}), NoTracker())


@pytest.mark.training
def test_a_deterministic_training_does_not_depend_on_the_number_of_threads(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network has one thread, the loss all of them. Without it these two part at the first step."""
    overrides = {"train.deterministic": True, "train.steps": 2, "train.crop_size": 96, "train.ema": 0.5}
    real, used = loss.exact_cross_entropy, []

    def watched(*arguments: Any, **options: Any) -> torch.Tensor:
        used.append(torch.get_num_threads())
        return real(*arguments, **options)

    monkeypatch.setattr(loss, "exact_cross_entropy", watched)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            settings = load_settings(variant="exact", overrides={**overrides, "runtime.threads": threads})
            train(settings, NoTracker(), folder=project / f"{len(used)}")
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    compiled = implementation_on(torch.device("cpu")) == "compiled"
    assert used == ([1, 1, 3, 3] if compiled else [1] * 4)
    one, other = (load_checkpoint(project / name / "last.safetensors") for name in "02")
    for mine, theirs in ((one.model, other.model), (one.optimizer, other.optimizer)):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.training
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


@pytest.mark.training
def test_a_network_that_cannot_be_compiled_is_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*arguments: object) -> None:
        raise torch._dynamo.exc.BackendCompilerFailed(no_compiler, RuntimeError("no C++ compiler"), None)

    monkeypatch.setattr(torch, "compile", lambda network, **options: no_compiler)
    with pytest.raises(KilosegError, match=r"could not be compiled(.|\n)*train\.compile"):
        train(load_settings(variant="exact", overrides={"train.compile": True}), NoTracker())


@pytest.mark.training
def test_fine_tuning_goes_on_from_a_checkpoint_and_says_what_it_took(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = Recorder(), Recorder()
    trained = train(load_settings(variant="exact", overrides={"train.steps": 8}), first)
    weights = trained.checkpoint.replace(project / "trained.safetensors")
    overrides = {"model.weights": str(weights), "train.steps": 1}
    train(load_settings(variant="sampled", overrides={**overrides, "loss.name": "exact"}), second)
    assert second.losses[1] < first.losses[1]
    assert "classes keep their rows" in capsys.readouterr().err


@pytest.mark.training
def test_the_long_tail_is_that_of_the_images_to_train_on(project: Path) -> None:
    plain, balanced = Recorder(), Recorder()
    train(load_settings(variant="exact", overrides={"train.steps": 2, "train.validate_every": 2}), plain)
    overrides = {"train.steps": 2, "train.validate_every": 2, "loss.logit_adjustment": 1.0}
    train(load_settings(variant="exact", overrides=overrides), balanced)
    # an untrained network knows nothing but the shares: the frequent classes of the batch are found likely
    assert balanced.losses[1] < plain.losses[1] - 0.5


@pytest.mark.training
@pytest.mark.parametrize("variant", ["dense", "softmax"])
def test_a_classifier_trains_in_bf16(project: Path, variant: str, undisturbed: UndisturbedRuns) -> None:
    """As in float32 but for rounding, with its product in bf16 where all logits are formed."""
    losses = [
        undisturbed(variant, {"train.steps": 4, "train.precision": precision}).losses
        for precision in ("fp32", "bf16")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[0] != losses[1]
