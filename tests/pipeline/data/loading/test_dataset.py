"""The dataset: true pixels, train ids, errors that name the file, and life in loader processes."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pipeline.data.bootstrap.build import bootstrap
from pipeline.data.bootstrap.options import BootstrapOptions
from pipeline.data.loading.batch import IGNORE_INDEX, Sample
from pipeline.data.loading.dataset import SegmentationDataset
from pipeline.data.loading.loaders import evaluation_loader
from pipeline.runtime.errors import DataError, UsageError
from tests.pipeline.data.small_dataset import APPLE, CUP, SmallDataset, box, typical


def make(data: SmallDataset, split: str = "val") -> SegmentationDataset:
    root = data.write()
    bootstrap(root, root.parent / "out", BootstrapOptions(holdout_fraction=0.5))
    return SegmentationDataset(root.parent / "out", root, split)


@pytest.fixture
def data(tmp_path: Path) -> SmallDataset:
    return typical(tmp_path / "root")


def stored_as(data: SmallDataset, name: str, image: Image.Image, **options: object) -> Path:
    path = data.root / name
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def test_a_sample_is_the_picture_and_its_train_ids(data: SmallDataset) -> None:
    sample = make(data)[1]
    assert sample.image_id == 92
    with Image.open(data.root / "val2017" / "000000000092.jpg") as opened:
        np.testing.assert_array_equal(sample.image.permute(1, 2, 0).numpy(), np.asarray(opened))
    assert (sample.image.dtype, sample.target.dtype) == (torch.uint8, torch.int64)
    expected = torch.full((8, 8), IGNORE_INDEX)
    expected[2:6, 2:6] = CUP - 1
    assert torch.equal(sample.target, expected)


def test_class_1_is_train_id_0_and_distinct_from_unlabeled(data: SmallDataset) -> None:
    data.add(93, "val", lvis=[(1, box(0, 0, 8, 4))])
    target = make(data)[2].target
    assert (target[:4] == APPLE - 1).all()
    assert (target[4:] == IGNORE_INDEX).all()
    assert APPLE - 1 == 0 != IGNORE_INDEX


def test_gray_and_cmyk_pictures_become_rgb(data: SmallDataset) -> None:
    gray = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    stored_as(data, "val2017/000000000092.jpg", gray, quality=100)
    sample = make(data)[1]
    assert sample.image.shape == (3, 8, 8)
    assert (sample.image[0] == sample.image[2]).all()
    red = Image.new("RGB", (8, 8), (255, 0, 0)).convert("CMYK")
    stored_as(data, "val2017/000000000092.jpg", red)
    pixel = make(data)[1].image[:, 4, 4].tolist()
    assert pixel[0] > 200
    assert max(pixel[1:]) < 60


def test_the_exif_orientation_is_not_applied(data: SmallDataset) -> None:
    """COCO annotates the stored raster; a turned picture would no longer lie under its mask."""
    data.add(93, "val", lvis=[(1, box(0, 0, 12, 4))], size=(8, 12))
    pixels = np.zeros((8, 12, 3), dtype=np.uint8)
    pixels[:, :6] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    stored_as(data, "train2017/000000000093.jpg", Image.fromarray(pixels), exif=exif, quality=95)
    image = make(data)[2].image
    assert image.shape == (3, 8, 12)
    assert image[:, :, :4].float().mean() > 200
    assert image[:, :, 8:].float().mean() < 50


def test_a_truncated_picture_is_named(data: SmallDataset) -> None:
    dataset = make(data)
    path = data.root / "val2017" / "000000000092.jpg"
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(DataError, match="unreadable image") as caught:
        dataset[1]
    assert caught.value.where == str(path)


def test_a_missing_picture_is_named(data: SmallDataset) -> None:
    dataset = make(data)
    (data.root / "val2017" / "000000000092.jpg").unlink()
    with pytest.raises(DataError, match="missing image"):
        dataset[1]


def test_a_picture_of_another_size_is_named(data: SmallDataset) -> None:
    dataset = make(data)
    path = stored_as(data, "val2017/000000000092.jpg", Image.new("RGB", (8, 9)))
    with pytest.raises(DataError, match="8 x 9") as caught:
        dataset[1]
    assert caught.value.where == str(path)


def test_damaged_masks_are_named(data: SmallDataset) -> None:
    dataset = make(data)
    path = dataset.bootstrapped / "val-000.arrow"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"val-000\.arrow"):
        dataset[0]
    path.unlink()
    with pytest.raises(DataError, match=r"val-000\.arrow"):
        SegmentationDataset(dataset.bootstrapped, data.root, "val")[0]


def test_masks_of_another_number_than_the_manifest_says_are_refused(data: SmallDataset) -> None:
    dataset = make(data)
    (dataset.bootstrapped / "train-000.arrow").replace(dataset.bootstrapped / "val-000.arrow")
    manifest = dataset.bootstrapped / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"images": 2', '"images": 7'))
    with pytest.raises(DataError, match="7 rows as in the manifest"):
        SegmentationDataset(dataset.bootstrapped, data.root, "val")[0]


def test_a_folder_that_was_not_bootstrapped_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no bootstrapped dataset"):
        SegmentationDataset(tmp_path, tmp_path, "train")


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="train, holdout, val"):
        SegmentationDataset(tmp_path, tmp_path, "test")


def test_another_version_of_the_format_is_refused(data: SmallDataset) -> None:
    folder = make(data).bootstrapped
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace("dataset 1", "dataset 99"))
    with pytest.raises(DataError, match="another version"):
        SegmentationDataset(folder, data.root, "val")


def test_places_outside_the_split_end_the_iteration(data: SmallDataset) -> None:
    dataset = make(data)
    assert [sample.image_id for sample in (dataset[0], dataset[1], dataset[-1])] == [90, 92, 92]
    for index in (2, -3):
        with pytest.raises(IndexError):
            dataset[index]


def test_a_transform_sees_each_sample(data: SmallDataset) -> None:
    dataset = make(data)
    dataset.transform = lambda sample: Sample(sample.image.flip(2), sample.target.flip(1), sample.image_id)
    plain = SegmentationDataset(dataset.bootstrapped, data.root, "val")
    assert torch.equal(dataset[0].target, plain[0].target.flip(1))


def test_a_used_dataset_travels_to_another_process(data: SmallDataset) -> None:
    dataset = make(data)
    expected = dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[0].image, expected.image)
    assert torch.equal(copy[0].target, expected.target)


@pytest.mark.process
def test_loader_processes_read_what_this_one_reads(data: SmallDataset) -> None:
    dataset = make(data, "train")
    expected = [dataset[i] for i in range(len(dataset))]
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")
    for sample, wanted in zip(loader, expected, strict=True):
        assert torch.equal(sample.target, wanted.target)
        assert torch.equal(sample.image, wanted.image)


@pytest.mark.process
def test_an_error_crosses_the_loader_whole(data: SmallDataset) -> None:
    dataset = make(data)
    path = data.root / "val2017" / "000000000092.jpg"
    path.write_bytes(b"no picture")
    with pytest.raises(DataError) as caught:
        list(evaluation_loader(dataset, num_workers=1))
    assert caught.value.where == str(path)
    assert caught.value.hint


def test_several_files_of_masks_are_one_sequence(tmp_path: Path) -> None:
    data = typical(tmp_path / "root", num_train=89)
    root = data.write()
    bootstrap(root, tmp_path / "out", BootstrapOptions(images_per_shard=70))
    dataset = SegmentationDataset(tmp_path / "out", root, "train")
    ids = dataset.image_ids()
    assert len(dataset) == len(ids) == 80
    assert ids == sorted(ids)
    assert [dataset.row(i).image_id for i in (0, 63, 64, 69, 70, 79)] == [
        ids[i] for i in (0, 63, 64, 69, 70, 79)
    ]
