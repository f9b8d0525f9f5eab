"""Use the exact loss in a training of your own: your network, one head, one call of the loss.

    python -m examples.loss_in_your_training

The network here is two convolutions on random images. What matters is that the loss takes the embeddings at
the network's own resolution and the target at full resolution, and that nothing the size of pixels x classes
is ever held.
"""

from __future__ import annotations

import torch
from torch import nn

# Installed by `pip install ./models` it is: from kiloseg import EmbeddingHead, exact_cross_entropy
from models import EmbeddingHead, exact_cross_entropy

NUM_CLASSES, EMBEDDING_DIM, IGNORE_INDEX = 2_000, 16, -1


class YourNetwork(nn.Module):
    """Any network that gives features at a lower resolution, here a quarter, and an embedding head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.head = EmbeddingHead(64, EMBEDDING_DIM, NUM_CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) images to (N, D, H/4, W/4) embeddings of length 1."""
        return self.head(self.features(images))


def main(steps: int = 20) -> list[float]:
    """Train on one random batch and return the losses."""
    torch.manual_seed(0)
    network = YourNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    images = torch.rand(2, 3, 64, 64)
    target = torch.randint(0, NUM_CLASSES, (2, 8, 8)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    target[:, :4] = IGNORE_INDEX  # unlabeled pixels take no part
    losses = []
    for _ in range(steps):
        loss = exact_cross_entropy(
            network(images), network.head.class_embeddings, target, ignore_index=IGNORE_INDEX
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    with torch.no_grad():
        predicted = network.head.predict(network.features(images), (64, 64))  # (2, 64, 64) class ids
    labeled = target != IGNORE_INDEX
    accuracy = (predicted[labeled] == target[labeled]).float().mean()
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}, pixel accuracy {accuracy:.0%}")
    return losses


if __name__ == "__main__":
    main()
