"""Define the GPU kernels of the loss and its gradients, and what they share with the search.

The special-function unit is the bottleneck, not the matrix products: with D of 6..64 a pair of pixel and
class costs one exponential (and, for "distance", one reciprocal root) but few multiplications. So each pair
is visited only twice (2·P·C exponentials): for the loss and the pixel gradient, and for the class gradient.

Shared by all kernels:

* Scores are kept in base 2 (`scale` = log2(e) / temperature), so an exponential is one `exp2`.
* `class_terms` (one float per class, padded to whole tiles) is |w|² for distances, and minus the bias times
  the temperature for inner products. Rows past the last class read the last class again, with a term that
  makes it infinitely far: no class mask.
* |e - w|² = |e|² + |w|² - 2 e·w, from which one reciprocal root gives both the distance and its inverse. A
  value below `ROUNDING_SHARE` of |w|² is rounding noise, counts as distance 0, and has gradient 0.
* The squares |e|², |w|² come from memory, not from a reduction in the same program: loads can use the layout
  of the matrix unit, while reduced values would pass through shared memory for every tile.
* A value needed only after the loop is loaded again there, so that it takes no registers during the loop.
* The target's own distance, the one that goes to zero as training succeeds, is formed from the differences
  and kept out of the running sums: 1 - p(target) is then (sum of the others) / (sum of all), without
  cancellation.
* A launch sees fewer than 2^31 rows, so rows are counted in 32 bits; offsets, which are rows times D, in 64.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton reads annotations as types of its own.

import triton
import triton.language as tl

NATURAL_LOG_OF_2 = tl.constexpr(0.6931471805599453)
ROUNDING_SHARE = tl.constexpr(1e-8)


@triton.jit
def load_rows(table, rows, DIM: tl.constexpr, PADDED_DIM: tl.constexpr):
    """Load rows of a contiguous (R, DIM) table as (len(rows), PADDED_DIM), zeros past DIM."""
    dims = tl.arange(0, PADDED_DIM)
    addresses = table + rows.to(tl.int64)[:, None] * DIM + dims[None, :]
    if PADDED_DIM == DIM:
        values = tl.load(addresses)
    else:
        values = tl.load(addresses, mask=dims[None, :] < DIM, other=0.0)
    return values


@triton.jit
def store_rows(table, rows, values, inside, DIM: tl.constexpr, PADDED_DIM: tl.constexpr):
    """Store the rows marked `inside`, as `load_rows` loads them."""
    dims = tl.arange(0, PADDED_DIM)
    addresses = table + rows.to(tl.int64)[:, None] * DIM + dims[None, :]
    tl.store(addresses, values, mask=inside[:, None] & (dims[None, :] < DIM))


@triton.jit
def rounded(values, DROPPED: tl.constexpr):
    """Round fp32 values to the nearest with the last DROPPED bits zero (13: TF32, 16: bf16)."""
    bits = values.to(tl.int32, bitcast=True)
    bits = (bits + (1 << (DROPPED - 1))) & -(1 << DROPPED)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def products(left, right, SPLIT: tl.constexpr):
    """Compute left · rightᵀ of two tiles of rows; with SPLIT, of fp32 rows in three TF32 passes (2^-21)."""
    if SPLIT:
        left_high = rounded(left, 13)
        right_high = rounded(right, 13)
        result = tl.dot(left - left_high, tl.trans(right_high), input_precision="tf32")
        result = tl.dot(left_high, tl.trans(right - right_high), result, input_precision="tf32")
        result = tl.dot(left_high, tl.trans(right_high), result, input_precision="tf32")
    else:
        result = tl.dot(left, tl.trans(right), input_precision="tf32")
    return result


@triton.jit
def as_factors(weights, FACTOR_PARTS: tl.constexpr):
    """Round weights to what FACTOR_PARTS numbers of 8 significant bits can represent together.

    sum(weight · (w - e)) is formed as a product minus e times the plain sum of the weights: were the two not
    rounded alike, the error would grow as 1 / distance.
    """
    return rounded(weights, 8) if FACTOR_PARTS == 2 else rounded(weights, 16)


@triton.jit
def add_weighted(
    total, factors, rows, FACTOR_PARTS: tl.constexpr, ROW_PARTS: tl.constexpr, PART: tl.constexpr
):
    """Compute total + factors · rows in bf16 passes, whose operands the threads already hold in place.

    (TF32 operands would need two shuffles between threads for every pair of pixel and class.)
    """
    if ROW_PARTS == 2:
        row_high = rounded(rows.to(tl.float32), 16)
        row_low = rounded(rows.to(tl.float32) - row_high, 16).to(PART)
        row_high = row_high.to(PART)
    else:
        row_high = rows.to(PART)
    if FACTOR_PARTS == 2:
        factor_high = (factors.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
        total = tl.dot((factors - factor_high).to(PART), row_high, total)
        factor_high = factor_high.to(PART)
    else:
        factor_high = factors.to(PART)
    if ROW_PARTS == 2:
        total = tl.dot(factor_high, row_low, total)
    return tl.dot(factor_high, row_high, total)


@triton.jit(do_not_specialize=["num_pixels", "num_classes", "ignore_index"])
def loss_forward(
    pixel_embeddings,
    pixel_terms,
    class_embeddings,
    class_terms,
    target,
    partial_losses,
    partial_counts,
    log_sums,
    target_weights,
    pixel_gradient,
    num_pixels,
    num_classes,
    scale,
    ignore_index,
    DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    DISTANCE: tl.constexpr,
    WITH_PIXEL_GRADIENT: tl.constexpr,
    WITH_CLASS_GRADIENT: tl.constexpr,
    WORK: tl.constexpr,
    SPLIT: tl.constexpr,
    FACTOR_PARTS: tl.constexpr,
    ROW_PARTS: tl.constexpr,
    PART: tl.constexpr,
):
    """Compare one tile of pixels with all classes: summed loss, gradient, and inputs of the class gradient.

    The online softmax starts at the target's score and runs over the other classes. `log_sums` (base 2, +inf
    where ignored) and `target_weights` (the target's factor in the gradient, 0 where ignored) are for
    `class_backward`.
    """
    tile = tl.program_id(0)
    rows = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = rows < num_pixels
    pixels = load_rows(pixel_embeddings, tl.minimum(rows, num_pixels - 1), DIM, PADDED_DIM).to(WORK)
    label = tl.load(target + rows, mask=inside, other=ignore_index)
    labeled = label != ignore_index
    known = (label >= 0) & (label < num_classes)
    own_class = tl.where(labeled & known, label, -1).to(tl.int32)
    own = load_rows(class_embeddings, tl.maximum(own_class, 0), DIM, PADDED_DIM).to(WORK).to(tl.float32)
    if DISTANCE:
        pixel_term = tl.load(pixel_terms + rows, mask=inside, other=0.0)
        difference = pixels.to(tl.float32) - own
        square = tl.sum(difference * difference, 1)
        own_inverse = tl.where(square > 1e-35, tl.rsqrt(tl.maximum(square, 1e-35)), 0.0)
        own_score = -(square * own_inverse) * scale
    else:
        own_term = tl.load(class_terms + tl.maximum(own_class, 0))
        own_score = (tl.sum(pixels.to(tl.float32) * own, 1) - own_term) * scale

    largest = own_score
    others = tl.zeros((BLOCK_P,), tl.float32)
    weight_sum = tl.zeros((BLOCK_P,), tl.float32)
    weighted_classes = tl.zeros((BLOCK_P, PADDED_DIM), tl.float32)
    # A tile without a labeled pixel (crop padding, large unlabeled regions) visits no class.
    end = tl.where(tl.max(labeled.to(tl.int32), 0) > 0, num_classes, 0)
    for start in range(0, end, BLOCK_C):
        class_ids = start + tl.arange(0, BLOCK_C)
        classes = load_rows(class_embeddings, tl.minimum(class_ids, num_classes - 1), DIM, PADDED_DIM).to(
            WORK
        )
        terms = tl.load(class_terms + class_ids)
        product = products(pixels, classes, SPLIT)
        if DISTANCE:
            squares = (terms[None, :] - 2.0 * product) + pixel_term[:, None]
            squares = tl.maximum(squares, terms[None, :] * ROUNDING_SHARE)
            inverse = tl.rsqrt(squares)
            similarity = -(squares * inverse)
        else:
            similarity = product - terms[None, :]
        similarity = tl.where(class_ids[None, :] == own_class[:, None], float("-inf"), similarity)
        new_largest = tl.maximum(largest, tl.max(similarity, 1) * scale)
        shrink = tl.exp2(largest - new_largest)
        weights = tl.exp2(similarity * scale - new_largest[:, None])
        others = others * shrink + tl.sum(weights, 1)
        if WITH_PIXEL_GRADIENT:
            if DISTANCE:
                weights = as_factors(weights * inverse, FACTOR_PARTS)
                weight_sum = weight_sum * shrink + tl.sum(weights, 1)
            weighted_classes = add_weighted(
                weighted_classes * shrink[:, None], weights, classes, FACTOR_PARTS, ROW_PARTS, PART
            )
        largest = new_largest

    total = others + tl.exp2(own_score - largest)
    log_sum = largest + tl.log2(total)
    own_weight = tl.where(labeled, -others / total, 0.0)
    if DISTANCE:
        own_weight *= own_inverse
    loss = tl.where(labeled, (log_sum - own_score) * NATURAL_LOG_OF_2, 0.0)
    loss = tl.where(labeled & (known == 0), float("nan"), loss)
    tl.store(partial_losses + tile, tl.sum(loss, 0))
    tl.store(partial_counts + tile, tl.sum(labeled.to(tl.int32), 0))
    if WITH_CLASS_GRADIENT:
        tl.store(log_sums + rows, tl.where(labeled, log_sum, float("inf")), mask=inside)
        tl.store(target_weights + rows, own_weight, mask=inside)
    if WITH_PIXEL_GRADIENT:
        pixels = load_rows(pixel_embeddings, tl.minimum(rows, num_pixels - 1), DIM, PADDED_DIM)
        pixels = pixels.to(WORK).to(tl.float32)
        own = load_rows(class_embeddings, tl.maximum(own_class, 0), DIM, PADDED_DIM).to(WORK).to(tl.float32)
        inverse_total = tl.where(labeled, 1.0 / total, 0.0)
        if DISTANCE:
            pull = (weighted_classes - pixels * weight_sum[:, None]) * inverse_total[:, None]
            gradient = pull - own_weight[:, None] * (pixels - own)
        else:
            gradient = weighted_classes * inverse_total[:, None] + own_weight[:, None] * own
        gradient *= scale * NATURAL_LOG_OF_2
        store_rows(pixel_gradient, rows, gradient, inside, DIM, PADDED_DIM)


@triton.jit(do_not_specialize=["num_pixels", "num_classes", "pixels_per_slice"])
def class_backward(
    pixel_embeddings,
    pixel_terms,
    class_embeddings,
    class_terms,
    target,
    log_sums,
    target_weights,
    partial_gradients,
    partial_bias_gradients,
    num_pixels,
    num_classes,
    pixels_per_slice,
    scale,
    DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    DISTANCE: tl.constexpr,
    WITH_BIAS_GRADIENT: tl.constexpr,
    WORK: tl.constexpr,
    SPLIT: tl.constexpr,
    FACTOR_PARTS: tl.constexpr,
    ROW_PARTS: tl.constexpr,
    PART: tl.constexpr,
):
    """Compare one tile of classes with one slice of pixels, and add to the slice's (C, D) partial gradient.

    The gradient of the bias, (C,) of each slice, is the sum of the weights.

    No other program writes those rows, so the sum needs no atomics and its order is always the same.
    """
    class_ids = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    slice_index = tl.program_id(1)
    existing = class_ids < num_classes
    classes = load_rows(class_embeddings, tl.minimum(class_ids, num_classes - 1), DIM, PADDED_DIM).to(WORK)
    terms = tl.load(class_terms + class_ids)

    weight_sum = tl.zeros((BLOCK_C,), tl.float32)
    weighted_pixels = tl.zeros((BLOCK_C, PADDED_DIM), tl.float32)
    begin = slice_index * pixels_per_slice
    end = tl.minimum(begin + pixels_per_slice, num_pixels)
    for start in range(begin, end, BLOCK_P):
        rows = start + tl.arange(0, BLOCK_P)
        inside = rows < end
        pixels = load_rows(pixel_embeddings, tl.minimum(rows, num_pixels - 1), DIM, PADDED_DIM).to(WORK)
        log_sum = tl.load(log_sums + rows, mask=inside, other=float("inf"))
        own_weight = tl.load(target_weights + rows, mask=inside, other=0.0)
        label = tl.load(target + rows, mask=inside, other=-1).to(tl.int32)
        product = products(classes, pixels, SPLIT)
        if DISTANCE:
            pixel_term = tl.load(pixel_terms + rows, mask=inside, other=0.0)
            squares = (pixel_term[None, :] - 2.0 * product) + terms[:, None]
            squares = tl.maximum(squares, terms[:, None] * ROUNDING_SHARE)
            inverse = tl.rsqrt(squares)
            weights = tl.exp2(-(squares * inverse) * scale - log_sum[None, :]) * inverse
        else:
            weights = tl.exp2((product - terms[:, None]) * scale - log_sum[None, :])
        weights = tl.where(class_ids[:, None] == label[None, :], own_weight[None, :], weights)
        if DISTANCE:
            weights = as_factors(weights, FACTOR_PARTS)
        if DISTANCE or WITH_BIAS_GRADIENT:
            weight_sum += tl.sum(weights, 1)
        weighted_pixels = add_weighted(weighted_pixels, weights, pixels, FACTOR_PARTS, ROW_PARTS, PART)

    gradient = weighted_pixels
    if DISTANCE:
        classes = load_rows(class_embeddings, tl.minimum(class_ids, num_classes - 1), DIM, PADDED_DIM)
        gradient -= classes.to(WORK).to(tl.float32) * weight_sum[:, None]
    gradient *= scale * NATURAL_LOG_OF_2
    rows = slice_index * num_classes + class_ids
    earlier_rows = slice_index * num_classes + tl.minimum(class_ids, num_classes - 1)
    earlier = load_rows(partial_gradients, earlier_rows, DIM, PADDED_DIM)
    store_rows(partial_gradients, rows, earlier + gradient, existing, DIM, PADDED_DIM)
    if WITH_BIAS_GRADIENT:
        earlier_sums = tl.load(partial_bias_gradients + rows, mask=existing, other=0.0)
        tl.store(partial_bias_gradients + rows, earlier_sums + weight_sum, mask=existing)


@triton.jit(do_not_specialize=["num_rows"])
def squared_lengths(table, out, num_rows, DIM: tl.constexpr, PADDED_DIM: tl.constexpr, BLOCK: tl.constexpr):
    """Write out[r] = |table[r]|², in fp32."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    values = load_rows(table, tl.minimum(rows, num_rows - 1), DIM, PADDED_DIM).to(tl.float32)
    tl.store(out + rows, tl.sum(values * values, 1), mask=rows < num_rows)


@triton.jit(do_not_specialize=["num_values"])
def scale_in_place(values, factor, num_values, BLOCK: tl.constexpr):
    """Multiply in place by one fp32 number on the device, in fp32 whatever the dtype of `values`."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < num_values
    scaled = tl.load(values + index, mask=inside, other=0.0).to(tl.float32) * tl.load(factor)
    tl.store(values + index, scaled, mask=inside)
