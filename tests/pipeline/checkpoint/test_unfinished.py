"""Where trainings under changing settings are kept, with files of a few bytes in place of networks."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from models.segmenter import SegmenterConfig
from pipeline.checkpoint.format import Checkpoint, load_checkpoint
from pipeline.checkpoint.identity import Identity
from pipeline.checkpoint.run_folder import RunFolder
from pipeline.checkpoint.unfinished import find_unfinished, is_finished, start
from pipeline.config.load import load_settings


class Killed(Exception):
    """In place of kill -9 between two operations on files."""


def identity(**overrides: Any) -> Identity:
    changes = {key.replace("__", "."): value for key, value in overrides.items()}
    return Identity.of(load_settings(variant="exact", overrides=changes))


def checkpoint(of: Identity, step: int, *, validated: bool = False, finished: bool = False) -> Checkpoint:
    progress = {"finished": finished, "validation_curve": [[step, 0.5, 0.5]] if validated else []}
    weight = {"weight": torch.full((3,), float(step))}
    arguments = SegmenterConfig(num_classes=of.label_space.num_classes, backbone="test_resnet")
    return Checkpoint(
        arguments, of.label_space, dict(of.settings), step, progress, weight, identity=dict(of.values)
    )


def leave(folder: RunFolder, of: Identity, step: int, *, validated: bool = False) -> None:
    """As a training leaves it that was stopped."""
    folder.save_last(checkpoint(of, step - 1))
    folder.save_last(checkpoint(of, step, validated=validated))
    if validated:
        checkpoint(of, step).save(folder.chosen)
        folder.publish()


def finish(folder: RunFolder, of: Identity, step: int) -> None:
    checkpoint(of, step).save(folder.chosen)
    folder.save_last(checkpoint(of, step, validated=True, finished=True))
    folder.publish()


def steps(folder: RunFolder) -> dict[str, int]:
    return {path.stem: load_checkpoint(path).step for path in (*folder.files(), folder.best) if path.exists()}


@pytest.fixture
def main(project: Path) -> RunFolder:
    return RunFolder(project / "checkpoints" / "exact")


def test_what_does_not_change_the_result_is_not_compared(project: Path) -> None:
    same = {
        "evaluate.examples": 1,
        "evaluate.max_images": 3,
        "evaluate.warp": 64,
        "train.checkpoint_every": 1,
        "loss.work_memory_mib": 1,
        "tracking.experiment": "other",
        "runtime.threads": 2,
        "data.annotations": "elsewhere",
        "data.root": str(project / "moved"),
    }
    assert Identity.of(load_settings(variant="exact", overrides=same)).values == identity().values
    for key, value in {
        "model.embedding_dim": 4,
        "loss.temperature": 0.5,
        "train.steps": 9,
        "train.validate_every": 3,
        "train.seed": 1,
        "train.debug": "few_batches",
    }.items():
        other = Identity.of(load_settings(variant="exact", overrides={key: value}))
        assert other.values != identity().values
        assert other.name != identity().name
        (words,) = other.differences(checkpoint(identity(), 1))
        assert words.startswith(f"{key}: ")


def test_data_count_by_content_and_val_does_not(project: Path, tmp_path: Path) -> None:
    mine = identity()
    bootstrapped = tmp_path / "data" / "bootstrapped"
    original = bootstrapped.resolve()
    (tmp_path / "data").unlink()
    shutil.copytree(original, bootstrapped)
    assert identity().values == mine.values
    for name, changes in (("val-000.arrow", False), ("holdout-000.arrow", True), ("train-000.arrow", True)):
        before = (bootstrapped / name).read_bytes()
        (bootstrapped / name).write_bytes(before + b"x")
        assert (identity().values != mine.values) == changes, name
        if changes:
            assert identity().differences(checkpoint(mine, 1)) == ["the bootstrapped images or labels"]
        (bootstrapped / name).write_bytes(before)


def test_weights_count_by_content(project: Path) -> None:
    names = [project / "one.safetensors", project / "moved.safetensors"]
    for path in names:
        path.write_bytes(b"the weights")
    one, moved = (identity(model__weights=str(path)) for path in names)
    assert one.values == moved.values
    names[0].write_bytes(b"others")
    assert identity(model__weights=str(names[0])).differences(checkpoint(one, 1)) == [
        "model.weights: another file"
    ]


def test_a_checkpoint_of_before_identities_were_kept_goes_on(project: Path, main: RunFolder) -> None:
    settings = dict(identity().settings) | {"data.root": "/elsewhere", "evaluate.examples": 1}
    del settings["train.fused_optimizer"]  # of before this setting existed
    old = dataclasses.replace(checkpoint(identity(), 3), settings=settings, identity=None)
    old.save(main.last)
    assert load_checkpoint(main.last).identity is None
    found = find_unfinished(main, identity())
    assert found is not None
    assert identity(train__seed=1).differences(found[1]) == ["train.seed: 0 then, 1 now"]
    started = start(main, identity(train__seed=1))
    assert started.checkpoint is None
    started = start(main, identity())
    assert started.checkpoint is not None
    assert started.checkpoint.step == 3


def test_an_unfinished_training_waits_until_its_settings_come_back(
    main: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = identity(), identity(train__learning_rate=0.5)
    leave(main, one, 5, validated=True)
    began = start(main, other)
    assert began.folder == main
    assert began.checkpoint is None
    said = capsys.readouterr().err
    aside = main.path / f"unfinished-{one.name}"
    assert f"at step 5 had other settings; it is kept in {aside} (" in said
    assert f"MiB; to delete: rm -r {aside})" in said
    assert "1 unfinished" not in said  # told already
    assert "train.learning_rate: 0.02 then, 0.5 now" in said
    assert steps(RunFolder(aside)) == {"last": 5, "previous": 4, "chosen": 5}
    assert steps(main) == {"best": 5}  # until the new one has a better
    leave(main, other, 3)
    back = start(main, one)
    assert back.checkpoint is not None
    assert back.checkpoint.step == 5
    assert steps(main) == {"last": 5, "previous": 4, "chosen": 5, "best": 5}
    assert not aside.exists()
    assert steps(RunFolder(main.path / f"unfinished-{other.name}")) == {"last": 3, "previous": 2}
    capsys.readouterr()
    finish(main, one, 8)
    start(main, one)
    assert f"1 unfinished training waits in {main.path}" in capsys.readouterr().err


def test_a_finished_training_stays_until_the_next_one_is_validated(main: RunFolder) -> None:
    one, other = identity(), identity(train__seed=1)
    finish(main, one, 8)
    for again in (other, one):  # under the same settings, too
        began = start(main, again)
        assert (began.folder == main, began.checkpoint) == (False, None)
        leave(began.folder, again, 3)
        assert steps(main) == {"last": 8, "chosen": 8, "best": 8}
        on = start(main, again)
        assert on.folder == began.folder
        assert on.checkpoint is not None
        assert on.checkpoint.step == 3
    leave(began.folder, one, 5, validated=True)
    assert start(main, one).folder == main
    main.publish()
    assert steps(main) == {"last": 5, "previous": 4, "chosen": 5, "best": 5}


def test_what_cannot_be_read_is_kept(main: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    leave(main, identity(), 5)
    contents = {path.name: path.read_bytes()[:-9] for path in main.files()}
    for name, content in contents.items():
        (main.path / name).write_bytes(content)
    assert start(main, identity()).checkpoint is None
    kept = main.path / "unreadable-1"
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == contents
    assert str(kept) in capsys.readouterr().err


def kills(monkeypatch: pytest.MonkeyPatch, prepare: Any, work: Any) -> Iterator[int]:
    """Prepare and work anew, killed before the first, the second, ... rename or removal, until none is."""
    for number in itertools.count():
        calls = itertools.count()

        def may_be_killed(real: Any, number: int = number, calls: Any = calls) -> Any:
            def call(self: Path, *arguments: Any, **options: Any) -> Any:
                if next(calls) == number:
                    raise Killed
                return real(self, *arguments, **options)

            return call

        prepare(number)
        with monkeypatch.context() as patch:
            for name in ("replace", "unlink", "rmdir"):
                patch.setattr(Path, name, may_be_killed(getattr(Path, name)))
            try:
                work(number)
                return
            except Killed:
                pass
        yield number


def test_a_training_is_finished_in_its_folder_for_its_own_settings_alone(main: RunFolder) -> None:
    of = identity()
    assert not is_finished(main, of)
    leave(main, of, 3)
    assert not is_finished(main, of)
    finish(main, of, 8)
    assert is_finished(main, of)
    assert not is_finished(main, identity(train__learning_rate=0.5))
    for path in main.files():
        path.write_bytes(b"cut")
    assert not is_finished(main, of)


@pytest.mark.slow
@pytest.mark.parametrize("then", [0, 1, 2])
@pytest.mark.parametrize("what", ["set aside", "come back"])
def test_a_kill_between_any_two_renames_loses_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch, what: str, then: int
) -> None:
    """Whoever starts next: the same training, the other one or a third."""
    one, other, third = (identity(train__seed=seed) for seed in range(3))

    def folder(number: int) -> RunFolder:
        return RunFolder(project / str(number))

    def prepare(number: int) -> None:
        if what == "set aside":
            leave(folder(number), one, 5, validated=True)
        else:
            leave(RunFolder(folder(number).path / f"unfinished-{one.name}"), one, 5, validated=True)
            finish(folder(number), other, 8)

    def work(number: int) -> None:
        start(folder(number), other if what == "set aside" else one)

    tried = 0
    for number in kills(monkeypatch, prepare, work):
        tried += 1
        start(folder(number), (one, other, third)[then])
        back = start(folder(number), one)
        assert back.checkpoint is not None, number
        assert steps(back.folder).items() >= {"last": 5, "previous": 4, "chosen": 5}.items(), number
    assert tried > 4
