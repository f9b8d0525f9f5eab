"""A few steps of training with the public face, for programs that import it under another name."""

STEP = """
import torch
from {name} import EmbeddingCrossEntropy, EmbeddingHead, exact_cross_entropy, nearest_classes
from {name} import knn_cross_entropy, sampled_cross_entropy, separation_loss

torch.manual_seed(0)
head = EmbeddingHead(8, 6, 40)
features, target = torch.randn(2, 8, 8, 8), torch.randint(0, 40, (2, 32, 32))
optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
losses = []
for _ in range(3):
    embeddings, classes = head(features), head.class_embeddings
    loss = exact_cross_entropy(embeddings, classes, target) + separation_loss(classes)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[2] < losses[0], losses
rows, labels = embeddings.flatten(2).movedim(1, 2).flatten(0, 1), target[:, ::4, ::4].flatten()
for function in (knn_cross_entropy, sampled_cross_entropy, EmbeddingCrossEntropy()):
    assert function(rows, classes, labels).isfinite()
assert head.predict(features, (32, 32)).shape == target.shape
"""
