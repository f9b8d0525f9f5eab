"""Log the curves of a training, and show its progress."""

from __future__ import annotations

from pipeline.runtime.device import PeakMemory
from pipeline.tracking.tracker import Tracker
from pipeline.training.state import PendingLosses, TrainState


class TrainingLog:
    """Sends losses and speed to the tracker, and words them for the progress bar.

    Args:
        tracker: receives the metrics "train/NAME".
        state: its loss curve grows.
        losses: are read when they are logged.
        memory: of the training.
        images_per_step: the effective batch size.
    """

    def __init__(
        self,
        tracker: Tracker,
        state: TrainState,
        losses: PendingLosses,
        memory: PeakMemory,
        images_per_step: int,
    ) -> None:
        self.tracker, self.state, self.losses, self.memory = tracker, state, losses, memory
        self.images_per_step = images_per_step

    def log_losses(self, step: int) -> None:
        """Read the losses, and log their mean since the last time. Waits for the device.

        Raises:
            KilosegError: a loss is not finite.
        """
        self.losses.read()
        state, last = self.state, self.losses.last
        assert last is not None
        mean = state.pending_loss / state.pending_steps
        state.pending_loss, state.pending_steps = 0.0, 0
        state.loss_curve.append([step, mean])
        values = {
            "loss": mean,
            "separation": last.separation,
            "learning_rate": last.learning_rate,
            "images_per_second": self._images_per_second(step),
            "data_wait_share": state.data_wait_share,
        }
        self.tracker.log_metrics({f"train/{name}": value for name, value in values.items()}, step)

    def note(self, step: int) -> str:
        """Word the progress. Loss and rate are those read last, so nothing waits for the device."""
        last = self.losses.last
        if last is None:
            return ""
        return (
            f"loss {last.cross_entropy:.3f}, rate {last.learning_rate:.2g}, "
            f"{self._images_per_second(step):.1f} images/s, {self.memory.gib():.1f} GiB, "
            f"waiting for data {self.state.data_wait_share:.0%}"
        )

    def _images_per_second(self, step: int) -> float:
        """Of all steps so far, validations and checkpoints left out."""
        seconds = self.state.stepping_seconds
        return step * self.images_per_step / max(seconds, 1e-9) if seconds else 0.0
