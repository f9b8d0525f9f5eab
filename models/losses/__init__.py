"""Losses between pixel embeddings and class embeddings, in memory that does not grow with pixels x classes.

`exact_cross_entropy` compares every pixel with every class. `knn_cross_entropy` is the paper's approximation,
`sampled_cross_entropy` the usual one for very many classes. `separation_loss` keeps classes apart.

The paper's loss differs from its released code in two points: a class is never its own negative, and ignored
pixels take no part.
"""

from .exact import EmbeddingCrossEntropy, exact_cross_entropy
from .knn import knn_cross_entropy
from .sampled import sampled_cross_entropy
from .separation import separation_loss

__all__ = [
    "EmbeddingCrossEntropy",
    "exact_cross_entropy",
    "knn_cross_entropy",
    "sampled_cross_entropy",
    "separation_loss",
]
