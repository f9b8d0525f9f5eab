"""What is kept of the evaluated images, and what is drawn of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data.loading.batch import IGNORE_INDEX, Batch
from pipeline.data.loading.palette import picture_colors
from pipeline.evaluation.class_map import principal_plane
from pipeline.evaluation.picture_file import (
    DAMAGED,
    Picture,
    chosen_pictures,
    read_picture,
    writing_pictures,
)
from pipeline.evaluation.pictures import POOL, PictureKeeper, drawn_positions, sheet, side_by_side


def test_the_drawn_images_are_the_same_for_every_model_and_at_most_the_pool() -> None:
    assert sorted(drawn_positions(90, 6)) == list(range(90))
    assert drawn_positions(90, 6) == drawn_positions(90, 2)
    many = drawn_positions(19_809, 6)
    assert len(set(many)) == len(many) == POOL
    assert many != sorted(many)
    assert drawn_positions(90, 0) == []


def test_a_kept_image_comes_back_with_class_ids_and_unlabeled_pixels(tmp_path: Path) -> None:
    target = torch.tensor([[[0, 300], [IGNORE_INDEX, 70_000 // 2]]])
    batch = Batch(torch.full((1, 3, 2, 2), 90, dtype=torch.uint8), target, (7,))
    prediction = torch.tensor([[[300, 300], [5, 4]]])
    with writing_pictures(tmp_path / "pictures.zip") as writer:
        keeper = PictureKeeper(writer, [1, 0])
        keeper.add(batch, prediction)
    assert keeper.image_ids() == [7]
    kept = read_picture(tmp_path / "pictures.zip", 7)
    assert kept.truth.tolist() == [[1, 301], [0, 35_001]]
    assert kept.prediction.tolist() == [[301, 301], [0, 5]]
    assert kept.photograph.shape == (2, 2, 3)
    assert abs(int(kept.photograph.mean()) - 90) <= 2
    with pytest.raises(DAMAGED):
        read_picture(tmp_path / "pictures.zip", 8)
    (tmp_path / "pictures.zip").write_bytes(b"no archive")
    with pytest.raises(DAMAGED):
        read_picture(tmp_path / "pictures.zip", 7)


def test_a_large_image_is_shrunk_without_new_classes(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).choice([3, 900, 1284], (900, 1500))
    with writing_pictures(tmp_path / "pictures.zip") as writer:
        writer.add(1, np.zeros((900, 1500, 3), np.uint8), ids, ids)
    kept = read_picture(tmp_path / "pictures.zip", 1)
    assert kept.truth.shape == kept.prediction.shape == kept.photograph.shape[:2] == (288, 480)
    assert set(np.unique(kept.truth)) == {3, 900, 1284}


def test_best_and_worst_are_those_most_and_least_right_with_enough_labeled_pixels() -> None:
    drawn = [5, 3, 9, 1, 4]
    accuracy = {1: 0.9, 3: 0.2, 4: 1.0, 5: 0.5, 9: 0.2}
    labeled = {**dict.fromkeys(drawn, 5000), 4: 10}  # 4 has too few to count
    chosen = chosen_pictures(drawn, accuracy, labeled, 2)
    assert chosen == {"random": [5, 3], "best": [1, 5], "worst": [9, 3]}
    assert chosen_pictures([], {}, {}, 2) == {"random": [], "best": [], "worst": []}


def test_image_truth_prediction_and_errors_stand_side_by_side_in_one_palette() -> None:
    photograph = np.full((1, 3, 3), 7, np.uint8)
    picture = Picture(1, photograph, np.array([[4, 4, 0]], np.uint16), np.array([[4, 9, 0]], np.uint16))
    drawn = np.asarray(side_by_side(picture))[0]
    colors = picture_colors([4], [4, 9])
    white, gap = (255, 255, 255), 6
    image, truth, prediction, errors = (
        drawn[start : start + 3] for start in range(0, 4 * (3 + gap), 3 + gap)
    )
    assert (image == 7).all()
    assert [tuple(one) for one in truth] == [colors[4], colors[4], white]
    assert [tuple(one) for one in prediction] == [colors[4], colors[9], white]
    assert len({tuple(errors[0]), colors[4], colors[9], white}) == 4  # right: neither class, nor unlabeled
    assert [tuple(one) for one in errors[1:]] == [colors[9], white]
    assert side_by_side(picture, scale=3).size == (3 * 3 * 4 + 3 * gap, 3)
    assert sheet([picture, picture]).size == (30, 2 + gap)


@pytest.mark.parametrize("dimension", [1, 2, 16])
def test_the_class_map_is_the_plane_of_largest_variance(dimension: int) -> None:
    vectors = torch.randn(50, dimension, generator=torch.Generator().manual_seed(0))
    places = principal_plane(vectors)
    left, values, _ = np.linalg.svd((vectors - vectors.mean(0)).double().numpy(), full_matrices=False)
    expected = np.zeros((50, 2))
    expected[:, : min(dimension, 2)] = (left * values)[:, :2]
    np.testing.assert_allclose(np.abs(places.numpy()), np.abs(expected), atol=1e-6)
    assert torch.equal(places, principal_plane(vectors.clone()))
