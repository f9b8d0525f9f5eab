"""Load a backbone's weights from a local safetensors file, and check that timm's download can be reached."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class LoadedWeights:
    """List what a file gave to a backbone, by parameter and buffer names.

    Attributes:
        loaded: names in the backbone that were set from the file.
        missing: names in the backbone that the file lacks; they keep their initial values.
        unexpected: names in the file that the backbone has no use for: the classifier, mostly.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        return f"{len(self.loaded)} loaded, {len(self.missing)} missing, {len(self.unexpected)} unexpected"


def load_weights(network: nn.Module, path: Path, *, name: str) -> LoadedWeights:
    """Load a file of timm's parameter names into timm's feature extractor.

    timm renames parameters when it makes a model a feature extractor ("layers.0" becomes "layers_0" or
    "model.layers.0"), so names are compared without prefix and with dots for underscores. A file made from
    another form of the same model, which timm itself knows how to convert, is loaded through timm.

    Args:
        network: features-only model of timm.
        path: safetensors file, with or without the classifier.
        name: timm's name of the model.

    Raises:
        FileNotFoundError: no file at `path`.
        ValueError: not a safetensors file, or weights of another model.
    """
    tensors = _read(path)
    target = network.state_dict()
    matched, missing, unexpected = _match(target, tensors)
    if missing and (converted := _convert(name, path)) is not None:
        matched, missing, _ = _match(target, converted)
    misshapen = [key for key, value in matched.items() if value.shape != target[key].shape]
    needed = {key for key, _ in network.named_parameters()}
    lacking = [key for key in missing if key in needed or key.endswith(("running_mean", "running_var"))]
    if misshapen or lacking:
        raise ValueError(_misfit(path, name, target, matched, misshapen, lacking, unexpected))
    network.load_state_dict(matched, strict=False)
    return LoadedWeights(tuple(matched), tuple(missing), tuple(unexpected))


def check_weights_reachable(name: str, config: Any) -> None:
    """Fail within seconds where timm would retry a download for most of a minute.

    Weights in the cache of the Hugging Face hub need no network. A server that answers, even with an error,
    is left to timm.

    Args:
        name: timm's name of the model.
        config: timm's pretrained configuration of it.

    Raises:
        ValueError: timm has no weights for this model.
        ConnectionError: the hub cannot be reached and the weights are not in its cache.
    """
    if not config.hf_hub_id:
        if config.url:
            return
        raise ValueError(
            f"timm has no weights for {name!r}: set model.weights to a local safetensors file, or pretrained "
            "to false to train from scratch"
        )
    import huggingface_hub as hub

    files = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    if any(isinstance(hub.try_to_load_from_cache(config.hf_hub_id, file), str) for file in files):
        return
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(config.hf_hub_id, files[0]), timeout=CONNECT_SECONDS)
    except hub.errors.HfHubHTTPError:
        return
    except Exception as error:  # the hub's HTTP library, and so its exceptions, differ between versions
        raise ConnectionError(
            f"the weights of {name!r} cannot be downloaded\n"
            f"  where:   {config.hf_hub_id} on the Hugging Face hub\n"
            f"  found:   {error}\n"
            "  fix: set model.weights to a local safetensors file with timm's parameter names, or "
            "model.pretrained to false to train from scratch"
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"no weights file\n  where:   {path}\n"
            "  fix: correct model.weights, or remove it to train from scratch"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"not a safetensors file\n  where:   {path}\n  found:   {error}\n"
            "  allowed: a .safetensors file with timm's parameter names\n"
            "  fix: safetensors.torch.save_file(model.state_dict(), PATH) writes one from a timm model"
        ) from error


def _plain(key: str) -> str:
    """Reduce a parameter's name to what is the same with and without timm's feature extractor around it."""
    for prefix in ("model.", "body."):
        key = key.removeprefix(prefix)
    return key.replace("_", ".")


def _match(
    target: dict[str, Tensor], tensors: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Return (matched tensors, missing names, unexpected names), matched by the target's names."""
    source = {_plain(key): key for key in tensors}
    matched = {key: tensors[source[_plain(key)]] for key in target if _plain(key) in source}
    known = {_plain(key) for key in target}
    missing = [key for key in target if key not in matched]
    return matched, missing, [key for key in tensors if _plain(key) not in known]


def _convert(name: str, path: Path) -> dict[str, Tensor] | None:
    """Read the file through timm, which converts old names; None where it does not fit the whole model."""
    try:
        with torch.random.fork_rng(devices=[]):
            model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    except (RuntimeError, KeyError, ValueError, UnpicklingError):
        return None
    return model.state_dict()


def _misfit(
    path: Path,
    name: str,
    target: dict[str, Tensor],
    matched: dict[str, Tensor],
    misshapen: list[str],
    lacking: list[str],
    unexpected: list[str],
) -> str:
    found = [f"{len(matched) - len(misshapen)} of {len(target)} tensors fit"]
    if misshapen:
        key = misshapen[0]
        shapes = f"{tuple(matched[key].shape)} in the file, {tuple(target[key].shape)} in the model"
        found.append(f"{len(misshapen)} of another shape ({key}: {shapes})")
    if lacking:
        found.append(f"{len(lacking)} missing ({', '.join(lacking[:3])} ...)")
    if unexpected:
        found.append(f"{len(unexpected)} unexpected ({', '.join(unexpected[:3])} ...)")
    return (
        f"weights of another model\n  where:   {path}\n  found:   {'; '.join(found)}\n"
        f"  allowed: every parameter of timm's {name!r} but the classifier\n"
        "  fix: set model.weights to a file of this backbone, or model.backbone to the file's model"
    )
