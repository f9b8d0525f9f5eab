"""What MLflow loads to serve a registered network: a model from code, so nothing is unpickled.

A request has one column, "image": picture files in base64. An answer has a row for each: "class_map", a
16-bit PNG of class ids in base64 (0 = unlabeled), and "classes", the JSON of `pipeline predict`.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext
from PIL import Image

from pipeline.inference.images import picture_of_bytes
from pipeline.inference.predictor import Predictor
from pipeline.inference.windows import Views
from pipeline.runtime.errors import DataError


class ServedPredictor(PythonModel):
    """Answer requests with a `Predictor`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the checkpoint of the registered model."""
        self.source = context.artifacts["checkpoint"]
        self.options: tuple[str, float, int] = ("", 0.0, 0)
        self.predictor = Predictor.load(self.source)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Predict pictures.

        Args:
            context: unused, since the checkpoint is loaded.
            model_input: a column "image" of picture files in base64.
            params: "classes" (names or ids with commas, empty for all), "min_confidence" and "window" (0 for
                the whole picture), as of `pipeline predict`.

        Returns:
            Columns "class_map" and "classes", a row for each picture.

        Raises:
            DataError: a picture that cannot be read.
            UsageError: an unknown class, or an option out of range.
        """
        predictor = self._predictor(params or {})
        rows = []
        for number, text in enumerate(model_input["image"]):
            prediction = predictor(_pixels(text, number))
            buffer = io.BytesIO()
            Image.fromarray(prediction.class_map).save(buffer, format="PNG")
            class_map = base64.b64encode(buffer.getvalue()).decode("ascii")
            rows.append({"class_map": class_map, "classes": json.dumps(prediction.to_dict())})
        return pd.DataFrame(rows, columns=["class_map", "classes"])

    def _predictor(self, params: dict[str, Any]) -> Predictor:
        """Return a predictor with these options; the last one is kept for requests with the same."""
        classes = str(params.get("classes") or "")
        options = (classes, float(params.get("min_confidence") or 0.0), int(params.get("window") or 0))
        if options != self.options:
            self.predictor = Predictor.load(
                self.source,
                classes=classes.split(",") if classes else None,
                min_confidence=options[1],
                views=Views(window=options[2] or None),
            )
            self.options = options
        return self.predictor


def _pixels(text: str, number: int) -> np.ndarray:
    """Return the pixels of a picture file in base64, upright."""
    where = f"row {number} of the column image"
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise DataError("not base64", where=where, found=error, allowed="a picture file in base64") from error
    return picture_of_bytes(data, where=where)


mlflow.models.set_model(ServedPredictor())
