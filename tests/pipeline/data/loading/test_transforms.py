"""Augmentation keeps image and target together, invents no label, and is decided by its generator alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from pipeline.data.loading import transforms
from pipeline.data.loading.batch import IGNORE_INDEX
from pipeline.data.loading.transforms import PADDING_COLOR, TrainTransform


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An image whose color says where a pixel came from, and a target that numbers the pixels."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([rows, columns, torch.full_like(rows, 200)]).to(torch.uint8)
    return image, rows * 1000 + columns


@given(
    height=st.integers(1, 70), width=st.integers(1, 70), crop=st.integers(4, 64), seed=st.integers(0, 2**32)
)
@settings(max_examples=60, deadline=None)
def test_the_square_has_the_asked_size_and_only_labels_that_were_there(height, width, crop, seed):
    image, target = picture(height, width)
    pixels, labels = TrainTransform(crop)(image, target, generator(seed))
    assert pixels.shape == (3, crop, crop)
    assert pixels.dtype == torch.uint8
    assert labels.shape == (crop, crop)
    assert labels.dtype == torch.int64
    assert set(labels.unique().tolist()) <= {*target.flatten().tolist(), IGNORE_INDEX}
    assert (labels != IGNORE_INDEX).any()


@pytest.mark.parametrize("seed", range(20))
def test_image_and_target_are_cut_scaled_and_mirrored_together(seed):
    """The colors tell the row and column of origin; the target must tell the same, up to a resized pixel."""
    image, target = picture(90, 120)
    pixels, labels = TrainTransform(48)(image, target, generator(seed))
    inside = labels != IGNORE_INDEX
    assert (pixels[0][inside].int() - labels[inside] // 1000).abs().max() <= 2
    assert (pixels[1][inside].int() - labels[inside] % 1000).abs().max() <= 2
    assert (pixels[2][inside] == 200).all()


def test_padding_is_the_mean_color_and_unlabeled_below_and_right():
    image, target = picture(20, 30)
    pixels, labels = TrainTransform(64, (1.0, 1.0), flip_probability=0.0)(image, target, generator(0))
    assert torch.equal(pixels[:, :20, :30], image)
    assert torch.equal(labels[:20, :30], target)
    outside = torch.ones(64, 64, dtype=torch.bool)
    outside[:20, :30] = False
    assert (labels[outside] == IGNORE_INDEX).all()
    assert (pixels[:, outside] == torch.tensor(PADDING_COLOR)[:, None]).all()


def test_at_scale_one_the_crop_is_a_part_of_the_image():
    image, target = picture(50, 60)
    pixels, labels = TrainTransform(24, (1.0, 1.0), flip_probability=0.0)(image, target, generator(1))
    top, left = divmod(int(labels[0, 0]), 1000)
    assert torch.equal(pixels, image[:, top : top + 24, left : left + 24])
    assert torch.equal(labels, target[top : top + 24, left : left + 24])


def test_a_certain_flip_mirrors_what_no_flip_shows():
    image, target = picture(40, 40)
    plain = TrainTransform(32, flip_probability=0.0)(image, target, generator(5))
    mirrored = TrainTransform(32, flip_probability=1.0)(image, target, generator(5))
    assert all(torch.equal(a.flip(-1), b) for a, b in zip(plain, mirrored, strict=True))


def test_scales_fill_the_range_and_crops_reach_every_side():
    image, target = picture(100, 100)
    spans, seen = [], torch.zeros(100, 100, dtype=torch.bool)
    for seed in range(300):
        _, labels = TrainTransform(32, flip_probability=0.0)(image, target, generator(seed))
        spans.append(32 / (int(labels[0].max()) % 1000 - int(labels[0, 0]) % 1000 + 1))
        seen[labels.flatten() // 1000, labels.flatten() % 1000] = True
    assert 0.5 <= min(spans) < 0.6
    assert 1.9 < max(spans) <= 2.01
    assert np.mean(spans) == pytest.approx(1.25, abs=0.1)
    assert all(side.any() for side in (seen[0], seen[99], seen[:, 0], seen[:, 99]))


@given(
    old=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    new=st.tuples(st.integers(1, 80), st.integers(1, 80)),
)
@settings(max_examples=80, deadline=None)
def test_labels_are_resized_as_torch_does_it_exactly_nearest(old, new):
    target = torch.arange(old[0] * old[1]).reshape(old)
    expected = functional.interpolate(target[None, None].double(), new, mode="nearest-exact")[0, 0].long()
    ours = transforms._nearest(target, new)
    differs = ours != expected  # only where a center falls on a border between two pixels
    on_border = torch.zeros(new, dtype=torch.bool)
    for axis in (0, 1):
        centers = (np.arange(new[axis]) + 0.5) * old[axis] / new[axis]
        border = torch.from_numpy(np.isclose(centers, np.round(centers), atol=1e-4))
        on_border |= border[:, None] if axis == 0 else border[None, :]
    assert not (differs & ~on_border).any()


def test_a_window_without_a_label_is_drawn_again():
    image, target = picture(100, 100)
    target[:] = IGNORE_INDEX
    target[:60] = 7  # a single try misses the labels in about a third of the draws
    transform = TrainTransform(24, (1.0, 1.0))
    labeled = [bool((transform(image, target, generator(seed))[1] == 7).any()) for seed in range(100)]
    assert all(labeled)
    assert not (
        transform(image, torch.full_like(target, IGNORE_INDEX), generator(0))[1] != IGNORE_INDEX
    ).any()


def test_the_generator_alone_decides():
    image, target = picture(60, 80)
    first = TrainTransform(32)(image, target, generator(9))
    torch.manual_seed(123)
    again = TrainTransform(32)(image, target, generator(9))
    other = TrainTransform(32)(image, target, generator(10))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], other[1])


def test_the_inputs_are_left_as_they_were():
    image, target = picture(30, 30)
    copies = image.clone(), target.clone()
    pixels, labels = TrainTransform(30, (1.0, 1.0))(image, target, generator(0))
    pixels.zero_(), labels.zero_()
    assert torch.equal(image, copies[0])
    assert torch.equal(target, copies[1])
