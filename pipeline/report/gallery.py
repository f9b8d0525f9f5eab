"""Put pictures of evaluated images into the page: which ones, their class maps, and what is told of them.

The page gets maps of classes, not colored pictures: a script paints truth, prediction and errors of the
chosen variant with one palette and names the class under the pointer. A map is the picture's own numbering of
its classes, one byte a pixel (two if it has more than 255), deflated.
"""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.loading.palette import picture_colors
from pipeline.evaluation.image_counts import ImageCounts
from pipeline.evaluation.picture_file import Picture, chosen_pictures
from pipeline.report.inputs import Variant

CROP_SIDE = 144
"""Pixels of the longer side of the picture of a confused pair."""
_MARGIN = 0.35  # of the pixels' box around it, on each side
_MARK = np.array([255, 0, 170])  # what is confused


def drawn_images(variants: Sequence[Variant]) -> list[int]:
    """Return the ids of the images that all variants kept, in the order in which they were drawn."""
    kept = [set(variant.record.pictures) for variant in variants]
    return [one for one in variants[0].record.pictures if all(one in ids for ids in kept)]


def gallery(variants: Sequence[Variant]) -> dict[str, Any]:
    """Return what the script needs of the random, best and worst images; no images if none were kept.

    Best and worst are those whose share of right pixels, averaged over the variants, is largest and least.
    """
    drawn = drawn_images(variants)
    counted = [variant.images for variant in variants if variant.images is not None]
    wanted = min(int(variant.record.settings.get("evaluate.examples") or 0) for variant in variants)
    if not drawn or len(counted) < len(variants) or not wanted:
        return {"images": [], "kinds": {}}
    accuracies = [counts.accuracies() for counts in counted]
    mean = {
        image_id: float(np.mean([one[image_id] for one in accuracies]))
        for image_id in drawn
        if all(image_id in one for one in accuracies)
    }
    kinds = chosen_pictures(drawn, mean, counted[0].labeled_pixels(), wanted)
    shown = list(dict.fromkeys(image_id for ids in kinds.values() for image_id in ids))
    return {
        "variants": [variant.name for variant in variants],
        "kinds": {kind: [shown.index(image_id) for image_id in ids] for kind, ids in kinds.items()},
        "images": [_image(variants, image_id, accuracies) for image_id in shown],
    }


def _image(
    variants: Sequence[Variant], image_id: int, accuracies: Sequence[Mapping[int, float]]
) -> dict[str, Any]:
    pictures = [variant.picture(image_id) for variant in variants]
    maps = [pictures[0].truth, *(one.prediction for one in pictures)]
    found = [np.setdiff1d(one, 0).tolist() for one in maps]
    class_ids = sorted({one for ids in found for one in ids})
    colors = picture_colors(found[0], class_ids)
    height, width = maps[0].shape
    kind = np.uint8 if len(class_ids) < 256 else np.dtype("<u2")
    numbered = [np.searchsorted([0, *class_ids], one).astype(kind) for one in maps]
    return {
        "id": image_id,
        "width": width,
        "height": height,
        "bytes": np.dtype(kind).itemsize,
        "photograph": photograph_uri(pictures[0].photograph),
        "classes": class_ids,
        "colors": ["#{:02x}{:02x}{:02x}".format(*colors[one]) for one in class_ids],
        "maps": [_deflated(one) for one in numbered],
        "accuracies": [round(one[image_id], 4) if image_id in one else None for one in accuracies],
        "counts": [
            {str(one): counts for one, counts in image_counts(variant.images, image_id).items()}
            for variant in variants
            if variant.images is not None
        ],
    }


def images_of_classes(shown: Mapping[str, Any]) -> dict[int, list[int]]:
    """Return by class id the images of a gallery whose truth has the class, those with most pixels first."""
    found: dict[int, list[tuple[int, int]]] = {}
    for image in shown["images"]:
        for class_id, (_, _, actual) in image["counts"][0].items():
            if actual:
                found.setdefault(int(class_id), []).append((-actual, image["id"]))
    return {class_id: [image_id for _, image_id in sorted(images)] for class_id, images in found.items()}


def image_counts(counts: ImageCounts, image_id: int) -> dict[int, tuple[int, int, int]]:
    """Return by class id the right, predicted and true pixels of an image, counted at full size."""
    (position,) = np.nonzero(counts.image_ids == image_id)[0][:1]
    rows = counts.images == position
    columns = (one[rows].tolist() for one in (counts.classes, counts.hits, counts.predicted, counts.actual))
    return {train_id + 1: numbers for train_id, *numbers in zip(*columns, strict=True)}  # type: ignore[misc]


def crop_of_pair(pictures: Mapping[int, Picture], actual: int, predicted: int) -> tuple[int, str] | None:
    """Cut out where one class was taken for another, with those pixels marked.

    Args:
        pictures: that may be cut from, by image id.
        actual: class id of the truth.
        predicted: class id of the prediction.

    Returns:
        The image's id and the crop as a data URI, from the image with most such pixels; None if none has any.
    """
    best, most = None, 0
    for image_id, picture in pictures.items():
        number = int(((picture.truth == actual) & (picture.prediction == predicted)).sum())
        if number > most:
            best, most = image_id, number
    if best is None:
        return None
    picture = pictures[best]
    confused = (picture.truth == actual) & (picture.prediction == predicted)
    window = tuple(_window(np.nonzero(confused.any(axis))[0], confused.shape[1 - axis]) for axis in (1, 0))
    part = picture.photograph[window].astype(np.int64)
    marked = confused[window]
    part[marked] = (part[marked] + _MARK) // 2
    crop = Image.fromarray(part.astype(np.uint8))
    factor = CROP_SIDE / max(crop.size)
    size = (max(round(crop.width * factor), 1), max(round(crop.height * factor), 1))
    method = Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.NEAREST
    return best, photograph_uri(np.asarray(crop.resize(size, method)))


def photograph_uri(pixels: np.ndarray) -> str:
    """Return (H, W, 3) uint8 pixels as a JPEG in a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _window(places: np.ndarray, size: int) -> slice:
    first, last = int(places[0]), int(places[-1]) + 1
    margin = max(round((last - first) * _MARGIN), 12)
    return slice(max(first - margin, 0), min(last + margin, size))


def _deflated(numbers: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(numbers.tobytes(), 9)).decode()
