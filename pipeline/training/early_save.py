"""On SIGTERM in a long step, save the pre-step state from a background thread.

A scheduler that sends SIGTERM kills soon after, and on a CPU a step can take minutes; so waiting for its end
would lose what came after the last checkpoint. Until its update a step changes only batch-norm statistics.
They are copied before every step, which costs next to nothing; all else of the state is still there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.runtime.signals import GracefulStop

PATIENCE_SECONDS = 4.0
"""How long a step that is being taken may still end by itself, in which case nothing of it is lost."""


class EarlySave:
    """Save from a thread when a stop was asked for and the step goes on. A context manager.

    Args:
        network: whose buffers a step changes before its update.
        save: writes the state before the step, given the buffers by name.
        stop: whose first signal counts.
    """

    def __init__(
        self, network: nn.Module, save: Callable[[dict[str, Tensor]], None], stop: GracefulStop
    ) -> None:
        self._save, self._stop = save, stop
        names = network.state_dict().keys()
        self._buffers = {name: buffer for name, buffer in network.named_buffers() if name in names}
        self._copies = {name: buffer.clone() for name, buffer in self._buffers.items()}
        self._whole, self._saved = False, False
        self._lock, self._ended = threading.Lock(), threading.Event()

    def __enter__(self) -> EarlySave:
        self._stop.on_request = lambda: threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.on_request = None
        self._ended.set()

    @torch.no_grad()
    def between_steps(self) -> None:
        """Copy the buffers; from here to the next update the state is whole and may be saved."""
        torch._foreach_copy_(list(self._copies.values()), list(self._buffers.values()))
        with self._lock:
            self._whole = True

    def before_update(self) -> None:
        """End the time in which the state may be saved, before weights change.

        Raises:
            Interrupted: the state before this step is saved, so the step is not needed.
        """
        with self._lock:
            self._whole = False
        if self._saved:
            self._stop.check()

    def _watch(self) -> None:
        if self._ended.wait(PATIENCE_SECONDS):
            return
        with self._lock:
            if self._whole:
                try:
                    self._save(self._copies)
                except Exception:  # a full disk, say: the loop meets it again after the step, and tells it
                    return
                self._saved = True
