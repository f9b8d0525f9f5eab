"""Confidence and top-5 accuracy against all scores at once, NumPy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.heads import EmbeddingHead, SoftmaxHead
from pipeline.data.labels.label_space import ClassEntry, LabelSpace
from pipeline.evaluation.calibration import Calibration, ClassScores, evenly_spaced
from pipeline.evaluation.evaluate import Details, Evaluation
from pipeline.evaluation.metrics import ClassCounts, summarize
from pipeline.evaluation.tables import calibration_table, groups_table, per_class_table
from pipeline.memory.predict import allocated_cpu_bytes

HEADS = [("embedding", "distance"), ("embedding", "cosine"), ("softmax", "distance")]


def head_of(kind: str, num_classes: int) -> EmbeddingHead | SoftmaxHead:
    torch.manual_seed(0)
    return (
        EmbeddingHead(6, 6, num_classes) if kind == "embedding" else SoftmaxHead(6, num_classes)
    ).requires_grad_(False)


def written_out(head: EmbeddingHead | SoftmaxHead, similarity: str, output: torch.Tensor) -> torch.Tensor:
    """All logits of all pixels, (N, C, 20, 24), from the formulas of the losses at temperature 0.1."""
    maps = F.interpolate(output.double(), size=(20, 24), mode="bilinear", align_corners=False)
    weight = head.class_embeddings.double()
    if isinstance(head, SoftmaxHead):
        return F.conv2d(maps, weight[:, :, None, None], head.bias.double())
    if similarity == "cosine":
        return torch.einsum("ndhw,cd->nchw", maps, weight) / 0.1
    return -(maps[:, None] - weight[None, :, :, None, None]).norm(dim=2) / 0.1


@pytest.mark.parametrize(("kind", "similarity"), HEADS)
@pytest.mark.parametrize("tile", [50, 2**19], ids=["many tiles", "one tile"])
def test_every_pixel_gives_the_numbers_of_all_scores(
    kind: str, similarity: str, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sklearn.metrics import top_k_accuracy_score  # takes seconds, which only this test's process pays

    monkeypatch.setattr("pipeline.evaluation.calibration._TILE", tile)
    monkeypatch.setattr("pipeline.evaluation.calibration._ROWS", 7)
    head, output = head_of(kind, 40), torch.randn(2, 6, 5, 6)
    if kind == "embedding":
        output = F.normalize(output)
    logits = written_out(head, similarity, output)
    prediction = logits.argmax(1)
    near_misses = logits.topk(7, dim=1).indices[:, 6]
    drawn = torch.rand(prediction.shape)
    target = torch.where(drawn < 0.4, prediction, torch.randint(-1, 40, prediction.shape))
    target = torch.where(drawn > 0.8, near_misses, target)
    calibration = Calibration(ClassScores.of(head, similarity, 0.1), None)
    for image in range(2):
        one = slice(image, image + 1)
        calibration.update(output[one], prediction[one], target[one])
    found = calibration.metrics()

    labeled = (target >= 0).numpy()
    probability = logits.softmax(1).movedim(1, -1).numpy()[labeled]
    truth, confidence = target.numpy()[labeled], probability.max(1)
    right = prediction.numpy()[labeled] == truth
    of_bin = np.minimum((confidence * 15).astype(int), 14)
    error = sum(abs(confidence[of_bin == one].sum() - right[of_bin == one].sum()) for one in range(15)) / len(
        truth
    )
    assert found["calibration_error"] == pytest.approx(error, abs=1e-5)
    expected = top_k_accuracy_score(truth, probability, k=5, labels=range(40))
    assert found["top5_accuracy"] == pytest.approx(expected, abs=1e-9)
    assert 0.2 < found["top5_accuracy"] < 0.9
    assert sum(one.pixels for one in calibration.bins()) == labeled.sum()
    assert all(one.low <= one.confidence <= one.high for one in calibration.bins())


def test_a_sample_stands_for_all_labeled_pixels_of_its_image() -> None:
    """One image of 960 labeled pixels, another of 60: the sums are of 1,020, whatever was drawn."""
    head, output = head_of("softmax", 9), torch.randn(2, 6, 10, 12)
    prediction, target = torch.zeros(2, 40, 24).long(), torch.zeros(2, 40, 24).long()
    target[1] = -1
    target[1, 3, 4:24] = target[1, 7, 4:24] = target[1, 8, :20] = 0
    prediction[1, 3] = 5
    some = Calibration(ClassScores.of(head, "distance", 1.0), 100)
    some.update(output, prediction, target)
    assert sum(one.pixels for one in some.bins()) == pytest.approx(1_020)
    right = sum(one.pixels * one.accuracy for one in some.bins())
    assert right == pytest.approx(1_000)  # the 20 wrong ones are all drawn


def test_the_sample_is_ascending_spread_out_and_the_same_every_time() -> None:
    chosen = evenly_spaced(307_200, 4_096)
    assert len(chosen.unique()) == 4_096
    assert torch.equal(chosen, evenly_spaced(307_200, 4_096))
    parts = chosen // 75  # each of 4,096 equal parts has one
    assert torch.equal(parts, torch.arange(4_096))
    columns = torch.bincount(chosen % 600 // 75, minlength=8)  # where the width is a multiple of the step
    assert (columns - 512).abs().max() <= 1
    inside = torch.bincount(chosen % 75, minlength=75)
    assert inside.max() <= 2 * inside.min()
    assert evenly_spaced(5, 9).tolist() == evenly_spaced(5, None).tolist() == [0, 1, 2, 3, 4]


def test_a_class_of_equal_score_counts_as_higher_and_nothing_is_nothing() -> None:
    """A network that answers every pixel alike knows nothing of the first five."""
    head = head_of("softmax", 30)
    head.classifier.weight.zero_()  # type: ignore[union-attr]
    head.classifier.bias.zero_()  # type: ignore[union-attr]
    calibration = Calibration(ClassScores.of(head, "distance", 1.0), 10)
    nothing = torch.full((1, 4, 4), -1)
    calibration.update(torch.randn(1, 6, 2, 2), nothing, nothing)
    assert calibration.metrics() == {}
    assert calibration.bins() == []
    zeros = torch.zeros(1, 4, 4).long()
    calibration.update(torch.randn(1, 6, 2, 2), zeros, zeros)
    assert calibration.metrics() == {"calibration_error": pytest.approx(1 - 1 / 30), "top5_accuracy": 0.0}


@pytest.mark.slow
def test_memory_stays_flat_at_100_000_classes() -> None:
    """Scores of 256 pixels would take 98 MiB."""
    head, output = head_of("embedding", 100_000), F.normalize(torch.randn(1, 6, 24, 24))
    maps = torch.randint(0, 100_000, (1, 96, 96))
    scores = ClassScores.of(head, "distance", 0.1)
    details = Details(100_000, None, torch.device("cpu"), Calibration(scores, 256))
    assert allocated_cpu_bytes(lambda: details.calibration.update(output, maps, maps)) < 24 * 2**20


def test_groups_and_bins_are_written_as_tables() -> None:
    """Four classes: rare is met, common is not, frequent has none, and stuff is predicted only."""
    space = LabelSpace(
        tuple(
            ClassEntry(number, f"class {number}", "lvis", frequency, {})
            for number, frequency in enumerate(("r", "r", "c", "stuff"), start=1)
        )
    )
    counts, head = ClassCounts(4), head_of("softmax", 4)
    details = Details(4, None, torch.device("cpu"), Calibration(ClassScores.of(head, "distance", 1.0), None))
    target, prediction = torch.tensor([[[0, 0, -1, 0]]]), torch.tensor([[[0, 3, 2, 0]]])
    counts.update(prediction, target)
    details.update(prediction, target, (1,), torch.randn(1, 6, 1, 1))
    result = Evaluation(summarize(counts, space.frequencies), counts, 1, 1.0, details)
    assert groups_table(result, space).splitlines() == [
        "group,classes,scored,miou",
        f"rare,2,1,{2 / 3}",
        "common,1,0,",
        "stuff,1,1,0.0",
    ]
    header, *rows = calibration_table(result).splitlines()
    assert header == "confidence_from,confidence_to,pixels,confidence,accuracy"
    assert [row.split(",")[2::2] for row in rows] == [["3.0", str(2 / 3)]]
    by_class = per_class_table(result, space).splitlines()
    assert by_class[3] == "3,class 3,lvis,c,0,0,1,,,,"  # predicted where nothing is labeled
    assert details.metrics(details.per_image.counts())["labeled_share"] == 0.75
