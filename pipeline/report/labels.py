"""Name every setting, metric and fact of the environment as the report shows it.

The page shows no raw keys; the key of a setting in params.yaml is the tooltip of its row.
"""

from __future__ import annotations

SETTINGS = {
    "data.root": "dataset folder",
    "data.layout": "dataset layout",
    "data.holdout_fraction": "held-out share of the train images",
    "data.holdout_seed": "seed of the held-out part",
    "data.overlap": "annotation that keeps an overlap",
    "data.keep_classes": "classes kept",
    "model.backbone": "backbone",
    "model.pretrained": "pretrained weights from timm",
    "model.weights": "file of backbone weights",
    "model.output_stride": "output stride",
    "model.decoder": "decoder",
    "model.decoder_channels": "decoder channels",
    "model.head": "head",
    "model.embedding_dim": "embedding size D",
    "model.projection": "convolution to D",
    "model.batch_norm_momentum": "batch-norm momentum of the backbone",
    "model.input_scale": "input scale",
    "loss.name": "kind of loss",
    "loss.similarity": "similarity",
    "loss.temperature": "temperature",
    "loss.num_negatives": "negatives per pixel",
    "loss.min_separation": "minimum distance between class embeddings",
    "loss.separation_weight": "weight of the separation loss",
    "loss.pixel_budget": "pixels per step in the loss",
    "loss.work_memory_mib": "work buffer of the loss, MiB",
    "train.steps": "number of steps",
    "train.batch_size": "batch size",
    "train.accumulation_steps": "gradient accumulation steps",
    "train.effective_batch_size": "effective batch size",
    "train.memory_budget_gib": "memory budget of batch size auto, GiB",
    "train.crop_size": "crop size, pixels",
    "train.scale_min": "smallest random scale",
    "train.scale_max": "largest random scale",
    "train.flip_probability": "flip probability",
    "train.repeat_threshold": "repeat-factor threshold",
    "train.optimizer": "optimizer",
    "train.schedule": "learning-rate schedule",
    "train.learning_rate": "learning rate",
    "train.backbone_lr_multiplier": "learning-rate multiplier of the backbone",
    "train.freeze_backbone": "frozen backbone",
    "train.momentum": "momentum",
    "train.weight_decay": "weight decay",
    "train.class_embedding_weight_decay": "weight decay of the class embeddings",
    "train.poly_power": "power of the poly schedule",
    "train.warmup_steps": "warm-up steps",
    "train.gradient_clip": "gradient clipping norm",
    "train.precision": "precision",
    "train.tf32": "TensorFloat32",
    "train.channels_last": "channels-last memory format",
    "train.fused_optimizer": "fused optimizer",
    "train.compile": "torch.compile",
    "train.ema": "EMA decay",
    "train.deterministic": "deterministic kernels",
    "train.debug": "debug mode",
    "train.validate_every": "steps between validations",
    "train.checkpoint_every": "steps between checkpoints",
    "train.seed": "training seed",
    "evaluate.max_images": "largest number of val images",
    "evaluate.boundary_width": "width of the bands of boundary IoU, image diagonals",
    "evaluate.examples": "example images",
}
ENVIRONMENT = {
    "python": "Python",
    "torch": "PyTorch",
    "timm": "timm",
    "numpy": "NumPy",
    "device": "device",
    "threads": "threads",
    "git_commit": "git commit",
}


def readable(key: str) -> str:
    """Return words for a key that has no label, such as one of a later version."""
    return key.replace("_", " ").replace(".", ": ")
