"""Join annotation files of one kind with the class ids of their categories; two layouts share it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.data.annotations.validation import AnnotationFile, ImageEntry
from pipeline.data.layouts.layout import Region


@dataclass(frozen=True)
class AnnotatedSource:
    """Annotation files whose category ids mean the same.

    Args:
        files: in drawing order.
        class_ids: category id -> class id, 0 for unlabeled.
        stuff: whether their regions are background, which things cover.
    """

    files: Sequence[AnnotationFile]
    class_ids: Mapping[int, int]
    stuff: bool = False

    def showing_kept(self) -> set[int]:
        """Return the ids of the images with an annotation of a kept class."""
        kept = {category for category, class_id in self.class_ids.items() if class_id}
        return set[int]().union(*(file.showing(kept) for file in self.files))

    def regions(self, image: ImageEntry) -> Iterator[Region]:
        """Yield the annotations of an image in the order of the files."""
        for file in self.files:
            for annotation in file.by_image.get(image.image_id, ()):
                where = f"{file.name}: image {image.image_id}, annotation {annotation.id}"
                class_id = self.class_ids[annotation.category_id]
                yield Region(class_id, annotation.segmentation, where, self.stuff)


def lacking_annotation(image: ImageEntry, sources: Sequence[AnnotatedSource], shown: set[int]) -> str | None:
    """Return the reason to leave out an image on which nothing would be drawn.

    Args:
        image: may be any.
        sources: all that may hold annotations of the image.
        shown: ids of the images with an annotation of a kept class.
    """
    if image.image_id in shown:
        return None
    annotated = any(image.image_id in file.by_image for source in sources for file in source.files)
    return "no annotation of a kept class" if annotated else "no annotation"
