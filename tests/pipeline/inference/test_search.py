"""The search finds the class and the probability that full logits give, in bands and tiles of any size."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.heads import EmbeddingHead, SoftmaxHead
from pipeline.inference.search import ClassSearch

SIZE = (61, 83)


def logits_of(
    head: EmbeddingHead | SoftmaxHead, output: Tensor, temperature: float, similarity: str
) -> Tensor:
    """(C, H, W) in full, by definition, in float64."""
    upsampled = F.interpolate(output.double(), size=SIZE, mode="bilinear", align_corners=False)[0]
    if isinstance(head, SoftmaxHead):
        weight, bias = head.classifier.weight.detach().double(), head.classifier.bias
        assert bias is not None
        return (
            torch.einsum("khw,ck->chw", upsampled, weight[:, :, 0, 0]) + bias.detach().double()[:, None, None]
        )
    classes = F.normalize(head.class_table.detach().double(), dim=1)
    if similarity == "cosine":
        return torch.einsum("khw,ck->chw", upsampled, classes) / temperature
    return -(upsampled[None] - classes[:, :, None, None]).norm(dim=1) / temperature


def case(kind: str, num_classes: int = 270) -> tuple[EmbeddingHead | SoftmaxHead, Tensor]:
    torch.manual_seed(0)
    if kind == "softmax":
        head: EmbeddingHead | SoftmaxHead = SoftmaxHead(12, num_classes)
        torch.nn.init.normal_(head.classifier.weight)  # type: ignore[union-attr]
        return head, torch.randn(1, 12, 16, 21)
    head = EmbeddingHead(12, 6, num_classes)
    return head, F.normalize(torch.randn(1, 6, 16, 21), dim=1)


KINDS = [("embedding", "distance"), ("embedding", "cosine"), ("softmax", "distance")]


@pytest.mark.parametrize("work_bytes", [2**25, 2**15, 2**12])
@pytest.mark.parametrize(("kind", "similarity"), KINDS)
def test_ids_and_probabilities_are_those_of_full_logits(kind: str, similarity: str, work_bytes: int) -> None:
    head, output = case(kind)
    search = ClassSearch(head, temperature=0.1, similarity=similarity, work_bytes=work_bytes)
    class_map, confidence = search(output, SIZE)
    probabilities = logits_of(head, output, 0.1 if kind == "embedding" else 1.0, similarity).softmax(dim=0)
    best = probabilities.topk(2, dim=0).values
    clear = (best[0] - best[1] > 1e-5).numpy()
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(class_map[clear], (probabilities.argmax(dim=0) + 1).numpy()[clear])
    np.testing.assert_allclose(confidence, best[0].numpy(), atol=2e-3)  # float16, and roots near 0
    assert class_map.dtype == np.uint16
    assert class_map.max() > 255


@pytest.mark.parametrize(("kind", "similarity"), KINDS)
def test_more_classes_than_a_tile_holds(kind: str, similarity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head, output = case(kind)
    whole = ClassSearch(head, temperature=0.1, similarity=similarity)(output, SIZE)
    monkeypatch.setattr("pipeline.inference.search._TILE", 2**12)
    tiled = ClassSearch(head, temperature=0.1, similarity=similarity)(output, SIZE)
    np.testing.assert_array_equal(whole[0], tiled[0])
    np.testing.assert_allclose(whole[1], tiled[1], atol=1e-3)


@pytest.mark.parametrize(("kind", "similarity"), KINDS)
def test_a_subset_is_searched_alone(kind: str, similarity: str) -> None:
    head, output = case(kind)
    chosen = [3, 100, 259, 260]
    class_map, confidence = ClassSearch(head, chosen, temperature=0.1, similarity=similarity)(output, SIZE)
    probabilities = logits_of(head, output, 0.1 if kind == "embedding" else 1.0, similarity)[chosen].softmax(
        0
    )
    expected = np.array(chosen)[probabilities.argmax(dim=0).numpy()] + 1
    assert (class_map == expected).mean() > 0.999
    assert set(np.unique(class_map)) <= {i + 1 for i in chosen}
    np.testing.assert_allclose(confidence, probabilities.max(dim=0).values.numpy(), atol=2e-3)


def test_pixels_of_little_confidence_are_unlabeled() -> None:
    head, output = case("embedding")
    search = ClassSearch(head, temperature=0.1)
    everywhere, confidence = search(output, SIZE)
    limit = float(np.median(confidence.astype(np.float64))) + 1e-4
    class_map, same = search(output, SIZE, min_confidence=limit)
    np.testing.assert_array_equal(confidence, same)
    assert (everywhere > 0).all()
    clear = np.abs(confidence.astype(np.float64) - limit) > 1e-3  # float16
    np.testing.assert_array_equal((class_map > 0)[clear], (confidence > limit)[clear])
    assert 0.2 < (class_map == 0).mean() < 0.8


def test_one_class_has_all_the_probability() -> None:
    for kind, similarity in KINDS:
        head, output = case(kind, num_classes=1)
        class_map, confidence = ClassSearch(head, temperature=0.1, similarity=similarity)(output, SIZE)
        assert (class_map == 1).all()
        np.testing.assert_allclose(confidence, 1, atol=1e-3)


def test_embeddings_that_are_not_numbers_still_give_classes_that_exist() -> None:
    head, output = case("embedding")
    class_map, confidence = ClassSearch(head, temperature=0.1)(output * math.nan, SIZE)
    assert class_map.min() >= 1
    assert class_map.max() <= 270
    assert np.isnan(confidence).all()


class _Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """The most elements that any tensor made in the block has."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):  # type: ignore[no-untyped-def]
        result = function(*arguments, **(options or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "similarity"), KINDS)
def test_no_tensor_grows_with_the_picture_or_with_pixels_times_classes(kind: str, similarity: str) -> None:
    head, output = case(kind, num_classes=3000)
    large = output.repeat(1, 1, 2, 2)
    search = ClassSearch(head, temperature=0.1, similarity=similarity, work_bytes=2**18)
    with _Largest() as seen:
        search(large, (122, 166))
    own = max(large.numel(), search.weight.numel() * 2)  # the map itself, and the table with what it needs
    assert seen.elements <= max(own, 2**19 + 3000 * 16)
    assert seen.elements < 122 * 166 * 3000 / 50
