"""The heads: unit embeddings against unit classes, plain logits, and prediction in little memory."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from models.heads import EmbeddingHead, SoftmaxHead

FULL = (12, 20)


def upsample(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def with_integers(head: SoftmaxHead, generator: torch.Generator) -> SoftmaxHead:
    """Small whole numbers: every logit, upsampled by 4 too, is exact in float32, and many are equal."""
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randint(-2, 3, parameter.shape, generator=generator))
    return head


def test_pixel_embeddings_have_length_one():
    embeddings = EmbeddingHead(7, 5, 3)(torch.randn(2, 7, 4, 6))
    assert embeddings.shape == (2, 5, 4, 6)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2, 4, 6))


def test_without_a_projection_the_features_themselves_are_normalized():
    features = torch.randn(2, 5, 4, 6)
    head = EmbeddingHead(5, 5, 3, project=False)
    torch.testing.assert_close(head(features), features / features.norm(dim=1, keepdim=True))
    assert [name for name, _ in head.named_parameters()] == ["class_table"]
    with pytest.raises(ValueError, match="embedding_dim is 4, in_channels 5"):
        EmbeddingHead(5, 4, 3, project=False)


def test_a_zero_pixel_has_a_finite_embedding_and_gradient():
    head = EmbeddingHead(7, 5, 3)
    torch.nn.init.zeros_(head.projection.bias)
    features = torch.zeros(1, 7, 2, 2, requires_grad=True)
    embeddings = head(features)
    embeddings.sum().backward()
    assert embeddings.isfinite().all()
    assert features.grad.isfinite().all()


def test_class_embeddings_are_the_table_at_length_one_with_a_gradient():
    head = EmbeddingHead(7, 5, 300)
    table = head.class_table.detach().clone()
    torch.testing.assert_close(table.norm(dim=1), torch.ones(300))  # where training starts
    assert table.mean(dim=0).abs().max() < 0.1  # in all directions
    with torch.no_grad():
        head.class_table.mul_(3)
    torch.testing.assert_close(head.class_embeddings, table)
    (head.class_embeddings * torch.randn(300, 5)).sum().backward()
    assert (head.class_table.grad.norm(dim=1) > 0).all()


def test_class_embeddings_follow_the_table():
    head = EmbeddingHead(7, 5, 3)
    with torch.no_grad():
        head.class_table.mul_(-3)
        torch.testing.assert_close(head.class_embeddings, F.normalize(head.class_table, dim=1))


def test_embeddings_stay_float32_of_length_one_under_autocast():
    head = EmbeddingHead(7, 5, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings, classes = head(torch.randn(2, 7, 4, 6)), head.class_embeddings
    assert embeddings.dtype == classes.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2, 4, 6))


@pytest.mark.parametrize("num_classes", [1, 2, 300])
def test_the_embedding_head_predicts_the_nearest_class_of_the_upsampled_embeddings(num_classes):
    head = EmbeddingHead(7, 5, num_classes)
    features = torch.randn(3, 7, 3, 5)
    with torch.no_grad():
        pixels = upsample(head(features), FULL).permute(0, 2, 3, 1).reshape(-1, 5)
        expected = torch.cdist(pixels.double(), head.class_embeddings.double()).argmin(dim=1)
    predicted = head.predict(features, FULL)
    assert predicted.dtype == torch.int64
    assert torch.equal(predicted, expected.view(3, *FULL))


@pytest.mark.slow
@given(
    num_classes=st.integers(1, 40),
    work_bytes=st.integers(1, 40_000),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25, deadline=None)
def test_the_softmax_head_predicts_the_argmax_of_the_upsampled_logits_ties_included(
    num_classes, work_bytes, seed
):
    generator = torch.Generator().manual_seed(seed)
    head = with_integers(SoftmaxHead(4, num_classes), generator)
    features = torch.randint(-2, 3, (2, 4, 3, 5), generator=generator).float()
    with torch.no_grad():
        expected = upsample(head.logits(features), FULL).argmax(dim=1)  # of equal logits the first
    assert torch.equal(head.predict(features, FULL, work_bytes=work_bytes), expected)


def test_among_classes_of_equal_logits_the_lowest_id_wins_in_every_slice():
    head = SoftmaxHead(4, 30)
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    for work_bytes in (1, 5_000, 2**20):
        assert not head.predict(torch.randn(1, 4, 3, 5), FULL, work_bytes=work_bytes).any()


@pytest.mark.parametrize("sizes", [{"num_classes": 0}, {"num_classes": 3, "embedding_dim": 0}])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(ValueError, match="is 0; allowed: 1 and more"):
        EmbeddingHead(4, **({"embedding_dim": 2} | sizes))


def test_logits_have_the_dtype_of_the_features_as_under_autocast() -> None:
    head, features = SoftmaxHead(6, 9), torch.randn(1, 6, 4, 5).bfloat16()
    found = head.logits(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(found, head.classifier(features))
    assert found.dtype == torch.bfloat16
    features = features.float()
    assert torch.equal(head.logits(features), head.classifier(features))
