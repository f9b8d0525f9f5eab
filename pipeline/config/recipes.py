"""Settings to train on a published dataset: the paper's values where they are known, marked as such.

Where the paper's code departs from the usual protocol, the usual one is the default and the comment names the
paper's. `pipeline init` writes a recipe as a settings file.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from pipeline.config.schema import Settings
from pipeline.config.section import Section
from pipeline.runtime.errors import UsageError

PAPER, USUAL = "paper", "not stated by the paper"

Values = dict[str, tuple[object, str]]
"""{KEY: (value, remark)}"""

_COMMON: Values = {
    "model.backbone": ("resnet50", PAPER),
    "model.pretrained": (True, f"{PAPER}: ImageNet weights; set weights to a file where there is no network"),
    "model.output_stride": (16, USUAL),
    "model.embedding_dim": (12, f"D; {PAPER}"),
    "loss.name": ("knn", f"{PAPER}; exact compares with all classes in the same memory"),
    "loss.num_negatives": (7, f"K; {PAPER}"),
    "loss.temperature": (0.05, f"{PAPER}: distances times 20"),
    "loss.min_separation": (0.2, PAPER),
    "train.steps": (200_000, f"{PAPER}'s default"),
    "train.effective_batch_size": (10, f"images a step; {PAPER}"),
    "train.crop_size": (512, f"{PAPER}: 512 or 513"),
    "train.scale_min": (0.5, PAPER),
    "train.scale_max": (2.0, PAPER),
    "train.optimizer": ("sgd", PAPER),
    "train.learning_rate": (0.01, PAPER),
    "train.backbone_lr_multiplier": (0.1, PAPER),
    "train.poly_power": (0.9, PAPER),
    "train.weight_decay": (1e-4, PAPER),
    "train.precision": ("fp32", f"{PAPER}; bf16 halves the activations"),
}

RECIPES: dict[str, tuple[int, Values]] = {  # number of classes, departures from above
    "cityscapes": (
        19,
        {
            "data.annotations": ("gtFine", "of the official folder"),
            "model.embedding_dim": (6, f"D; {PAPER}"),
            "train.effective_batch_size": (12, f"images a step; {PAPER}"),
            "train.scale_min": (0.5, "usual; the paper's code does not scale Cityscapes"),
        },
    ),
    "voc": (
        21,
        {
            "data.annotations": ("VOCdevkit/VOC2012/SegmentationClass", "of the official folder"),
            "data.voc.augmented": (True, "usual: 10,582 images; needs SBD beside VOCdevkit"),
            "model.embedding_dim": (6, f"D; {USUAL}, as Cityscapes"),
            "train.effective_batch_size": (16, f"images a step; {USUAL}, its code takes 10 to 16"),
        },
    ),
    "ade20k": (
        150,
        {"data.annotations": ("ADEChallengeData2016/annotations", "of the official folder")},
    ),
    "cocostuff10k": (
        171,
        {
            "data.cocostuff.classes": (171, "those that occur; the paper's code has 182"),
            "evaluate.warp": (512, "whole images are the result; the paper's warped 512 x 512 is added"),
        },
    ),
    "coco_lvis": (
        1_284,
        {
            "model.embedding_dim": (12, f"D; {USUAL} for 1,284 classes"),
            "loss.name": ("exact", "all classes in the same memory; knn is the paper's"),
        },
    ),
}


def recipe(dataset: str, root: str, changes: Mapping[str, object]) -> tuple[int, Values]:
    """Return the number of classes, and the settings of a dataset as {KEY: (value, remark)}.

    Args:
        dataset: a key of `RECIPES`, which is also its layout.
        root: the dataset's folder.
        changes: the user's values by key; they win.

    Raises:
        UsageError: no recipe for this dataset.
    """
    if dataset not in RECIPES:
        raise UsageError("no recipe for this dataset", found=dataset, allowed=", ".join(RECIPES))
    num_classes, own = RECIPES[dataset]
    data: Values = {"data.root": (root, ""), "data.layout": (dataset, "")}
    chosen = {key: (value, "chosen") for key, value in changes.items()}
    return num_classes, data | _COMMON | own | chosen


def render(dataset: str, values: Values) -> str:
    """Return a settings file that spells out every section, the recipe's values with their remarks.

    Args:
        dataset: named in the first line.
        values: {KEY: (value, remark)}.
    """
    tree = CommentedMap()
    for name in ("data", "model", "loss", "train", "evaluate"):
        section = Settings.model_fields[name].annotation
        assert isinstance(section, type)
        assert issubclass(section, Section)
        tree[name] = _section(section, name, values)
    variant = "essnet" if values["loss.name"][0] == "knn" else "exact"
    tree["variants"] = {variant: {"loss": {"name": values["loss.name"][0]}}}
    tree["tune"] = {"variant": variant}
    tree["tracking"] = {"experiment": f"kiloseg-{dataset}"}
    tree["runtime"] = {"device": "auto", "threads": "auto", "num_workers": "auto"}
    yaml = YAML()
    yaml.width = 10_000
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    text = io.StringIO()
    yaml.dump(tree, text)
    head = f"# {dataset}, written by `pipeline init`; see docs/reproduce.md. Remarks give sources."
    return f"{head}\n\n{text.getvalue()}"


def _section(section: type[Section], prefix: str, values: Values) -> CommentedMap:
    """All keys of a section with the recipe's values, else the defaults."""
    tree = CommentedMap()
    for name, field in section.model_fields.items():
        key = f"{prefix}.{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            tree[name] = _section(field.annotation, key, values)
            continue
        value, remark = values.get(key, (field.default, ""))
        tree[name] = value
        if remark:
            tree.yaml_add_eol_comment(remark, name, column=40)
    return tree


def as_overrides(values: Values) -> dict[str, Any]:
    """Return {KEY: value} without the remarks."""
    return {key: value for key, (value, _) in values.items()}
