"""Checkpoints hold everything, and a bad one is one clear error."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.segmenter import SegmenterConfig, build_segmenter
from pipeline.checkpoint.format import Checkpoint, load_checkpoint, optimizer_tensors, restore_optimizer
from pipeline.data.labels.label_space import LabelSpace
from pipeline.runtime.errors import DataError

ARGUMENTS = SegmenterConfig(backbone="test_resnet", decoder_channels=8, embedding_dim=4, num_classes=300)


def make(label_space: LabelSpace) -> tuple[Checkpoint, torch.optim.Optimizer, torch.nn.Module]:
    torch.manual_seed(0)
    segmenter = build_segmenter(ARGUMENTS)
    optimizer = torch.optim.SGD(segmenter.parameters(), lr=0.1, momentum=0.9)
    segmenter(torch.rand(2, 3, 32, 32))[:, 0].mean().backward()
    optimizer.step()
    progress = {"finished": False, "curve": [[1, 0.1], [2, 1e-17]]}
    model, tensors = segmenter.state_dict(), optimizer_tensors(optimizer)
    checkpoint = Checkpoint(ARGUMENTS, label_space, {"train.steps": 3}, 7, progress, model, tensors)
    return checkpoint, optimizer, segmenter


@pytest.fixture
def label_space(bootstrapped_project: Path) -> LabelSpace:
    return LabelSpace.load(bootstrapped_project / "data" / "bootstrapped" / "label_space.json")


def test_what_is_saved_comes_back(tmp_path: Path, label_space: LabelSpace) -> None:
    checkpoint, _, segmenter = make(label_space)
    checkpoint.save(tmp_path / "a.safetensors")
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    for field in dataclasses.fields(Checkpoint):
        if field.name not in ("model", "optimizer"):
            assert getattr(loaded, field.name) == getattr(checkpoint, field.name)
    for mine, theirs in ((checkpoint.model, loaded.model), (checkpoint.optimizer, loaded.optimizer)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    images = torch.rand(1, 3, 33, 47)
    torch.testing.assert_close(loaded.segmenter()(images), segmenter.eval()(images))


def test_tied_weights_come_back_under_all_their_names(tmp_path: Path, label_space: LabelSpace) -> None:
    """As those of coat_lite_tiny; safetensors refuses tensors that share memory."""
    whole = torch.arange(6.0)
    model = {"one": whole, "same": whole, "a_view": whole[2:4], "other": torch.ones(2)}
    Checkpoint(ARGUMENTS, label_space, {}, 7, {}, model).save(tmp_path / "a.safetensors")
    loaded = load_checkpoint(tmp_path / "a.safetensors").model
    assert loaded.keys() == model.keys()
    assert all(torch.equal(loaded[name], model[name]) for name in model)


def test_a_restored_optimizer_takes_the_same_next_step(tmp_path: Path, label_space: LabelSpace) -> None:
    saved, optimizer, segmenter = make(label_space)
    saved.save(tmp_path / "a.safetensors")  # a copy: the optimizer goes on changing its own buffers
    checkpoint = load_checkpoint(tmp_path / "a.safetensors")
    other = build_segmenter(ARGUMENTS)
    other.load_state_dict(checkpoint.model)
    restored = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    restore_optimizer(restored, checkpoint.optimizer)
    images = torch.rand(2, 3, 32, 32)
    for network, step in ((segmenter, optimizer), (other, restored)):
        torch.manual_seed(1)  # for the dropout
        network.train()
        step.zero_grad()
        network(images)[:, 0].mean().backward()
        step.step()
    for mine, theirs in zip(segmenter.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_header_alone_can_be_read(tmp_path: Path, label_space: LabelSpace) -> None:
    make(label_space)[0].save(tmp_path / "a.safetensors")
    header = load_checkpoint(tmp_path / "a.safetensors", header_only=True)
    assert (header.step, header.model) == (7, {})


def test_bad_files_are_named(tmp_path: Path, label_space: LabelSpace) -> None:
    with pytest.raises(DataError, match=r"no checkpoint(.|\n)*dvc repro train"):
        load_checkpoint(tmp_path / "none.safetensors")
    path = tmp_path / "a.safetensors"
    make(label_space)[0].save(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match="unreadable checkpoint"):
        load_checkpoint(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(DataError, match="unreadable checkpoint"):
        load_checkpoint(path)
    for metadata in (None, {"kiloseg": "[1]"}, {"kiloseg": "{"}):
        save_file({"x": torch.zeros(1)}, path, metadata=metadata)
        with pytest.raises(DataError, match="format None"):
            load_checkpoint(path)
    save_file({"x": torch.zeros(1)}, path, metadata={"kiloseg": '{"format": 1}'})
    with pytest.raises(DataError, match="no 'arguments' in its header"):
        load_checkpoint(path, header_only=True)


def test_a_single_flipped_bit_is_noticed(tmp_path: Path, label_space: LabelSpace) -> None:
    path = tmp_path / "a.safetensors"
    make(label_space)[0].save(path)
    content = bytearray(path.read_bytes())
    content[-1000] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged checkpoint"):
        load_checkpoint(path)
    assert load_checkpoint(path, header_only=True).step == 7


def test_a_checkpoint_of_a_newer_version_says_so(
    tmp_path: Path, label_space: LabelSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint = make(label_space)[0]
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.checkpoint.format.FORMAT", 2)
        checkpoint.save(path)
    with pytest.raises(DataError, match=r"format 2(.|\n)*allowed: format 1(.|\n)*update kiloseg"):
        load_checkpoint(path)
    with monkeypatch.context() as patch:
        tree = checkpoint.arguments.to_dict() | {"attention": "new"}
        patch.setattr(SegmenterConfig, "to_dict", lambda _: tree)
        checkpoint.save(path)
    with pytest.raises(DataError, match=r"not a checkpoint of this version(.|\n)*attention(.|\n)*update"):
        load_checkpoint(path)
