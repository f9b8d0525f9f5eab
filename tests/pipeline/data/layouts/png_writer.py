"""Write PNG files bit by bit after the standard, for tests of how they are read."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

GRAY, RGB, PALETTE, GRAY_ALPHA = 0, 2, 3, 4
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row and column, step of rows and columns of the seven interlaced passes."""


def write_png(
    path: Path,
    samples: np.ndarray,
    color_type: int,
    bits: int,
    *,
    palette: np.ndarray | None = None,
    interlaced: bool = False,
    transparent: bytes | None = None,
    behind: bytes = b"",
) -> None:
    """Write (H, W) or (H, W, channels) samples; `behind` goes between the pixels and the end."""
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, int(interlaced))
    passes = PASSES if interlaced else ((0, 0, 1, 1),)
    parts = [samples[row::down, column::right] for row, column, down, right in passes]
    lines = [b"\0" + _packed(line, bits) for part in parts if part.size for line in part]
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    if palette is not None:
        content += chunk(b"PLTE", palette.astype(np.uint8).tobytes())
    if transparent is not None:
        content += chunk(b"tRNS", transparent)
    content += chunk(b"IDAT", zlib.compress(b"".join(lines))) + behind + chunk(b"IEND", b"")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _packed(line: np.ndarray, bits: int) -> bytes:
    flat = line.ravel()
    if bits == 16:
        return flat.astype(">u2").tobytes()
    digits = (flat[:, None].astype(np.uint8) >> np.arange(bits)[::-1]) & 1
    return np.packbits(digits.ravel()).tobytes()
