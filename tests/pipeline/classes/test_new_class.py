"""A class added from a few pictures is found in others, and leaves other pixels their class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.checkpoint.format import load_checkpoint
from pipeline.classes.examples import Examples, find_pairs, read_examples
from pipeline.classes.new_class import find_row
from pipeline.inference.predictor import Predictor
from pipeline.runtime.errors import DataError, MemoryLimitError
from tests.command import pipeline_here
from tests.pipeline.inference.checkpoints import NUM_CLASSES, checkpoint, saved
from tests.pipeline.inference.conftest import photo


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A photograph with a rectangle of even green in it, and where that is."""
    random = np.random.default_rng(seed)
    picture = photo(96, 128, seed)
    top, left = random.integers(4, 40), random.integers(4, 60)
    inside = np.zeros((96, 128), bool)
    inside[top : top + 40, left : left + 52] = True
    picture[inside] = (30, 200, 40)
    return picture, inside


@pytest.fixture
def examples(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of pictures and masks: 8-bit, bilevel and 16-bit."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    (images / "more").mkdir(parents=True)
    (masks / "more").mkdir(parents=True)
    for seed, name in enumerate(("a", "b", "more/c")):
        picture, inside = scene(seed)
        Image.fromarray(picture).save(images / f"{name}.png")
        stored = (inside * 255).astype(np.uint8), inside, inside.astype(np.uint16) * 300
        Image.fromarray(stored[seed]).save(masks / f"{name}.png")
    Image.fromarray(photo(20, 20)).save(images / "without a mask.png")
    return images, masks


def iou(predictor: Predictor, seed: int) -> float:
    picture, inside = scene(seed)
    found = predictor(picture).class_map == NUM_CLASSES + 1
    return float((found & inside).sum() / (found | inside).sum())


@pytest.mark.parametrize("options", [[], ["--tune"]])
@pytest.mark.parametrize("head", ["embedding", "softmax"])
def test_a_new_class_is_found_in_other_pictures(
    head: str,
    options: list[str],
    examples: tuple[Path, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    source, out = saved(tmp_path, head), tmp_path / "out" / "more.safetensors"
    arguments = ["--images", str(examples[0]), "--masks", str(examples[1]), "--checkpoint", str(source)]
    assert pipeline_here("classes", "add", "green thing", *arguments, "--out", str(out), *options) == 0
    assert f"green thing is class {NUM_CLASSES + 1}" in capfd.readouterr().out
    changed = load_checkpoint(out)
    assert changed.label_space.names[-1] == "green thing"
    about = changed.progress["class_changes"][-1]["added"]["green thing"]
    assert (about["pictures"], about["pixels"]) == (3, 3 * 40 * 52)
    after = Predictor.from_checkpoint(changed, device="cpu")
    before = Predictor.load(source, device="cpu")
    others = [iou(after, seed) for seed in (10, 11, 12)]
    assert min(others) > about["iou_on_them"] - 0.1  # which an untrained network's coarse features limit
    assert min(others) > 0.45  # a sixth of each picture is green: everything would be 0.17
    picture, _ = scene(10)
    old, new = before(picture).class_map, after(picture).class_map
    np.testing.assert_array_equal(old[new <= NUM_CLASSES], new[new <= NUM_CLASSES])
    for name, tensor in before.segmenter.state_dict().items():
        assert torch.equal(
            changed.model[name][: len(tensor)] if tensor.dim() else changed.model[name], tensor
        )


@pytest.mark.parametrize("head", ["embedding", "softmax"])
def test_the_threshold_is_no_worse_than_none_and_tuning_no_worse_than_that(
    head: str, examples: tuple[Path, Path]
) -> None:
    segmenter = checkpoint(head).segmenter()
    pixels = read_examples(segmenter, find_pairs(*examples))
    plain = find_row(segmenter, pixels, temperature=0.1)
    tuned = find_row(segmenter, pixels, temperature=0.1, tune=True)
    assert tuned.iou >= plain.iou
    if head == "embedding":
        mean = torch.nn.functional.normalize(pixels.outputs[pixels.positive].mean(dim=0), dim=0)
        assert plain.iou >= pixels.iou(-(pixels.outputs - mean).norm(dim=1)) - 0.02  # weights of sampling


def test_iou_counts_the_pixels_that_each_stands_for() -> None:
    pixels = Examples(
        outputs=torch.zeros(4, 2),
        positive=torch.tensor([True, True, False, False]),
        weights=torch.tensor([1.0, 2.0, 3.0, 10.0]),
        best=torch.zeros(4),
        best_ids=torch.zeros(4, dtype=torch.int64),
        pictures=1,
    )
    assert pixels.iou(torch.tensor([1.0, -1.0, 1.0, -1.0])) == pytest.approx(1 / 6)


def test_bad_examples_are_named(examples: tuple[Path, Path], tmp_path: Path) -> None:
    images, masks = examples
    segmenter = checkpoint().segmenter()
    with pytest.raises(DataError, match=r"no picture with a mask(.|\n)*4 pictures"):
        find_pairs(images, images)
    Image.new("L", (128, 90)).save(masks / "b.png")
    with pytest.raises(DataError, match=r"another size(.|\n)*b\.png(.|\n)*128 x 90(.|\n)*128 x 96"):
        read_examples(segmenter, find_pairs(images, masks))
    (masks / "b.png").write_text("no mask")
    with pytest.raises(DataError, match=r"unreadable mask(.|\n)*b\.png"):
        read_examples(segmenter, find_pairs(images, masks))
    for name in ("a", "b", "more/c"):
        Image.new("L", (128, 96)).save(masks / f"{name}.png")
    with pytest.raises(DataError, match="no pixel of the class"):
        read_examples(segmenter, find_pairs(images, masks))


def test_a_picture_too_large_for_the_memory_is_named(
    examples: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("pipeline.classes.examples.averaged_output", fails)
    with pytest.raises(MemoryLimitError, match=r"a\.png, 128 x 96(.|\n)*cut the part with the class"):
        read_examples(checkpoint().segmenter(), find_pairs(*examples))
