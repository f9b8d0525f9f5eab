"""Put an embedding head on a network of segmentation_models_pytorch, in place of its logits.

    python -m examples.head_on_smp

Encoder and decoder stay theirs. Their segmentation head, whose training memory grows with the classes, is
replaced by `EmbeddingHead`, and its loss by `exact_cross_entropy`.
"""

from __future__ import annotations

import segmentation_models_pytorch as smp
import torch
from torch import nn

# Installed by `pip install ./models` it is: from kiloseg import EmbeddingHead, exact_cross_entropy
from models import EmbeddingHead, exact_cross_entropy

NUM_CLASSES, EMBEDDING_DIM = 2_000, 16


class SmpWithEmbeddings(nn.Module):
    """A network of segmentation_models_pytorch whose head gives pixel embeddings.

    Args:
        network: with an encoder, a decoder, and a segmentation head that begins with a convolution.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = network.encoder, network.decoder
        in_channels = network.segmentation_head[0].in_channels
        self.head = EmbeddingHead(in_channels, EMBEDDING_DIM, NUM_CLASSES)

    def decode(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) images to the decoder's features, at a quarter of the resolution for DeepLabV3+."""
        return self.decoder(self.encoder(images))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) images to (N, D, h, w) embeddings of length 1."""
        return self.head(self.decode(images))


def main(steps: int = 4, size: int = 64) -> list[float]:
    """Train on one random batch and return the losses."""
    torch.manual_seed(0)
    network = SmpWithEmbeddings(
        smp.DeepLabV3Plus("resnet18", encoder_weights=None, decoder_channels=64, classes=1)
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.003)
    images = torch.rand(2, 3, size, size)
    target = torch.randint(0, NUM_CLASSES, (2, 1, 1)).expand(2, size, size)
    losses = []
    for _ in range(steps):
        loss = exact_cross_entropy(network(images), network.head.class_embeddings, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    with torch.no_grad():
        predicted = network.eval().head.predict(network.decode(images), (size, size))
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}, prediction {tuple(predicted.shape)}")
    return losses


if __name__ == "__main__":
    main()
