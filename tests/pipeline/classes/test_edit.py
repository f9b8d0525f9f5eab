"""Removed and renamed classes leave every other row, and what it predicts, as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.checkpoint.format import load_checkpoint
from pipeline.classes.edit import add_class, remove_classes, rename_class
from pipeline.inference.predictor import Predictor
from pipeline.runtime.errors import UsageError
from tests.pipeline.inference.checkpoints import NUM_CLASSES, checkpoint
from tests.pipeline.inference.conftest import photo


@pytest.mark.parametrize("head", ["embedding", "softmax"])
def test_removing_a_class_equals_not_searching_for_it(head: str, tmp_path: Path) -> None:
    trained = checkpoint(head)
    before = Predictor.from_checkpoint(trained, device="cpu")(photo(40, 52))
    gone = [found.class_id for found in before.classes[:2]]
    kept = [i for i in range(1, NUM_CLASSES + 1) if i not in gone]
    remove_classes(trained, gone).save(tmp_path / "a.safetensors")
    changed = load_checkpoint(tmp_path / "a.safetensors")
    assert changed.label_space.num_classes == changed.arguments.num_classes == NUM_CLASSES - 2
    assert changed.label_space.names == [trained.label_space.names[i - 1] for i in kept]
    after = Predictor.from_checkpoint(changed, device="cpu")(photo(40, 52)).class_map
    expected = Predictor.from_checkpoint(trained, device="cpu", classes=kept)(photo(40, 52)).class_map
    np.testing.assert_array_equal(np.array([0, *kept])[after], expected)
    names = [trained.label_space.names[i - 1] for i in sorted(gone)]
    assert changed.progress["class_changes"] == [{"removed": names}]


def test_renaming_changes_the_name_alone() -> None:
    trained = checkpoint()
    names = trained.label_space.names
    changed = rename_class(rename_class(trained, names[4], "first"), 5, "second thought")
    assert changed.label_space.names == [*names[:4], "second thought", *names[5:]]
    assert all(torch.equal(changed.model[name], tensor) for name, tensor in trained.model.items())
    assert changed.progress["class_changes"] == [
        {"renamed": {names[4]: "first"}},
        {"renamed": {"first": "second thought"}},
    ]
    assert "class_changes" not in trained.progress


@pytest.mark.parametrize("wrong", ["", "  ", "a,b", "12"])
def test_names_that_could_not_be_searched_are_refused(wrong: str) -> None:
    with pytest.raises(UsageError, match="not a name"):
        rename_class(checkpoint(), 1, wrong)


def test_names_that_exist_and_classes_that_do_not_are_refused() -> None:
    trained = checkpoint()
    names = trained.label_space.names
    with pytest.raises(UsageError, match="of this name exists"):
        rename_class(trained, 1, names[7])
    with pytest.raises(UsageError, match="of this name exists"):
        add_class(trained, names[7], {}, about={})
    with pytest.raises(UsageError, match="no such class"):
        remove_classes(trained, ["zzz"])
    with pytest.raises(UsageError, match="no class would be left"):
        remove_classes(trained, range(1, NUM_CLASSES + 1))
