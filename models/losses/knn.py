"""Compute the paper's loss: cross-entropy over the target and the classes nearest to each pixel.

Gathering K class embeddings for every pixel at once, as autograd would, takes P K D numbers: about 1 GB at
batch 10, 512 x 512, K = 7, D = 12. Here they exist for one chunk of pixels, and so do their gradients.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from ..compiled import nearest_of_maps
from ..embeddings import (
    IGNORE_INDEX,
    WORK_BYTES,
    LossOptions,
    Similarity,
    check_class_vectors,
    check_maps,
    check_rows,
    check_search_bias,
    check_target,
    class_matrix,
    compute_dtype,
    default_temperature,
    full_precision,
    never_compiled,
)
from ..gradients import LossAndGradients, Needed, keep_gradients
from ..implementation import implementation_for
from ..nearest import nearest_classes
from ..tiled.cross_entropy import labeled_rows, row_chunks
from ..tiled.threads import for_each, num_workers, pieces_of
from ..upsampling import full_resolution_rows, rows_of_pixels


@never_compiled
def knn_cross_entropy(
    embeddings: Tensor,
    class_embeddings: Tensor,
    target: Tensor,
    *,
    num_negatives: int = 7,
    bias: Tensor | None = None,
    temperature: float | None = None,
    similarity: Similarity = "distance",
    ignore_index: int = IGNORE_INDEX,
    work_bytes: int = WORK_BYTES,
) -> Tensor:
    """Compute the paper's loss: cross-entropy over the target and the classes nearest to each pixel.

    num_negatives + 1 classes are searched; the target is dropped from them, or the furthest where it is not
    among them. A lower bound of `exact_cross_entropy`, and equal to it with num_negatives = C - 1.

    Takes rows (P, D), or maps (N, D, h, w) with a target of any size (N, H, W), to which they are upsampled
    bilinearly (not normalized again). By inner products, on the CPU and with numba, logits are upsampled
    instead, a few pixels at a time; elsewhere maps are made into rows first.

    Args:
        embeddings: (P, D) or (N, D, h, w) float.
        class_embeddings: (C, D) float.
        target: (P,) or (N, H, W) int64, 0..C-1 or `ignore_index`.
        num_negatives: K, other classes a pixel is compared with; at most C - 1 are used.
        bias: (C,) float, added to the logits; for inner products only, in the search too.
        temperature: divides the similarities; None as for `exact_cross_entropy`.
        similarity: "distance", "dot" or "cosine", of the search and of the logits.
        ignore_index: target of pixels that take no part.
        work_bytes: size of the work buffer in bytes.

    Returns:
        Scalar, as `exact_cross_entropy`.

    Raises:
        ValueError: as `exact_cross_entropy`, and `num_negatives` below 1.
    """
    class_embeddings = class_matrix(class_embeddings)
    temperature = default_temperature(similarity) if temperature is None else temperature
    options = LossOptions(temperature, similarity, ignore_index, work_bytes)
    check_search_bias(similarity, bias)
    check_class_vectors(len(class_embeddings), embeddings, bias=bias)
    is_map = embeddings.dim() == 4
    (check_maps if is_map else check_rows)(embeddings, class_embeddings, target)
    check_target(target, len(class_embeddings), ignore_index)
    check_num_negatives(num_negatives)
    used = min(num_negatives, len(class_embeddings) - 1)
    of_pixels = _cross_entropy_of_nearest
    if is_map:
        labeled = int((target != ignore_index).sum())
        shapes = embeddings.shape[2:], target.shape, class_embeddings.shape
        compiled = implementation_for(embeddings, class_embeddings) == "compiled"
        if compiled and nearest_of_maps.applies(*shapes, used, options, labeled):
            of_pixels = nearest_of_maps.cross_entropy_of_nearest
        else:
            embeddings, target = _rows_of_labeled(embeddings, target, labeled, ignore_index)
    compute = functools.partial(of_pixels, target=target, num_negatives=used, options=options)
    return keep_gradients(compute, embeddings, class_embeddings, bias)


def _rows_of_labeled(maps: Tensor, target: Tensor, labeled: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Upsample maps to rows (P, D) with targets (P,); on the CPU, if less than half are labeled, of those."""
    size, flat = target.shape[1:], target.flatten()
    if maps.device.type != "cpu" or 2 * labeled >= len(flat):
        return full_resolution_rows(maps, size), flat
    pixels = (flat != ignore_index).nonzero()[:, 0]
    return rows_of_pixels(maps, size, pixels), flat[pixels]


def check_num_negatives(num_negatives: int) -> None:
    """Refuse fewer than one negative."""
    if num_negatives < 1:
        raise ValueError(f"num_negatives is {num_negatives}; allowed are 1 and more")


def _cross_entropy_of_nearest(
    pixel_embeddings: Tensor,
    class_embeddings: Tensor,
    bias: Tensor | None,
    needed: Needed,
    *,
    target: Tensor,
    num_negatives: int,
    options: LossOptions,
) -> LossAndGradients:
    """Compute `knn_cross_entropy` and its gradients.

    Args:
        pixel_embeddings: (P, D).
        class_embeddings: (C, D).
        bias: (C,) added to the logits; or None.
        needed: which gradients are wanted.
        target: (P,) int64, 0..C-1 or the options' `ignore_index`.
        num_negatives: K, at most C - 1.
        options: of the loss.
    """
    classes = class_embeddings.to(compute_dtype(pixel_embeddings, class_embeddings))
    added = None if bias is None else bias.to(classes.dtype)
    search_bias = None if added is None else added * options.temperature
    rows = labeled_rows(target, options.ignore_index)
    count = len(target) if rows is None else len(rows)
    pieces = pieces_of(count, len(classes))
    workers = num_workers(classes.device, pieces, options.work_bytes, classes.nbytes)
    # Half of a worker's part for the search; the other half for about four (p, 1+K, D) tensors.
    share = options.work_bytes // workers // 2
    size = max(1, share // (4 * (num_negatives + 2) * (classes.shape[1] + 4) * classes.element_size()))
    pixel_gradient = torch.zeros_like(pixel_embeddings) if needed.pixels else None
    class_gradients = [torch.zeros_like(classes) for _ in range(workers if needed.classes else 0)]
    bias_gradients = [classes.new_zeros(len(classes)) for _ in range(workers if needed.bias else 0)]
    totals = classes.new_zeros(workers, dtype=torch.float64)

    def work(worker: int, chosen: slice | Tensor) -> None:
        pixels, own = pixel_embeddings[chosen].to(classes.dtype), target[chosen]
        nearest = nearest_classes(
            pixels,
            classes,
            num_negatives + 1,
            bias=search_bias,
            similarity=options.similarity,
            work_bytes=share,
        )
        ids = target_first(nearest, own)  # (p, 1+K)
        logits, directions = _logits_and_directions(pixels, classes[ids], options)
        if added is not None:
            logits = logits + added[ids]
        losses = logits.logsumexp(dim=1) - logits[:, 0]
        totals[worker] += losses.sum(dtype=torch.float64)
        if not needed.any:
            return
        weights = logits.softmax(dim=1)
        weights[:, 0] -= 1
        weights.div_(count * options.temperature)  # (p, 1+K)
        if pixel_gradient is not None:
            gradient = _gradient_of_pixels(weights, directions, classes, ids)
            pixel_gradient[chosen] = gradient.to(pixel_gradient.dtype)
        if class_gradients:
            _add_gradient_of_classes(class_gradients[worker], weights, directions, pixels, ids)
        if bias_gradients:
            bias_gradients[worker].index_add_(0, ids.flatten(), weights.flatten(), alpha=options.temperature)

    with full_precision(pixel_embeddings):
        for_each(list(row_chunks(rows, count, size)), work, workers)
    class_gradient = bias_gradient = None
    if class_gradients:
        class_gradient = torch.stack(class_gradients).sum(dim=0).to(class_embeddings.dtype)
    if bias is not None and bias_gradients:
        bias_gradient = torch.stack(bias_gradients).sum(dim=0).to(bias.dtype)
    loss = (totals.sum() / max(count, 1)).to(classes.dtype)
    return LossAndGradients(loss, pixel_gradient, class_gradient, bias_gradient)


def target_first(nearest: Tensor, target: Tensor) -> Tensor:
    """Turn the K+1 nearest classes into the target and K negatives.

    The target is dropped from the nearest; where it is not among them, the furthest is. (The released code
    writes another class in its place, which makes class 0 its own negative and doubles others.)

    Args:
        nearest: (p, K+1) int64, nearest first.
        target: (p,) int64.

    Returns:
        (p, 1+K) int64, target first, then the negatives from the nearest on.
    """
    dropped = nearest == target[:, None]
    dropped[:, -1] |= ~dropped.any(dim=1)
    negatives = nearest[~dropped].view(len(nearest), nearest.shape[1] - 1)
    return torch.cat([target[:, None], negatives], dim=1)


def _logits_and_directions(
    pixels: Tensor, compared: Tensor, options: LossOptions
) -> tuple[Tensor, Tensor | None]:
    """Return logits (p, 1+K), and for distances the unit vectors (p, 1+K, D) from the classes to the pixels.

    Args:
        pixels: (p, D).
        compared: (p, 1+K, D), the classes of each pixel.
        options: temperature and similarity.
    """
    if options.is_dot:
        return torch.einsum("pd,pkd->pk", pixels, compared) / options.temperature, None
    differences = pixels[:, None] - compared
    distances = torch.linalg.vector_norm(differences, dim=2)
    directions = differences.div_(distances.masked_fill(distances == 0, 1)[:, :, None])
    return -distances / options.temperature, directions


def _gradient_of_pixels(weights: Tensor, directions: Tensor | None, classes: Tensor, ids: Tensor) -> Tensor:
    """Return the (p, D) gradient of the pixels, given the weights (p, 1+K) of the logits' gradients."""
    if directions is None:
        return F.embedding_bag(ids, classes, mode="sum", per_sample_weights=weights)
    return torch.einsum("pk,pkd->pd", -weights, directions)


def _add_gradient_of_classes(
    gradient: Tensor, weights: Tensor, directions: Tensor | None, pixels: Tensor, ids: Tensor
) -> None:
    """Add to the (C, D) gradient of the classes; of products by columns, not all of them at once."""
    if directions is not None:
        gradient.index_add_(0, ids.flatten(), (directions * weights[:, :, None]).flatten(0, 1))
        return
    for own_ids, own_weights in zip(ids.unbind(dim=1), weights.unbind(dim=1), strict=True):
        gradient.index_add_(0, own_ids, pixels * own_weights[:, None])
