"""Take what goes into a network's last layer, of a network that is not ours."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class _Reached(Exception):
    """Carry the features out of the network."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


def features_before(network: nn.Module, layer: nn.Module, *inputs: Any, **named: Any) -> Tensor:
    """Run a network up to a layer, and return what goes into it.

    The layer and all that comes after it, such as upsampling, do not run: with a classifier for `layer` no
    logits are formed. The network stays as it is, and gradients flow as usual. Parts that run after the
    layer, such as an auxiliary head, do not run.

    Args:
        network: is called as `network(*inputs, **named)`.
        layer: a module in it that takes one tensor, for example the last 1 x 1 convolution.
        inputs: of the network.
        named: likewise.

    Returns:
        The layer's input, for a convolution (N, D, h, w).

    Raises:
        ValueError: the network does not call the layer.
    """

    def stop(_: nn.Module, given: tuple[Any, ...]) -> None:
        raise _Reached(given[0])

    handle = layer.register_forward_pre_hook(stop)
    try:
        network(*inputs, **named)
    except _Reached as reached:
        return reached.features
    finally:
        handle.remove()
    raise ValueError(f"the network does not call the layer {layer}")
