"""Fine-tuning: which weights a new training takes from a checkpoint, and what it says about them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from models.segmenter import Segmenter, build_segmenter
from pipeline.checkpoint.format import Checkpoint
from pipeline.checkpoint.starting import is_checkpoint, matching_classes, start_from
from pipeline.data.labels.label_space import ClassEntry, LabelSpace
from pipeline.runtime.errors import UsageError
from tests.pipeline.inference.checkpoints import checkpoint


def space(*classes: str) -> LabelSpace:
    """Of "name" or "name/source"."""
    parts = [name.partition("/")[::2] for name in classes]
    return LabelSpace(
        tuple(ClassEntry(i, name, source or "lvis", "f", {}) for i, (name, source) in enumerate(parts, 1))
    )


OLD = space("dog", "cat", "water/lvis", "water/stuff", "Red panda")


def new_network(trained: Checkpoint, num_classes: int, **changes: object) -> Segmenter:
    torch.manual_seed(5)
    arguments = dataclasses.replace(trained.arguments, num_classes=num_classes, **changes)  # type: ignore[arg-type]
    return build_segmenter(arguments)


def test_classes_match_by_name_and_where_that_is_shared_by_source() -> None:
    new = space("zebra", "red_panda", "water/stuff", "Cat/stuff", "water/masks")
    assert matching_classes(OLD, new) == [(1, 4), (2, 3), (3, 1)]


@pytest.mark.parametrize("head", ["embedding", "softmax"])
def test_rows_of_the_same_name_are_carried_over_and_the_log_says_which(tmp_path: Path, head: str) -> None:
    trained = checkpoint(head, space=OLD)
    trained.save(tmp_path / "a.safetensors")
    new = space("zebra", "cat", "red_panda")
    segmenter = new_network(trained, 3)
    before = {name: value.clone() for name, value in segmenter.state_dict().items()}
    start = start_from(segmenter, new, tmp_path / "a.safetensors", backbone="test_resnet")
    tables = 0
    for name, value in segmenter.state_dict().items():
        if name.startswith(("head.class_table", "head.classifier")):
            tables += 1
            torch.testing.assert_close(value[1:], trained.model[name][[1, 4]], rtol=0, atol=0)
            torch.testing.assert_close(value[0], before[name][0], rtol=0, atol=0)
        else:
            torch.testing.assert_close(value, trained.model[name], rtol=0, atol=0)
    assert tables == (1 if head == "embedding" else 2)
    assert (start.kept, start.new) == (("cat", "red_panda"), ("zebra",))
    assert "2 of 3 classes keep their rows: new zebra" in str(start)
    assert "backbone, decoder, head" in str(start)


def test_the_same_classes_give_the_same_network(tmp_path: Path) -> None:
    trained = checkpoint(space=OLD)
    trained.save(tmp_path / "a.safetensors")
    segmenter = new_network(trained, 5)
    start = start_from(segmenter, OLD, tmp_path / "a.safetensors", backbone="test_resnet")
    assert all(torch.equal(value, trained.model[name]) for name, value in segmenter.state_dict().items())
    assert "all 5 classes" in str(start)


@pytest.mark.parametrize(
    ("changes", "anew"),
    [({"head": "softmax"}, ("head",)), ({"embedding_dim": 5}, ("head",)), ({"decoder": "fpn"}, ("decoder",))],
)
def test_what_is_of_another_kind_begins_anew_and_is_named(
    tmp_path: Path, changes: dict[str, object], anew: tuple[str, ...]
) -> None:
    trained = checkpoint(space=OLD)
    trained.save(tmp_path / "a.safetensors")
    segmenter = new_network(trained, 5, **changes)
    start = start_from(segmenter, OLD, tmp_path / "a.safetensors", backbone="test_resnet")
    assert start.changed == anew
    assert f"{anew[0]} begin anew" in str(start)
    assert bool(start.kept) == ("head" not in anew)
    name = next(name for name in trained.model if name.endswith("conv1.weight"))
    torch.testing.assert_close(segmenter.state_dict()[name], trained.model[name], rtol=0, atol=0)


def test_another_backbone_is_refused_with_both_names(tmp_path: Path) -> None:
    trained = checkpoint(space=OLD)
    trained.save(tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=r"test_resnet[\s\S]*test_convnext"):
        start_from(new_network(trained, 5), OLD, tmp_path / "a.safetensors", backbone="test_convnext")


def test_a_backbones_weights_are_no_checkpoint(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    checkpoint(space=OLD).save(tmp_path / "a.safetensors")
    save_file({"conv1.weight": torch.zeros(2)}, tmp_path / "b.safetensors")
    (tmp_path / "c.safetensors").write_bytes(b"nothing of the kind")
    found = [is_checkpoint(tmp_path / f"{name}.safetensors") for name in "abcd"]
    assert found == [True, False, False, False]
