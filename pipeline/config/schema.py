"""Define what can be configured: frozen, checked settings, section by section as in params.yaml.

`pipeline.config.load` reads them. A value that follows from others, such as the number of classes, is
computed where it is needed and never configured.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.config.data_section import DataSettings
from pipeline.config.evaluate_section import EvaluateSettings
from pipeline.config.paths import SWEEPS
from pipeline.config.section import Count, CountOrNone, FilePath, Positive, PositiveOrZero, Section, Seed
from pipeline.config.seeds import SeedSettings

Batch = Annotated[int, Field(ge=1, le=65_536)]
Scale = Annotated[float, Field(ge=0.01, le=100)]
Gibibytes = Annotated[float, Field(gt=0, le=1e6)]


class ModelSettings(Section):
    """The network: a timm backbone, a decoder, and an embedding or a softmax head."""

    backbone: str = Field("resnet50", description="name of a timm model")
    pretrained: bool = Field(False, description="download timm's weights for it")
    weights: FilePath | None = Field(
        None, description="local safetensors file: the backbone's weights, or a checkpoint to go on from"
    )
    output_stride: Literal[8, 16, 32] = 16
    decoder: Literal["deeplabv3plus", "deeplabv3plus_separable", "fpn", "upernet", "linear"] = Field(
        "deeplabv3plus",
        description="each takes every backbone; linear is meant for plain vision transformers",
    )
    decoder_channels: Annotated[int, Field(ge=1, le=65_536)] = 256
    head: Literal["embedding", "softmax"] = "embedding"
    embedding_dim: Annotated[int, Field(ge=1, le=4096)] = 16
    projection: Literal["always", "if_needed"] = Field("always", description="to embedding_dim channels")
    batch_norm_momentum: Annotated[float, Field(gt=0, le=1)] = Field(
        0.01, description="momentum of the backbone's batch-norm statistics (0.01 in the paper's code)"
    )
    input_scale: Annotated[float, Field(gt=0, le=4)] = Field(
        1.0, description="factor by which the network resizes images; loss and metrics stay at full size"
    )

    @model_validator(mode="after")
    def _one_source_of_weights(self) -> ModelSettings:
        if self.pretrained and self.weights is not None:
            raise ValueError(
                "pretrained and weights exclude each other: set pretrained: false to use the file"
            )
        return self


class LossSettings(Section):
    """The cross-entropy; similarity, temperature and separation are those of the embedding head."""

    name: Literal["exact", "knn", "sampled", "dense"] = Field(
        "exact", description="dense forms all logits at once, the usual way; for the softmax head only"
    )
    similarity: Literal["distance", "cosine"] = "distance"
    temperature: Positive = Field(0.05, description="divides the similarity; the paper multiplies by 20")
    num_negatives: Count = Field(7, description="classes besides the true one, for knn and sampled")
    min_separation: PositiveOrZero = Field(
        0.2, description="least wanted distance between two class embeddings"
    )
    separation_weight: PositiveOrZero = 1.0
    logit_adjustment: Annotated[float, Field(ge=0, le=10)] = Field(
        0.0, description="adds so many times log of the class's pixel share to its logit, in training"
    )
    class_weights: Literal["effective_number"] | None = Field(
        None, description="weights of the classes by the images that show them (null: all 1)"
    )
    pixel_budget: Count | None = Field(
        None, description="labeled pixels of a step that the loss takes, drawn at random (null: all)"
    )
    work_memory_mib: Annotated[int, Field(ge=1, le=2**20)] = Field(
        32, description="budget of the loss's work buffer"
    )


class TrainSettings(Section):
    """One training run, as in the paper unless changed."""

    steps: Count = 200_000
    batch_size: Batch | Literal["auto"] = Field(
        10, description="images of an optimization step; auto: effective_batch_size, divided as memory needs"
    )
    accumulation_steps: Batch = Field(
        1, description="micro-batches into which a step's images are divided, one in memory at a time"
    )
    effective_batch_size: Batch | None = Field(
        None, description="images of a step with batch_size: auto (null: 10, the paper's)"
    )
    memory_budget_gib: Gibibytes | None = Field(
        None, description="memory that batch_size: auto may plan with (null: 90 % of what is free)"
    )
    crop_size: Annotated[int, Field(ge=16, le=8192)] = Field(
        512, description="side of the square crop, pixels"
    )
    scale_min: Scale = 0.5
    scale_max: Scale = 2.0
    flip_probability: Annotated[float, Field(ge=0, le=1)] = 0.5
    repeat_threshold: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="classes in a smaller share of the images are shown more often (null: no repeats)"
    )
    optimizer: Literal["sgd", "adamw"] = "sgd"
    schedule: Literal["poly", "cosine"] = Field("poly", description="how the rate falls over the steps")
    learning_rate: Positive = 0.01
    backbone_lr_multiplier: PositiveOrZero = Field(
        0.1, description="the backbone's rate relative to the rest"
    )
    class_lr_multiplier: PositiveOrZero = Field(
        1.0, description="the rate of the class embeddings or the classifier, relative to the decoder"
    )
    freeze_backbone: bool = Field(False, description="keep the backbone's weights and statistics as loaded")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="of SGD; beta 1 of AdamW")
    weight_decay: PositiveOrZero = 1e-4
    class_embedding_weight_decay: PositiveOrZero | None = Field(
        None, description="that of the class embeddings (null: weight_decay)"
    )
    poly_power: PositiveOrZero = 0.9
    warmup_steps: CountOrNone = Field(
        0, description="steps over which the rate rises linearly to its full value"
    )
    gradient_clip: Positive | None = Field(None, description="largest norm of the whole gradient (null: any)")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="bf16 and fp16 compute the network under autocast; fp16 needs a GPU"
    )
    tf32: bool = Field(True, description="a GPU may round the network's products to TensorFloat32")
    channels_last: bool = Field(False, description="keep the channels innermost in memory")
    fused_optimizer: bool | Literal["auto"] = Field(
        "auto", description="update all weights in one kernel; auto: on a GPU"
    )
    compile: bool = Field(False, description="compile the network with torch.compile; the first step is slow")
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="decay of the moving average of the weights, which is then validated (null: off)",
    )
    deterministic: bool = Field(
        False, description="the same bits every time, on a CPU with any number of threads; slower"
    )
    debug: Literal["one_batch", "few_batches", "profile"] | None = Field(
        None, description="train on one batch for ever; or end after a few; or write a trace of those"
    )
    validate_every: Count = Field(2_000, description="steps between evaluations on the held-out part")
    checkpoint_every: Count = Field(1_000, description="steps between checkpoints to resume from")
    seed: Seed = 0

    @model_validator(mode="after")
    def _scales_in_order(self) -> TrainSettings:
        if self.scale_min > self.scale_max:
            raise ValueError(f"scale_min ({self.scale_min}) must not exceed scale_max ({self.scale_max})")
        return self

    @model_validator(mode="after")
    def _batch_that_can_be_divided(self) -> TrainSettings:
        if self.batch_size == "auto":
            if self.accumulation_steps != 1:
                raise ValueError(
                    "batch_size: auto finds accumulation_steps itself: set accumulation_steps: 1"
                )
        elif self.effective_batch_size not in (None, self.batch_size):
            raise ValueError(
                f"effective_batch_size ({self.effective_batch_size}) is for batch_size: auto; a step has "
                f"batch_size ({self.batch_size}) images, divided by accumulation_steps: set it to null"
            )
        elif self.accumulation_steps > self.batch_size:
            raise ValueError(
                f"accumulation_steps ({self.accumulation_steps}) must not exceed "
                f"batch_size ({self.batch_size})"
            )
        return self

    @property
    def images_per_step(self) -> int:
        """Return the images that one update of the weights sees: the effective batch size."""
        return (self.effective_batch_size or 10) if self.batch_size == "auto" else self.batch_size

    @property
    def micro_batch_size(self) -> int:
        """Return the images in memory at a time: those of a step by `accumulation_steps`, rounded up."""
        return -(-self.images_per_step // self.accumulation_steps)


class TuneSettings(Section):
    """What `pipeline tune` sweeps, and how. No DVC stage depends on it."""

    variant: str | None = Field(
        None, description="variant whose settings the trials start from (null: plain)"
    )
    space: dict[str, dict[str, list[Any]]] = Field(
        default_factory=dict, description="{KEY: {choice | grid | uniform | loguniform: values}}"
    )
    fixed: dict[str, Any] = Field(default_factory=dict, description="{KEY: value} that all trials have")
    objectives: list[Literal["val/miou", "holdout/miou", "peak_memory_gib"]] = Field(
        ["val/miou"], description="one mIoU, or one and peak_memory_gib"
    )
    trials: Count = 8
    max_concurrent: Count | Literal["auto"] = Field("auto", description="trials at once (auto: what fits)")
    gpus_per_trial: PositiveOrZero | Literal["auto"] = "auto"
    pruning: bool = Field(True, description="ASHA: stop trials early that are behind on the held-out part")
    reduction_factor: Annotated[int, Field(ge=2)] = Field(
        3, description="ASHA lets one in so many trials go on at each rung"
    )
    memory_budget_gib: Gibibytes | None = Field(
        None, description="points predicted to need more are not trained (null: the GPU's memory)"
    )
    folder: FilePath = Field(SWEEPS, description="where sweeps are kept; shared by all machines")
    seed: CountOrNone = 0

    @model_validator(mode="after")
    def _one_or_two_objectives(self) -> TuneSettings:
        second = self.objectives[1:]
        if (
            not self.objectives
            or self.objectives[0] == "peak_memory_gib"
            or second not in ([], ["peak_memory_gib"])
        ):
            raise ValueError("[val/miou], [holdout/miou], or one of them followed by peak_memory_gib")
        return self


class TrackingSettings(Section):
    """The MLflow experiment; the store is MLFLOW_TRACKING_URI or sqlite:///mlflow.db in the project."""

    experiment: Annotated[str, Field(min_length=1)] = "kiloseg"


class RuntimeSettings(Section):
    """This machine. No DVC stage depends on it, so that a result stays valid on another one.

    Device and threads change how sums are rounded, and so, after some hundred steps, the network (as another
    seed does). Their numbers are kept with every result.
    """

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    threads: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = Field(
        "auto", description="of torch on the CPU (auto: the cores); the same number gives the same bits"
    )
    num_workers: Annotated[int, Field(ge=0, le=256)] | Literal["auto"] = "auto"


class Settings(Section):
    """All settings of one run.

    Attributes:
        project: the folder that relative paths were resolved against.
        file: where the settings were read, for messages.
        variant: whose overrides apply; None for the plain settings.
    """

    project: FilePath
    file: FilePath = Path("params.yaml")
    variant: str | None = None
    data: DataSettings
    model: ModelSettings = ModelSettings()
    loss: LossSettings = LossSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    tune: TuneSettings = TuneSettings()
    tracking: TrackingSettings = TrackingSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    variants: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)
    seeds: SeedSettings = SeedSettings()

    @model_validator(mode="after")
    def _seeds_of_known_variants(self) -> Settings:
        unknown = [name for name in self.seeds.variants if name not in self.variants]
        if unknown:
            known = ", ".join(self.variants) or "none is defined"
            raise ValueError(f"seeds.variants: {unknown[0]!r} is no variant; allowed: {known}")
        return self

    @model_validator(mode="after")
    def _dense_only_of_a_classifier(self) -> Settings:
        if self.loss.name == "dense" and self.model.head != "softmax":
            raise ValueError("loss.name dense forms all logits of a classifier: it needs model.head softmax")
        return self

    @model_validator(mode="after")
    def _long_tail_where_the_loss_has_it(self) -> Settings:
        distances = self.model.head == "embedding" and self.loss.similarity == "distance"
        if self.loss.logit_adjustment and self.loss.name == "knn" and distances:
            raise ValueError(
                "loss.logit_adjustment: nearest classes by distance take none; set loss.name exact"
            )
        if self.loss.class_weights is not None and self.loss.name not in ("exact", "dense"):
            raise ValueError("loss.class_weights: only the losses exact and dense have them")
        return self

    @model_validator(mode="after")
    def _frozen_only_if_trained(self) -> Settings:
        if self.train.freeze_backbone and not self.model.pretrained and self.model.weights is None:
            raise ValueError(
                "train.freeze_backbone needs model.pretrained or model.weights: it would stay random"
            )
        return self

    def flat(self) -> dict[str, object]:
        """Return the settings that can change a result, by dotted key: what is compared and tracked."""
        sections = self.model_dump(mode="json", include={"data", "model", "loss", "train", "evaluate"})
        del sections["data"]["annotations"]  # says only what DVC watches
        for section, key in (key.split(".") for key in _CAME_LATER):
            if sections[section][key] == type(getattr(self, section)).model_fields[key].default:
                del sections[section][key]
        for name, layout in (("voc", "voc"), ("cocostuff", "cocostuff10k")):
            if self.data.layout != layout:
                del sections["data"][name]
        return dict(_dotted(sections))


def _dotted(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


_CAME_LATER = (
    "evaluate.warp",
    "model.projection",
    "loss.logit_adjustment",
    "loss.class_weights",
    "train.class_lr_multiplier",
)
"""Left out of `flat` at their default, so that trainings of before they existed can be resumed."""

OF_THE_MACHINE = ("loss.work_memory_mib", "train.checkpoint_every", "train.memory_budget_gib")
"""Keys of sections that count for a training, which yet do not: memory and safety on a machine.

What `batch_size: auto` found with its budget is kept in the checkpoint.
"""

NOT_IN_THE_FILE = ("project", "file", "variant")
"""What reading a settings file adds to its sections."""

SECTIONS = tuple(name for name in Settings.model_fields if name not in NOT_IN_THE_FILE)
