"""Painted surfaces of the embedded dataset: a pattern mixed from two colors.

Every pattern is a function (rng, height, width, period) -> (height, width) float32 in [0, 1] that says how
much of the second color a pixel has. `period` is the size of a repeated element in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageColor

Pattern = Callable[[np.random.Generator, int, int, float], np.ndarray]


@dataclass(frozen=True)
class Surface:
    """What a class is made of: a pattern over two colors.

    Args:
        pattern: how the two colors mix.
        dark: the color where the pattern is 0, as `#rrggbb`.
        light: the color where the pattern is 1.
        period: size of one element of the pattern in pixels.
    """

    pattern: Pattern
    dark: str
    light: str
    period: float = 8.0

    def paint(self, rng: np.random.Generator, height: int, width: int, scale: float = 1.0) -> np.ndarray:
        """Fill a rectangle with the surface, its colors and period varied a little.

        Returns:
            (height, width, 3) float32, about 0..255 and not clipped.
        """
        period = max(2.0, self.period * scale * rng.uniform(0.85, 1.2))
        share = self.pattern(rng, height, width, period)[..., None]
        dark, light = (np.array(ImageColor.getrgb(name), np.float32) for name in (self.dark, self.light))
        tint = rng.normal(1.0, 0.03, 3).astype(np.float32)  # every instance has its own shade
        mixed: np.ndarray = (dark + (light - dark) * share) * tint
        return mixed


def smooth_noise(
    rng: np.random.Generator, height: int, width: int, cell: float, stretch: float = 1.0
) -> np.ndarray:
    """Random values on a coarse grid, interpolated: blobs of `cell` pixels, `stretch` times as wide.

    Returns:
        (height, width) float32 in [0, 1].
    """
    rows = max(2, round(height / cell) + 1)
    columns = max(2, round(width / (cell * stretch)) + 1)
    grid = Image.fromarray(rng.random((rows, columns), dtype=np.float32))
    return np.clip(np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC)), 0.0, 1.0)


def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    return rows, columns


def _shift(rng: np.random.Generator, period: float) -> tuple[float, float]:
    return float(rng.uniform(0, period)), float(rng.uniform(0, period))


def plain(rng: np.random.Generator, height: int, width: int, period: float) -> np.ndarray:
    """Nearly one color, with soft unevenness."""
    return 0.3 + 0.4 * smooth_noise(rng, height, width, period)


def gradient(rng: np.random.Generator, height: int, width: int, period: float) -> np.ndarray:
    """Blend from the first color at the top to the second at the bottom."""
    slope = np.linspace(0.0, 1.0, height, dtype=np.float32)[:, None]
    return np.clip(slope + 0.15 * (smooth_noise(rng, height, width, period) - 0.5), 0.0, 1.0)


def grain(rng: np.random.Generator, height: int, width: int, period: float) -> np.ndarray:
    """Fine pixel grain on soft blobs, as of sand, snow or asphalt."""
    blobs = smooth_noise(rng, height, width, 3 * period)
    return 0.5 * blobs + 0.5 * rng.random((height, width), dtype=np.float32)


def cloudy(rng: np.random.Generator, height: int, width: int, period: float) -> np.ndarray:
    """Big soft shapes of both colors with ragged edges."""
    noise = 0.65 * smooth_noise(rng, height, width, 2 * period, 2.0)
    noise = noise + 0.35 * smooth_noise(rng, height, width, period / 2, 1.5)
    return np.clip((noise - 0.35) * 3.5, 0.0, 1.0)


def leafy(rng: np.random.Generator, height: int, width: int, period: float) -> np.ndarray:
    """Hard-edged clumps in both colors, as of foliage."""
    noise = 0.5 * smooth_noise(rng, height, width, period) + 0.5 * smooth_noise(
        rng, height, width, period / 3
    )
    return np.clip((noise - 0.4) * 6.0, 0.0, 1.0)


def blades(rng: np.random.Generator, height: int, width: int, period: float) -> np.ndarray:
    """Thin upright streaks, as of grass or fur."""
    return smooth_noise(rng, height, width, period, 0.3)


def streaks(rng: np.random.Generator, height: int, width: int, period: float) -> np.ndarray:
    """Thin level streaks, as of still water or wood grain."""
    return smooth_noise(rng, height, width, period / 3, 6.0)


def waves(rng: np.random.Generator, height: int, width: int, period: float) -> np.ndarray:
    """Draw rows of wave crests."""
    rows, columns = _grid(height, width)
    phase, along = _shift(rng, period)
    bend = np.sin((columns + along) * (2.2 / period)) * period / 5
    return (0.5 + 0.5 * np.sin((rows + phase + bend) * (2 * np.pi / period))) ** 3


def level_stripes(rng: np.random.Generator, height: int, width: int, period: float) -> np.ndarray:
    """Hard horizontal stripes of equal width."""
    rows, columns = _grid(height, width)
    return ((rows + _shift(rng, period)[0] + 0 * columns) % period < period / 2).astype(np.float32)


def upright_stripes(rng: np.random.Generator, height: int, width: int, period: float) -> np.ndarray:
    """Hard vertical stripes of equal width."""
    rows, columns = _grid(height, width)
    return ((columns + _shift(rng, period)[0] + 0 * rows) % period < period / 2).astype(np.float32)


def slanted_stripes(rng: np.random.Generator, height: int, width: int, period: float) -> np.ndarray:
    """Hard stripes at 45 degrees."""
    rows, columns = _grid(height, width)
    return ((rows + columns + _shift(rng, period)[0]) % period < period / 2).astype(np.float32)


def folds(rng: np.random.Generator, height: int, width: int, period: float) -> np.ndarray:
    """Soft upright folds of hanging cloth."""
    rows, columns = _grid(height, width)
    sway = np.sin(rows / height * 3 + _shift(rng, 6)[0]) * period / 6
    return 0.5 + 0.5 * np.sin((columns + sway) * (2 * np.pi / period))


def checks(rng: np.random.Generator, height: int, width: int, period: float) -> np.ndarray:
    """Draw a checkered board."""
    rows, columns = _grid(height, width)
    down, right = _shift(rng, period)
    fields = (rows + down) // (period / 2) + (columns + right) // (period / 2)
    return (fields % 2).astype(np.float32)


def dots(rng: np.random.Generator, height: int, width: int, period: float) -> np.ndarray:
    """Round dots of the second color in a regular array."""
    rows, columns = _grid(height, width)
    down, right = _shift(rng, period)
    offset = ((rows + down) // period % 2) * period / 2
    away = np.hypot((rows + down) % period - period / 2, (columns + right + offset) % period - period / 2)
    return np.clip(period * 0.34 - away + 0.5, 0.0, 1.0)


def tiles(rng: np.random.Generator, height: int, width: int, period: float) -> np.ndarray:
    """Square tiles (first color) with joints (second color)."""
    rows, columns = _grid(height, width)
    down, right = _shift(rng, period)
    joint = ((rows + down) % period < 1.3) | ((columns + right) % period < 1.3)
    return np.where(joint, 1.0, 0.25 * smooth_noise(rng, height, width, period)).astype(np.float32)


def bricks(rng: np.random.Generator, height: int, width: int, period: float) -> np.ndarray:
    """Draw courses of bricks (first color), each shifted by half, with joints (second color)."""
    rows, columns = _grid(height, width)
    down, right = _shift(rng, period)
    course = (rows + down) // (period / 2)
    joint = ((rows + down) % (period / 2) < 1.2) | (
        (columns + right + (course % 2) * period / 2) % period < 1.2
    )
    return np.where(joint, 1.0, 0.3 * smooth_noise(rng, height, width, period / 2)).astype(np.float32)


def planks(rng: np.random.Generator, height: int, width: int, period: float) -> np.ndarray:
    """Level boards with dark seams and grain along them."""
    rows, columns = _grid(height, width)
    down = _shift(rng, period)[0]
    board = ((rows + down) // period).astype(np.int64)
    tone = rng.random(int(board.max()) + 1, dtype=np.float32)[board]
    grained = 0.35 + 0.3 * tone + 0.35 * smooth_noise(rng, height, width, 2.0, 8.0)
    return np.where((rows + down + 0 * columns) % period < 1.2, 0.0, grained).astype(np.float32)


def panels(rng: np.random.Generator, height: int, width: int, period: float) -> np.ndarray:
    """Upright boards with dark seams."""
    return planks(rng, width, height, period).T


def panes(rng: np.random.Generator, height: int, width: int, period: float) -> np.ndarray:
    """Draw a facade: rows of windows (second color), some of them dark."""
    rows, columns = _grid(height, width)
    down, right = _shift(rng, period)
    floor, window = ((rows + down) // period).astype(np.int64), ((columns + right) // period).astype(np.int64)
    lit = rng.random((int(floor.max()) + 1, int(window.max()) + 1), dtype=np.float32)[floor, window]
    inside = ((rows + down) % period > period * 0.4) & ((columns + right) % period > period * 0.4)
    return np.where(inside, 0.55 + 0.45 * lit, 0.1).astype(np.float32)


def cobbles(rng: np.random.Generator, height: int, width: int, period: float) -> np.ndarray:
    """Irregular stones: nearest of scattered points, darker towards their edges."""
    count = max(3, round(height * width / period**2))
    down = rng.uniform(0, height, count).astype(np.float32)
    right = rng.uniform(0, width, count).astype(np.float32)
    tone = rng.random(count, dtype=np.float32)
    rows, columns = _grid(height, width)
    nearest = np.full((height, width), np.inf, np.float32)
    second, value = nearest.copy(), np.zeros((height, width), np.float32)
    for y, x, shade in zip(down, right, tone, strict=True):
        away = (rows - y) ** 2 + (columns - x) ** 2
        closer = away < nearest
        second = np.where(closer, nearest, np.minimum(second, away))
        value = np.where(closer, shade, value)
        nearest = np.minimum(nearest, away)
    edge = np.clip((np.sqrt(second) - np.sqrt(nearest)) / 3.0, 0.0, 1.0)
    return (0.35 + 0.65 * value) * edge
