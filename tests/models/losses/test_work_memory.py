"""Nothing holds pixels x classes or classes x classes: what is allocated, counted by the allocator itself."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F

from models.compiled import reason_against_numba
from models.heads import EmbeddingHead, SoftmaxHead
from models.losses.exact import exact_cross_entropy
from models.losses.knn import knn_cross_entropy
from models.losses.sampled import sampled_cross_entropy
from models.losses.separation import separation_loss
from models.nearest import nearest_classes
from tests.models.allocation import extra_bytes

pytestmark = pytest.mark.slow
SIMILARITIES = ["distance", "cosine"]
BUFFER = 2**19
WAYS = {"fp32": (torch.float32, False), "autocast": (torch.float32, True), "bf16": (torch.bfloat16, True)}


@pytest.fixture(params=WAYS)
def way(request):
    """The dtype of the embeddings, and what switches bf16 autocast on or leaves it off."""
    dtype, autocast = WAYS[request.param]
    return dtype, functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16, enabled=autocast)


def unit_rows(count, dim, dtype=torch.float32):
    return F.normalize(torch.randn(count, dim), dim=1).to(dtype).requires_grad_()


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize(
    "loss",
    [exact_cross_entropy, knn_cross_entropy, functools.partial(sampled_cross_entropy, num_negatives=500)],
    ids=["exact", "knn", "sampled"],
)
def test_forward_and_backward_hold_inputs_worth_of_memory_and_the_buffer(loss, similarity, way):
    num_pixels, num_classes, dim = 3_000, 2_000, 16
    dtype, autocast = way
    pixels, classes = unit_rows(num_pixels, dim, dtype), unit_rows(num_classes, dim, dtype)
    target = torch.randint(0, num_classes, (num_pixels,))
    target[::10] = -100

    def call():
        with autocast():
            value = loss(pixels, classes, target, similarity=similarity, work_bytes=BUFFER)
        torch.autograd.grad(value, (pixels, classes))

    inputs = 4 * dim * (num_pixels + num_classes)
    assert extra_bytes(call) <= 5 * inputs + BUFFER
    assert 5 * inputs + BUFFER < 4 * num_pixels * num_classes / 10  # one copy of the logits


@pytest.mark.skipif(reason_against_numba() is not None, reason="no numba here")
def test_knn_of_maps_makes_no_rows_of_the_pixels(way):
    num_classes, dim, factor = 500, 32, 8
    dtype, autocast = way
    maps = F.normalize(torch.randn(2, dim, 24, 24), dim=1).to(dtype).requires_grad_()
    classes = unit_rows(num_classes, dim, dtype)
    target = torch.randint(0, num_classes, (2, 24 * factor, 24 * factor))

    def call():
        with autocast():
            value = knn_cross_entropy(maps, classes, target, similarity="cosine", work_bytes=BUFFER)
        torch.autograd.grad(value, (maps, classes))

    inputs = 4 * (maps.numel() + classes.numel())
    assert extra_bytes(call) <= 6 * inputs + BUFFER < 4 * dim * target.numel() / 3  # a third of the rows


def test_so_does_the_exact_loss_where_a_tile_spans_only_some_classes():
    num_pixels, num_classes, dim, buffer = 40, 60_000, 4, 2**18
    pixels, classes = unit_rows(num_pixels, dim), unit_rows(num_classes, dim)
    target = torch.randint(0, num_classes, (num_pixels,))

    def call():
        loss = exact_cross_entropy(pixels, classes, target, work_bytes=buffer)
        torch.autograd.grad(loss, (pixels, classes))

    bound = 5 * 4 * (dim + 2) * num_classes + buffer
    assert extra_bytes(call) <= bound < 4 * num_pixels * num_classes


@pytest.mark.skipif(reason_against_numba() is not None, reason="no numba here")
def test_the_class_gradient_exists_once():
    """Torch takes the one that the loss hands over, unless the graph is kept."""
    num_classes, dim, buffer = 30_000, 64, 2**21
    maps, classes = torch.randn(1, dim, 8, 8), unit_rows(num_classes, dim)
    target = torch.randint(0, num_classes, (1, 32, 32))

    def call(retain_graph):
        loss = exact_cross_entropy(maps, classes, target, similarity="dot", work_bytes=buffer)
        loss.backward(retain_graph=retain_graph)
        classes.grad = None

    once, kept = (extra_bytes(functools.partial(call, retain)) for retain in (False, True))
    assert once <= 1.1 * classes.nbytes + buffer
    assert kept >= 2 * classes.nbytes


@pytest.mark.usefixtures("each_implementation")
def test_identical_classes_stay_within_the_buffer_too():
    """Every pair is then too near for a matrix product: the worst case of the careful path."""
    num_pixels, num_classes, dim, buffer = 400, 300, 16, 2**17
    pixels = F.normalize(torch.ones(num_pixels, dim), dim=1).requires_grad_()
    classes = F.normalize(torch.ones(num_classes, dim), dim=1).requires_grad_()
    target = torch.arange(num_pixels) % num_classes

    def call():
        loss = exact_cross_entropy(pixels, classes, target, work_bytes=buffer)
        assert loss.item() == pytest.approx(math.log(num_classes), rel=1e-5)
        torch.autograd.grad(loss, (pixels, classes))

    assert extra_bytes(call) <= 5 * 4 * dim * (num_pixels + num_classes) + buffer


@pytest.mark.parametrize("k", [1, 8])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_the_search_holds_its_result_a_table_of_the_classes_and_the_buffer(similarity, k, way):
    num_pixels, num_classes, dim = 3_000, 2_000, 16
    dtype, autocast = way
    pixels, classes = unit_rows(num_pixels, dim, dtype), unit_rows(num_classes, dim, dtype)

    def call():
        with autocast():
            nearest_classes(pixels, classes, k, similarity=similarity, work_bytes=BUFFER)

    bound = 8 * k * num_pixels + 3 * 4 * (dim + 1) * num_classes + BUFFER
    assert extra_bytes(call) <= bound < 4 * num_pixels * num_classes / 10


def test_separation_builds_no_matrix_of_classes(way):
    dtype, autocast = way
    classes = unit_rows(4_000, 8, dtype)

    def call():
        with autocast():
            loss = separation_loss(classes, min_separation=2.0, work_bytes=2**20)
        torch.autograd.grad(loss, classes)

    assert extra_bytes(call) <= 8 * 4 * 8 * 4_000 + 2**20 < 4 * 4_000**2 / 20


@pytest.mark.usefixtures("each_implementation")
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
@pytest.mark.parametrize("head", [EmbeddingHead(8, 4, 1500), SoftmaxHead(8, 1500)])
def test_prediction_never_holds_pixels_times_classes(head, autocast):
    """Full scores would take 1500 classes x 16384 pixels x 4 bytes = 94 MiB an image."""
    features, work = torch.randn(2, 8, 32, 32), 2 * 2**20

    def call():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            head.predict(features, (128, 128), work_bytes=work)

    assert extra_bytes(call) <= 2 * work
