"""Upsample a band of full-resolution rows bilinearly, and apply the exact transpose, without atomics.

The arithmetic is that of `F.interpolate(mode="bilinear", align_corners=False)` to a given size: row Y lies at
max((Y + 0.5)·h/H - 0.5, 0) among the low-resolution rows, in fp32, and is interpolated linearly from the two
around it. Maps are channels-last, so that one neighbor is one contiguous row of D.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton reads annotations as types of its own.

import triton
import triton.language as tl


@triton.jit
def neighbors(position, ratio, size):
    """Find the two source indices of an output index, and the weight of the second."""
    source = tl.maximum((position.to(tl.float32) + 0.5) * ratio - 0.5, 0.0)
    first = tl.minimum(source.to(tl.int32), size - 1)
    second = tl.minimum(first + 1, size - 1)
    return first, second, source - first.to(tl.float32)


@triton.jit
def weight_of(position, cell, ratio, size):
    """Compute the weight of the source index `cell` in an output index (0 when it is not a neighbor)."""
    first, second, weight = neighbors(position, ratio, size)
    return tl.where(first == cell, 1.0 - weight, 0.0) + tl.where(second == cell, weight, 0.0)


@triton.jit(do_not_specialize=["first_row", "num_pixels"])
def upsample_band(
    maps,
    band,
    first_row,
    num_pixels,
    height,
    width,
    full_height,
    full_width,
    row_ratio,
    column_ratio,
    DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Interpolate a band (B, D) of full-resolution pixels from maps (N, h, w, D); `first_row` is n·H + Y."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < num_pixels
    row = first_row + index // full_width
    image = (row // full_height).to(tl.int64)
    top, bottom, down = neighbors(row % full_height, row_ratio, height)
    left, right, across = neighbors(index % full_width, column_ratio, width)
    dims = tl.arange(0, PADDED_DIM)
    mask = inside[:, None] & (dims[None, :] < DIM)
    upper = ((image * height + top) * width)[:, None]
    lower = ((image * height + bottom) * width)[:, None]
    upper_left = tl.load(maps + (upper + left[:, None]) * DIM + dims[None, :], mask=mask, other=0.0)
    upper_right = tl.load(maps + (upper + right[:, None]) * DIM + dims[None, :], mask=mask, other=0.0)
    lower_left = tl.load(maps + (lower + left[:, None]) * DIM + dims[None, :], mask=mask, other=0.0)
    lower_right = tl.load(maps + (lower + right[:, None]) * DIM + dims[None, :], mask=mask, other=0.0)
    across = across[:, None]
    above = (1.0 - across) * upper_left.to(tl.float32) + across * upper_right.to(tl.float32)
    below = (1.0 - across) * lower_left.to(tl.float32) + across * lower_right.to(tl.float32)
    mixed = (1.0 - down)[:, None] * above + down[:, None] * below
    tl.store(band + index.to(tl.int64)[:, None] * DIM + dims[None, :], mixed, mask=mask)


@triton.jit(do_not_specialize=["first_row", "end_row", "first_cell_row", "footprint"])
def add_band_gradient(
    band_gradient,
    map_gradient,
    first_row,
    end_row,
    first_cell_row,
    height,
    width,
    full_height,
    full_width,
    row_ratio,
    column_ratio,
    footprint,
    DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the gradients of the band's full-resolution pixels to the low-resolution pixels, weighted.

    One program owns BLOCK neighboring low-resolution pixels of one row; `footprint` bounds the
    full-resolution columns that one of them reaches. Bands run one after another, so no other program writes
    these rows at the same time.
    """
    cell_row = first_cell_row + tl.program_id(0)
    image = cell_row // height
    cell_y = cell_row % height
    cell_x = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    dims = tl.arange(0, PADDED_DIM)
    inside = (cell_x < width)[:, None] & (dims[None, :] < DIM)
    total = tl.zeros((BLOCK, PADDED_DIM), tl.float32)

    # One row or column more on either side than the exact footprint: wrong ones have weight 0.
    top = tl.maximum(((cell_y.to(tl.float32) - 0.5) / row_ratio - 0.5).to(tl.int32) - 1, 0)
    bottom = tl.minimum(((cell_y.to(tl.float32) + 1.5) / row_ratio - 0.5).to(tl.int32) + 3, full_height)
    begin = tl.maximum(top, first_row - image * full_height)
    end = tl.minimum(bottom, end_row - image * full_height)
    left = tl.maximum(((cell_x.to(tl.float32) - 0.5) / column_ratio - 0.5).to(tl.int32) - 1, 0)
    for step in range(footprint):
        column = left + step
        column_weight = weight_of(column, cell_x, column_ratio, width)
        mask = inside & (column_weight != 0.0)[:, None] & (column < full_width)[:, None]
        for below in range(end - begin):
            row = begin + below
            weight = column_weight * weight_of(row, cell_y, row_ratio, height)
            place = ((image * full_height + row - first_row).to(tl.int64) * full_width + column) * DIM
            values = tl.load(band_gradient + place[:, None] + dims[None, :], mask=mask, other=0.0)
            total += values * weight[:, None]

    place = (cell_row.to(tl.int64) * width + cell_x)[:, None] * DIM + dims[None, :]
    earlier = tl.load(map_gradient + place, mask=inside, other=0.0)
    tl.store(map_gradient + place, earlier + total, mask=inside)
