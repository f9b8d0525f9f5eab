"""Read LVIS v1 and COCO-Stuff as published: the images and what is annotated on each.

    train2017/ val2017/                                             the images, found by LVIS's `coco_url`
    annotations/lvis_v1_train.json lvis_v1_val.json                 which images belong to train and val
    annotations/stuff_train2017.json stuff_val2017.json             stuff, split as COCO splits its images

LVIS splits COCO's images anew, so an image's stuff is looked up by its id in both stuff files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.data.annotations.quarantine import Quarantine
from pipeline.data.annotations.reader import Source, read_files
from pipeline.data.annotations.validation import ImageEntry, require_agreement, size_disagreement
from pipeline.data.labels.label_space import LVIS, STUFF
from pipeline.data.labels.merge import merge_categories
from pipeline.data.labels.official import LVIS_FILES, STUFF_FILES, official_categories
from pipeline.data.layouts.annotated import AnnotatedSource, lacking_annotation
from pipeline.data.layouts.layout import Region, missing_file
from pipeline.data.layouts.splits import Splits, divide
from pipeline.runtime.errors import DataError
from pipeline.runtime.workers import WorkerPool


class OfficialLayout:
    """The four annotation files of a root, read and compared.

    The frequency groups are LVIS's own.

    Args:
        root: the dataset's folder.
        keep_classes: names or class ids of the whole label space to keep; None for all.
        pool: processes that share the reading, see `pipeline.runtime.workers`.

    Raises:
        DataError: missing or damaged files, or files that contradict each other.
        UsageError: an unknown class to keep.
    """

    counts_frequencies = False

    def __init__(
        self,
        root: Path,
        keep_classes: Sequence[str | int] | None = None,
        pool: WorkerPool | None = None,
    ) -> None:
        self.root = root
        folder = root / "annotations"
        self.quarantine = Quarantine.load(root)
        self.paths = [folder / name for name in (*LVIS_FILES.values(), *STUFF_FILES)]
        sources = [
            Source(
                path,
                "stuff" if path.name in STUFF_FILES else "lvis",
                without=self.quarantine.rows_of(path),
            )
            for path in self.paths
        ]
        files = read_files(sources, pool)
        self.lvis = dict(zip(LVIS_FILES, files, strict=False))
        self.stuff = files[len(LVIS_FILES) :]
        for train, val in (self.lvis.values(), self.stuff):
            require_agreement(train, val, self.quarantine.images)
        pairs = official_categories().merged_pairs
        whole = merge_categories(files[0].categories, self.stuff[0].categories, pairs)
        self.label_space = whole.subset(keep_classes)
        things = AnnotatedSource(list(self.lvis.values()), self.label_space.lookup(LVIS))
        stuff = AnnotatedSource(self.stuff, self.label_space.lookup(STUFF), stuff=True)
        self._sources = (things, stuff)  # in drawing order

    def splits(self, holdout_fraction: float, holdout_seed: int) -> Splits:
        """Divide the images; one in quarantine, or without any annotation of a kept class, is left out."""
        shown = set[int]().union(*(source.showing_kept() for source in self._sources))

        def unusable(entry: ImageEntry) -> str | None:
            if entry.image_id in self.quarantine.images:
                return f"quarantined: {self.quarantine.images[entry.image_id]}"
            for source in self._sources:
                for file in source.files:
                    if problem := size_disagreement(entry, file):
                        raise problem
            return lacking_annotation(entry, self._sources, shown)

        listed = {split: file.images.values() for split, file in self.lvis.items()}
        return divide(listed, unusable, holdout_fraction, holdout_seed)

    def content(self, image: ImageEntry) -> list[Region]:
        """Return the annotations of an image in drawing order: LVIS, then stuff, each as in its file."""
        return [region for source in self._sources for region in source.regions(image)]

    def looked_for(self, image: ImageEntry) -> list[int]:
        """Return the classes of LVIS that are annotated exhaustively on an image or listed as absent."""
        things = self._sources[0]
        found: set[int] = set()
        for file in things.files:
            known = file.by_image.categories(image.image_id) | set(file.absent.get(image.image_id, ()))
            found |= known - set(file.not_exhaustive.get(image.image_id, ()))
        return sorted({things.class_ids[category] for category in found} - {0})

    def missing_image(self, image: ImageEntry) -> DataError:
        """Return the error of a listed image that does not exist."""
        return missing_file(self.root, image, "pipeline data fetch coco_lvis ROOT brings it")

    def choices(self) -> dict[str, object]:
        """Return what was decided here, for the manifest."""
        return {}
