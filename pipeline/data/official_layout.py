"""LVIS v1 and COCO-Stuff as they are published: which images there are and what is drawn on each.

    train2017/ val2017/                                             the images, found by LVIS's `coco_url`
    annotations/lvis_v1_train.json lvis_v1_val.json                 which images belong to train and val
    annotations/stuff_train2017.json stuff_val2017.json             stuff, split as COCO splits its images

LVIS splits COCO's images anew, so that an image's stuff is looked up by its id in both stuff files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.data.annotations import RESTORE, AnnotationFile, ImageEntry
from pipeline.data.label_space import LVIS, STUFF, merge_categories, official_categories
from pipeline.data.masks import Shape
from pipeline.data.parallel import WorkerPool
from pipeline.data.quarantine import Quarantine
from pipeline.data.reading import Source, read_files
from pipeline.data.splits import Splits, divide
from pipeline.errors import DataProblem

LVIS_FILES = {"train": "lvis_v1_train.json", "val": "lvis_v1_val.json"}
STUFF_FILES = ("stuff_train2017.json", "stuff_val2017.json")


class OfficialLayout:
    """The four annotation files of a root, read and held against each other.

    The frequency groups are LVIS's own.

    Args:
        root: the dataset's folder.
        keep_classes: names or class ids of the whole label space to keep; None for all.
        pool: processes that share the reading, see `pipeline.data.parallel`.

    Raises:
        DataProblem: missing or damaged files, or files that contradict each other.
        UsageProblem: an unknown class to keep.
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
        for pair in (tuple(self.lvis.values()), tuple(self.stuff)):
            for problem in category_disagreements(*pair):
                raise problem
            for image_id, problem in listed_twice(*pair):
                if image_id not in self.quarantine.images:
                    raise problem
        pairs = official_categories().merged_pairs
        whole = merge_categories(files[0].categories, self.stuff[0].categories, pairs)
        self.label_space = whole if keep_classes is None else whole.subset(keep_classes)
        self._class_ids = {source: self.label_space.lookup(source) for source in (LVIS, STUFF)}

    def splits(self, holdout_fraction: float, holdout_seed: int) -> Splits:
        """Divides the images; one in quarantine, or without any annotation of a kept class, is left out."""
        sources = ((LVIS, list(self.lvis.values())), (STUFF, self.stuff))
        shown = set[int]()
        for source, files in sources:
            kept = {category for category, class_id in self._class_ids[source].items() if class_id}
            shown.update(*(file.showing(kept) for file in files))

        def unusable(entry: ImageEntry) -> str | None:
            if entry.image_id in self.quarantine.images:
                return f"quarantined: {self.quarantine.images[entry.image_id]}"
            for _, files in sources:
                for file in files:
                    if problem := size_disagreement(entry, file):
                        raise problem
            if entry.image_id in shown:
                return None
            annotated = any(entry.image_id in file.by_image for _, files in sources for file in files)
            return "no annotation of a kept class" if annotated else "no annotation"

        listed = {split: file.images.values() for split, file in self.lvis.items()}
        return divide(listed, unusable, holdout_fraction, holdout_seed)

    def content(self, image: ImageEntry) -> list[Shape]:
        """The annotations of an image in drawing order: LVIS first, then stuff, each as in its file."""
        return list(self._shapes(image))

    def _shapes(self, image: ImageEntry) -> Iterator[Shape]:
        for source, files in ((LVIS, list(self.lvis.values())), (STUFF, self.stuff)):
            class_ids = self._class_ids[source]
            for file in files:
                for annotation in file.by_image.get(image.image_id, ()):
                    where = f"{file.name}: image {image.image_id}, annotation {annotation['id']}"
                    class_id = class_ids[annotation["category_id"]]
                    yield Shape(class_id, annotation["segmentation"], where, stuff=source == STUFF)


def category_disagreements(first: AnnotationFile, second: AnnotationFile) -> Iterator[DataProblem]:
    """What is wrong with each category that is not the same in both files."""
    names = [{category["id"]: category["name"] for category in file.categories} for file in (first, second)]
    for category_id in sorted(names[0].keys() | names[1].keys()):
        found = [repr(by_id[category_id]) if category_id in by_id else "absent" for by_id in names]
        if found[0] != found[1]:
            yield DataProblem(
                "two files disagree about a category",
                where=f"{first.name} and {second.name}",
                found=f"category {category_id}: {found[0]} and {found[1]}",
                allowed="the same categories in both",
                mend="take both from the same release",
            )


def listed_twice(first: AnnotationFile, second: AnnotationFile) -> Iterator[tuple[int, DataProblem]]:
    """Image id and what is wrong, for each image that both files list."""
    for image_id in first.images:
        if image_id in second.images:
            yield (
                image_id,
                DataProblem(
                    "an image is listed in both halves of a dataset",
                    where=f"{first.name} and {second.name}",
                    found=f"image {image_id}",
                    allowed="each image in one of them",
                    mend=RESTORE,
                ),
            )


def size_disagreement(image: ImageEntry, file: AnnotationFile) -> DataProblem | None:
    """What is wrong where the file gives the image another size."""
    other = file.images.get(image.image_id)
    if other is None or (other.height, other.width) == (image.height, image.width):
        return None
    return DataProblem(
        "two files disagree about the size of an image",
        where=f"{file.name}: image {image.image_id}",
        found=f"{other.width} x {other.height} (width x height)",
        allowed=f"{image.width} x {image.height} as in the LVIS file",
        mend="take both from the same release",
    )
