"""Search the nearest classes on the GPU: keep the best class, or a short list, of each pixel in registers.

Only the order matters. "distance" compares |w|² - 2 e·w (the pixel's own |e|² is the same for all classes),
"cosine" -e·w; smaller is nearer. `class_terms` is |w|² or 0, and infinite past the last class.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton reads annotations as types of its own.

import triton
import triton.language as tl

from .loss_kernels import load_rows, products


@triton.jit
def search_keys(
    pixels,
    class_embeddings,
    class_terms,
    start,
    num_classes,
    factor,
    DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_C: tl.constexpr,
    WORK: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Compute (BLOCK_P, BLOCK_C) values to minimize, of the classes from `start` on; NaN becomes infinite."""
    class_ids = start + tl.arange(0, BLOCK_C)
    classes = load_rows(class_embeddings, tl.minimum(class_ids, num_classes - 1), DIM, PADDED_DIM).to(WORK)
    terms = tl.load(class_terms + class_ids)
    product = products(pixels, classes, SPLIT)
    values = terms[None, :] - factor * product
    return tl.where(values == values, values, float("inf"))


@triton.jit(do_not_specialize=["num_pixels", "num_classes"])
def nearest_one(
    pixel_embeddings,
    class_embeddings,
    class_terms,
    found,
    num_pixels,
    num_classes,
    factor,
    DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    WORK: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Find the nearest class of each pixel of a tile, the lower id among equals.

    Each column of the tile keeps its own best over all classes; the columns are compared once, at the end.
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = rows < num_pixels
    pixels = load_rows(pixel_embeddings, tl.minimum(rows, num_pixels - 1), DIM, PADDED_DIM).to(WORK)
    best = tl.full((BLOCK_P, BLOCK_C), float("inf"), tl.float32)
    best_start = tl.full((BLOCK_P, BLOCK_C), 0, tl.int32)
    for start in range(0, num_classes, BLOCK_C):
        values = search_keys(
            pixels, class_embeddings, class_terms, start, num_classes, factor,
            DIM, PADDED_DIM, BLOCK_C, WORK, SPLIT,
        )  # fmt: skip
        better = values < best
        best = tl.where(better, values, best)
        best_start = tl.where(better, start, best_start)
    ids = best_start + tl.arange(0, BLOCK_C)[None, :]
    least = tl.min(best, 1)
    nearest = tl.min(tl.where(best == least[:, None], ids, 2147483647), 1)
    tl.store(found + rows, nearest.to(tl.int64), mask=inside)


@triton.jit(do_not_specialize=["num_pixels", "num_classes", "wanted"])
def nearest_many(
    pixel_embeddings,
    class_embeddings,
    class_terms,
    found,
    num_pixels,
    num_classes,
    wanted,
    factor,
    DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SLOTS: tl.constexpr,
    WORK: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Find the `wanted` nearest classes of each pixel of a tile, nearest first, the lower id among equals.

    Each pixel has `wanted` slots in no order. While a tile still has a class that beats the worst slot of its
    pixel, each pixel replaces its worst slot by its best remaining class. Slots fill in the first tiles;
    after that most tiles cost the comparison only.
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = rows < num_pixels
    pixels = load_rows(pixel_embeddings, tl.minimum(rows, num_pixels - 1), DIM, PADDED_DIM).to(WORK)
    columns = tl.arange(0, BLOCK_C)[None, :]
    slots = tl.arange(0, SLOTS)[None, :]
    usable = (slots < wanted) & inside[:, None]
    # An empty slot is infinitely far, with its own number as id: even a pixel of NaN gets ids that exist.
    slot_values = tl.where(usable, float("inf"), float("-inf"))
    slot_ids = tl.zeros((BLOCK_P, SLOTS), tl.int32) + slots
    worst = tl.max(slot_values, 1)
    for start in range(0, num_classes, BLOCK_C):
        values = search_keys(
            pixels, class_embeddings, class_terms, start, num_classes, factor,
            DIM, PADDED_DIM, BLOCK_C, WORK, SPLIT,
        )  # fmt: skip
        while tl.max(tl.max((values < worst[:, None]).to(tl.int32), 1), 0) > 0:
            least = tl.min(values, 1)
            position = tl.min(tl.where(values == least[:, None], columns, BLOCK_C), 1)
            is_worst = slot_values == worst[:, None]
            leaving = tl.max(tl.where(is_worst, slot_ids, -1), 1)
            replace = is_worst & (slot_ids == leaving[:, None]) & (least < worst)[:, None]
            slot_values = tl.where(replace, least[:, None], slot_values)
            slot_ids = tl.where(replace, (start + position)[:, None], slot_ids)
            worst = tl.max(slot_values, 1)
            values = tl.where(columns == position[:, None], float("inf"), values)

    remaining = usable
    for rank in range(wanted):
        left = tl.where(remaining, slot_values, float("inf"))
        least = tl.min(left, 1)
        nearest = tl.min(tl.where(remaining & (left == least[:, None]), slot_ids, 2147483647), 1)
        remaining = remaining & ((slot_ids != nearest[:, None]) | (slot_values != least[:, None]))
        tl.store(found + rows * wanted + rank, nearest.to(tl.int64), mask=inside)
