"""Read bootstrapped images and masks as tensors; only here class ids become train ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from pipeline.data.labels.label_space import LabelSpace
from pipeline.data.loading.batch import Sample
from pipeline.data.store.images import open_image
from pipeline.data.store.manifest import SPLITS, read_manifest
from pipeline.data.store.pixels import pixels_of_size
from pipeline.data.store.shards import MaskRow, MaskShards
from pipeline.runtime.errors import DataError, UsageError


class SegmentationDataset(Dataset[Sample]):
    """One split of a bootstrapped dataset. Picklable; every loader process maps the masks for itself.

    Args:
        bootstrapped: the folder made by `bootstrap`.
        root: the dataset's folder with the images.
        split: train, holdout or val.
        transform: applied to each sample.

    Raises:
        DataError: nothing bootstrapped there; on access, an unreadable image or mask, by name.
        UsageError: an unknown split.
    """

    def __init__(
        self,
        bootstrapped: Path,
        root: Path,
        split: str,
        transform: Callable[[Sample], Sample] | None = None,
    ) -> None:
        if split not in SPLITS:
            raise UsageError("no such split", found=split, allowed=", ".join(SPLITS))
        self.bootstrapped, self.root, self.split, self.transform = bootstrapped, root, split, transform
        shards = read_manifest(bootstrapped)["splits"][split]["shards"]
        self.label_space = LabelSpace.load(bootstrapped / "label_space.json")
        self._rows = MaskShards(
            [bootstrapped / shard["file"] for shard in shards], [shard["images"] for shard in shards]
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        row = self._rows.row(index % len(self))
        try:
            image = read_image(self.root / row.file, row.height, row.width)
        except DataError:
            require_root(self.root)
            raise
        # class id -> train id; 0, unlabeled, becomes IGNORE_INDEX
        target = torch.from_numpy(self._rows.mask(row).astype(np.int64)) - 1
        sample = Sample(torch.from_numpy(image).permute(2, 0, 1).contiguous(), target, row.image_id)
        return sample if self.transform is None else self.transform(sample)

    def row(self, index: int) -> MaskRow:
        """Return what is stored of the image at 0 <= index < len, its mask compressed."""
        return self._rows.row(index)

    def class_mask(self, index: int) -> np.ndarray:
        """Return the (H, W) uint16 class ids as stored, 0 = unlabeled."""
        return self._rows.mask(self._rows.row(index))

    def image_ids(self) -> list[int]:
        """Return the ids of the images in the order of the split."""
        return list(self._rows.column("image_id"))

    def files(self) -> list[str]:
        """Return the images' paths relative to the root, in the order of the split."""
        return list(self._rows.column("file"))

    def class_presence(self) -> Iterator[np.ndarray]:
        """Yield for each image the train ids in it, ascending; repeat-factor sampling counts them."""
        for class_ids in self._rows.column("class_ids"):
            yield np.asarray(class_ids, dtype=np.int64) - 1


def require_root(root: Path) -> None:
    """Require the folder with the images.

    Raises:
        DataError: there is none.
    """
    if not root.is_dir():
        raise DataError(
            "no such dataset folder",
            where=root,
            allowed="the folder that the masks were made from",
            hint="name it in data.root of params.yaml, or with --root",
        )


def read_image(path: Path, height: int, width: int) -> np.ndarray:
    """Decode an image to (height, width, 3) uint8 RGB, see `pipeline.data.store.pixels`.

    It is read as stored or as viewers show it, whichever has the size of the mask, see
    `pipeline.data.store.orientation`.

    Raises:
        DataError: missing, unreadable, or of another size.
    """
    hint = "take the file from its source again, or remove the image from the annotations"
    missing = "put it there, or name the dataset that the masks were made from: data.root, or --root"
    with open_image(path, hint=hint, missing=missing) as opened:
        pixels = pixels_of_size(opened, (height, width))
    if pixels.shape[:2] != (height, width):
        raise DataError(
            "an image of another size than its mask",
            where=path,
            found=f"{pixels.shape[1]} x {pixels.shape[0]} (width x height)",
            allowed=f"{width} x {height}",
            hint="take the original file, or bootstrap again: pipeline data bootstrap ROOT OUT",
        )
    return pixels
