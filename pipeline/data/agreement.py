"""What the annotation files of one dataset must agree about: categories, images, sizes."""

from __future__ import annotations

from collections.abc import Container, Iterator

from pipeline.data.annotations import RESTORE, AnnotationFile, ImageEntry
from pipeline.errors import DataProblem


def require_agreement(
    train: AnnotationFile, val: AnnotationFile, passed_over: Container[int] = frozenset()
) -> None:
    """Holds the two halves of a dataset against each other.

    Args:
        train: one half.
        val: the other.
        passed_over: ids of images that both may list.

    Raises:
        DataProblem: the first category that is not the same in both, or image that both list.
    """
    for problem in category_disagreements(train, val):
        raise problem
    for image_id, problem in listed_twice(train, val):
        if image_id not in passed_over:
            raise problem


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
