"""Ship the view of the runs that `pipeline ui` opens, and the words that describe experiment and runs.

MLflow's UI keeps a shared view as JSON in a tag of the experiment, and opens it by its key in the address.
Its form is not documented: columns, order and charts are as the UI of MLflow 3.17 writes them. A UI that does
not know it shows its usual table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from urllib.parse import urlencode

VIEW = "kiloseg"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
NOTE_TAG = "mlflow.note.content"
"""MLflow's description of an experiment or run."""
QUALITY = "val/miou"
MEMORY = "peak_memory_gib"
COLUMNS = (
    ("tags", "variant"),
    ("tags", "outcome"),
    ("metrics", QUALITY),
    ("metrics", MEMORY),
    ("params", "model.embedding_dim"),
    ("params", "loss.num_negatives"),
    ("metrics", "val/miou_frequent"),
    ("metrics", "val/miou_common"),
    ("metrics", "val/miou_rare"),
    ("metrics", "val/miou_stuff"),
)
_WIDTH = 110  # of a column, pixels
_EXPERIMENT_NOTE = """Trainings of kiloseg: semantic segmentation with many classes on one GPU.

A run is a variant of `params.yaml`, or a sweep whose trials are its children. `outcome` says what became of a
trial: finished, pruned (stopped early, since others did better), infeasible (it does not fit into memory) or
failed. `val/miou` is the mean IoU on val of the classes in truth or prediction; `peak_memory_gib` is the peak
of a training step, predicted on a CPU, by the CUDA allocator's count on a GPU. A variant's artifacts have the
report of all variants, the table of its classes and example pictures."""


def runs_address(experiment: str) -> str:
    """Return the part of the UI's address behind the host that opens the runs in the shipped view."""
    query = urlencode({"workflowType": "machine_learning", "viewStateShareKey": VIEW})
    return f"/#/experiments/{experiment}/runs?{query}"


def experiment_tags() -> dict[str, str]:
    """Return the tags of an experiment: its description and the shipped view."""
    return {NOTE_TAG: _EXPERIMENT_NOTE, VIEW_TAG: json.dumps(_view())}


def variant_note(variant: str, settings: Mapping[str, object]) -> str:
    """Return what a run is, in words."""
    head = f"head `{settings.get('model.head')}`, loss `{settings.get('loss.name')}`"
    size = f"{settings.get('train.steps')} steps of {settings.get('train.batch_size')} crops"
    side = settings.get("train.crop_size")
    return (
        f"Variant `{variant}` of params.yaml: {head}, backbone `{settings.get('model.backbone')}`, {size} "
        f"of {side} x {side}. Its numbers under val/ are of the checkpoint chosen on the held-out part."
    )


def trial_note(sweep: str, number: int, values: Mapping[str, object], outcome: str) -> str:
    """Return what a trial's run is, in words."""
    chosen = ", ".join(f"`{key}` = {value}" for key, value in values.items())
    said = {
        "pruned": "It was pruned: stopped early, since other trials did better at the same step.",
        "infeasible": "It does not fit into memory.",
        "failed": "It failed; the tag `error` says why.",
    }
    return f"Trial {number} of the sweep `{sweep}`: {chosen}. {said.get(outcome, '')}".strip()


def _view() -> dict[str, object]:
    columns = [f"{kind}.`{name}`" for kind, name in COLUMNS]
    section = "kiloseg-overview"
    charts = [
        {
            "type": "SCATTER",
            "uuid": "kiloseg-miou-memory",
            "runsCountToCompare": 100,
            "metricSectionId": section,
            "deleted": False,
            "isGenerated": False,
            "xaxis": {"key": MEMORY, "type": "METRIC"},
            "yaxis": {"key": QUALITY, "type": "METRIC"},
        }
    ]
    return {
        "orderByKey": f"metrics.`{QUALITY}`",
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": ["attributes.`Run Name`", "runDateAndNestInfo", *columns],
        "columnWidths": dict.fromkeys(columns, _WIDTH),
        "compareRunCharts": charts,
        "compareRunSections": [
            {
                "uuid": section,
                "name": "mIoU against memory",
                "display": True,
                "isReordered": True,
                "deleted": False,
                "isGenerated": False,
            }
        ],
        "isAccordionReordered": True,  # else sections are in the order of their names
        "runsHiddenMode": "SHOW_ALL",
    }
