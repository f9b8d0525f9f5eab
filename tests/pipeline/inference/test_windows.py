"""Windows cover a picture, blend without a seam, and their average is that of the whole where it must be."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.heads import EmbeddingHead
from models.segmenter import Segmenter
from pipeline.inference.images import as_tensor
from pipeline.inference.predictor import Predictor
from pipeline.inference.windows import Views, averaged_output, blending, network_output, spans
from pipeline.runtime.errors import UsageError
from tests.pipeline.inference.checkpoints import checkpoint
from tests.pipeline.inference.conftest import photo


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    return as_tensor(photo(height, width, seed))


@given(st.integers(1, 3000), st.integers(32, 700), st.floats(0, 0.9))
@settings(deadline=None)
def test_windows_cover_every_pixel_and_overlap_enough(length: int, window: int, overlap: float) -> None:
    places = spans(length, window, overlap)
    assert places[0][0] == 0
    assert places[-1][1] == length
    assert all(start % 4 == 0 and stop - start <= window for start, stop in places)
    for (start, stop), (following, _) in itertools.pairwise(places):
        assert start < following <= stop
        assert stop - following >= int(overlap * (window - window % 4)) - 4
    weights = torch.zeros(-(-length // 4))
    for (start, stop), part in zip(places, blending(places, length), strict=True):
        weights[start // 4 : -(-stop // 4)] += part
        assert (part > 0).all()
    torch.testing.assert_close(weights, torch.ones_like(weights))


def test_one_window_is_the_whole_picture_to_the_last_bit(predictor: Predictor) -> None:
    for size in ((61, 83), (64, 96), (1, 1), (3, 200)):
        whole = network_output(predictor.segmenter, picture(*size)[None])
        for views in (Views(), Views(window=max(32, *size)), Views(window=4096, overlap=0.5, batch_size=3)):
            assert torch.equal(averaged_output(predictor.segmenter, [picture(*size)], views)[0], whole)


def test_the_output_is_what_the_segmenter_itself_sees() -> None:
    """With its input scale: the prediction's path and the training's resize alike."""
    for scale in (1.0, 0.5, 1.4):
        segmenter = checkpoint(input_scale=scale).segmenter()
        image = picture(61, 83)
        with torch.no_grad():
            expected = segmenter(image[None].float() / 255)
        assert torch.equal(averaged_output(segmenter, [image], Views())[0], expected)


def by_hand(segmenter: Segmenter, image: Tensor, window: int, overlap: float) -> Tensor:
    """The blended average, window by window in any order, its weights summed explicitly."""
    height, width = image.shape[-2:]
    total: Tensor | float = 0.0
    weights: Tensor | float = 0.0
    for top, bottom in reversed(spans(height, window, overlap)):
        for left, right in reversed(spans(width, window, overlap)):
            output = network_output(segmenter, image[None, :, top:bottom, left:right])
            rows, columns = (
                torch.minimum(torch.arange(1, n + 1), torch.arange(n, 0, -1)) for n in output.shape[-2:]
            )
            weight = (rows[:, None] * columns).float()
            edges = (
                left // 4,
                -(-width // 4) - left // 4 - output.shape[-1],
                top // 4,
                -(-height // 4) - top // 4 - output.shape[-2],
            )
            total = total + F.pad(output * weight, edges)
            weights = weights + F.pad(weight, edges)
    assert isinstance(total, Tensor)
    return total / weights


@pytest.mark.parametrize(("window", "overlap"), [(48, 0.25), (33, 0.0), (40, 0.6)])
def test_windows_equal_an_average_by_hand_in_another_order(
    predictor: Predictor, window: int, overlap: float
) -> None:
    image = picture(101, 130)
    found = averaged_output(predictor.segmenter, [image], Views(window=window, overlap=overlap))[0]
    with torch.no_grad():
        expected = by_hand(predictor.segmenter, image, window, overlap)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_batches_do_not_change_the_result(predictor: Predictor) -> None:
    images = [picture(70, 90), picture(70, 90, 1), picture(33, 50, 2)]
    views = Views(window=40, flip=True, scales=(0.75, 1.0))
    alone = [averaged_output(predictor.segmenter, [image], views)[0] for image in images]
    for batch_size in (2, 7, 100):
        together = averaged_output(
            predictor.segmenter, images, dataclasses.replace(views, batch_size=batch_size)
        )
        for one, other in zip(alone, together, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_flip_averages_the_mirrored_picture(predictor: Predictor) -> None:
    image = picture(50, 71)
    plain, mirrored = (
        averaged_output(predictor.segmenter, [one], Views())[0] for one in (image, image.flip(-1))
    )
    found = averaged_output(predictor.segmenter, [image], Views(flip=True))[0]
    torch.testing.assert_close(found, (plain + mirrored.flip(-1)) / 2)
    of_mirrored = averaged_output(predictor.segmenter, [image.flip(-1)], Views(flip=True))[0]
    torch.testing.assert_close(found, of_mirrored.flip(-1))


def test_flipped_windows_land_where_they_belong(predictor: Predictor) -> None:
    image = picture(64, 96)  # of whole cells, so that a mirrored picture has mirrored windows
    views = Views(window=40, flip=True)
    found = averaged_output(predictor.segmenter, [image], views)[0]
    plain = Views(window=40)
    one, other = (averaged_output(predictor.segmenter, [x], plain)[0] for x in (image, image.flip(-1)))
    torch.testing.assert_close(found, (one + other.flip(-1)) / 2, rtol=1e-4, atol=1e-5)


def test_scales_are_averaged_on_the_grid_nearest_to_one(predictor: Predictor) -> None:
    image = picture(60, 80)
    maps = []
    for factor in (0.5, 1.0, 1.5):
        size = (round(60 * factor), round(80 * factor))
        pixels = image[None].float() / 255
        if factor != 1:
            pixels = F.interpolate(pixels, size=size, mode="bilinear", antialias=True)
        with torch.no_grad():
            output = network_output(predictor.segmenter, pixels)
        maps.append(F.interpolate(output, size=(15, 20), mode="bilinear", antialias=factor > 1))
    found = averaged_output(predictor.segmenter, [image], Views(scales=(0.5, 1.0, 1.5)))[0]
    torch.testing.assert_close(found, sum(maps) / 3)
    again = averaged_output(predictor.segmenter, [image], Views(scales=(1.5, 1.0, 0.5, 1.0)))[0]
    torch.testing.assert_close(found, again)


def test_channels_are_those_of_the_embedding_and_never_of_the_classes(predictor: Predictor) -> None:
    output = averaged_output(predictor.segmenter, [picture(40, 40)], Views())[0]
    assert output.shape[1] == (8 if isinstance(predictor.segmenter.head, EmbeddingHead) else 16)


def test_a_backbone_of_one_size_sees_windows_of_that_size() -> None:
    segmenter = checkpoint(backbone="test_vit2").segmenter()
    assert segmenter.backbone.image_size is None or min(segmenter.backbone.image_size) >= 32
    segmenter.backbone.image_size = (64, 64)
    seen = []
    segmenter.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-2:]))
    averaged_output(segmenter, [picture(100, 64)], Views())
    assert len(seen) == 2
    assert all(max(size) <= 64 for size in seen)


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": 8},
        {"overlap": 1.0},
        {"overlap": -0.1},
        {"scales": ()},
        {"scales": (0.0,)},
        {"batch_size": 0},
    ],
)
def test_wrong_options_are_refused(wrong: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Views(**wrong)
