"""What the page and its server send each other: one JSON object and some raw bytes in one body.

    4 bytes  length of the JSON, little-endian
    JSON     in UTF-8; of an answer it has the lengths of the parts behind it
    bytes    a picture file; of an answer the shown picture, class ids and probabilities

A class map is 16 bits a pixel, whatever the number of classes, and is shown at no more than `SHOWN` pixels a
side, so neither the answer nor the page grows with the classes or with the picture.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.loading.palette import class_color
from pipeline.inference.images import picture_of_bytes
from pipeline.inference.prediction import Prediction
from pipeline.inference.predictor import Predictor
from pipeline.runtime.errors import UsageError

SHOWN = 2048
"""Pixels of the longer side of what the page shows, at most."""


def pack(header: Mapping[str, Any], *parts: bytes) -> bytes:
    """Return a body."""
    text = json.dumps({**header, "parts": [len(part) for part in parts]}).encode()
    return b"".join((len(text).to_bytes(4, "little"), text, *parts))


def unpack(body: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the JSON and what follows it.

    Raises:
        UsageError: not such a body.
    """
    end = 4 + int.from_bytes(body[:4], "little")
    try:
        header = json.loads(body[4:end]) if end <= len(body) else None
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise UsageError("not a request of this page", found=f"{len(body)} bytes", hint="load the page again")
    return header, body[end:]


def answer(predictor: Predictor, body: bytes) -> bytes:
    """Predict the picture of a request.

    Args:
        predictor: of all classes.
        body: JSON with "name" of the file and "classes", class ids to search or none for all; then the file.

    Returns:
        JSON with the shown and the own "width" and "height", the "classes" found as `pipeline predict` writes
        them, and "seconds"; then a JPEG, class ids and probabilities (0..65535) of the shown pixels, 16 bits
        each, little-endian.

    Raises:
        DataError: the file cannot be read.
        UsageError: not a request, or an unknown class.
        MemoryLimitError: a picture too large for the device.
    """
    request, data = unpack(body)
    pixels = picture_of_bytes(data, where=str(request.get("name") or "the picture"))
    began = time.perf_counter()
    prediction = predictor.searching(_class_ids(request.get("classes")))(pixels)
    seconds = time.perf_counter() - began
    return _packed(prediction, seconds)


def class_list(predictor: Predictor) -> dict[str, Any]:
    """Return what the page asks first: the checkpoint, and id, name and color of every class."""
    classes = [
        [entry.class_id, entry.name, "#{:02x}{:02x}{:02x}".format(*class_color(entry.class_id))]
        for entry in predictor.label_space.classes
    ]
    return {"checkpoint": predictor.about.get("checkpoint", ""), "classes": classes}


def _class_ids(chosen: object) -> list[int] | None:
    if not chosen:
        return None
    if not isinstance(chosen, list) or not all(type(one) is int for one in chosen):
        raise UsageError("not a list of class ids", where="classes", found=str(chosen)[:100])
    return chosen


def _packed(prediction: Prediction, seconds: float) -> bytes:
    height, width = prediction.class_map.shape
    size = shown_size(height, width)
    rows, columns = (
        ((np.arange(shown) + 0.5) * (side / shown)).astype(np.intp)
        for shown, side in zip(size, (height, width), strict=True)
    )
    places = np.ix_(rows, columns)
    confidence = np.rint(prediction.confidence[places].astype(np.float32) * 65_535)
    header = {
        **prediction.to_dict(),
        "shown": {"width": size[1], "height": size[0]},
        "seconds": round(seconds, 2),
    }
    return pack(
        header,
        _jpeg(prediction.image, size),
        prediction.class_map[places].astype("<u2").tobytes(),
        confidence.clip(0, 65_535).astype("<u2").tobytes(),
    )


def shown_size(height: int, width: int) -> tuple[int, int]:
    """Return the size at which the page shows a picture."""
    share = min(1.0, SHOWN / max(height, width))
    return max(1, round(height * share)), max(1, round(width * share))


def _jpeg(pixels: np.ndarray, size: tuple[int, int]) -> bytes:
    picture = Image.fromarray(pixels)
    if picture.size != (size[1], size[0]):
        picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR, reducing_gap=2.0)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=92, subsampling=0)
    return buffer.getvalue()
