"""Draw one scene of the embedded dataset: stuff in bands, figures on them, and which pixel is whose.

What a class looks like stands in `figures.json` and what a scene is made of in `scenes.json`, so
this module knows no class by name. A shape is a line of text, in a box from -1 to 1 with y downwards:
`box left top right bottom`, `ellipse x y across down [corners]`, `polygon x y x y ...`, `mirrored x y ...`
(a left half, reflected in the upright axis), `star points inner`, `flower x y radius`, and
`ring x y across down inner_across inner_down`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFilter

from pipeline.data.tiny import textures as tiny_textures
from pipeline.data.tiny.textures import Surface

_FINE = 3
"""Masks are drawn this many times finer than the picture and averaged, so that edges are soft."""


@dataclass(frozen=True)
class Figure:
    """Something with an outline: a thing, or stuff such as a tree or a curtain.

    Args:
        name: the LVIS or COCO-Stuff category name.
        outline: polygons (n, 2) whose union is the figure.
        surface: what it is made of.
        details: (color, polygon) painted on it in order and cut off at the outline.
        size: half the height of its box in pixels, least and most, in a picture 96 pixels high.
        turn: the largest rotation in degrees, either way.
    """

    name: str
    outline: tuple[np.ndarray, ...]
    surface: Surface
    details: tuple[tuple[str, np.ndarray], ...]
    size: tuple[float, float]
    turn: float


@dataclass
class Region:
    """A class instance in a drawing. `polygons` ((n, 2) in pixels) is its whole outline, hidden parts too."""

    name: str
    is_thing: bool
    polygons: list[np.ndarray] = field(default_factory=list)


@dataclass
class Drawing:
    """A finished picture and its truth.

    Args:
        image: (H, W, 3) uint8.
        owner: (H, W) int32, the index in `regions` of what is visible at a pixel, or -1.
        ground: (H, W) int32, likewise for the stuff alone, going on underneath the things.
        regions: in the order painted, back to front.
    """

    image: np.ndarray
    owner: np.ndarray
    ground: np.ndarray
    regions: list[Region]


def polygon(shape: str) -> np.ndarray:
    """Return the corners (n, 2) of a shape written as text."""
    kind, *words = shape.split()
    numbers = [float(word) for word in words]
    if kind == "box":
        left, top, right, bottom = numbers
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    elif kind == "ellipse":
        corners = _around(*numbers[:4], count=int(numbers[4]) if len(numbers) > 4 else 24)
    elif kind == "ring":
        corners = [
            *_around(*numbers[:4], closed=True),
            *reversed(_around(*numbers[:2], *numbers[4:], closed=True)),
        ]
    elif kind == "star":
        angles = [math.pi * (index / numbers[0] - 0.5) for index in range(2 * int(numbers[0]))]
        radii = [numbers[1] if index % 2 else 1.0 for index in range(len(angles))]
        corners = [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]
    elif kind == "flower":
        x, y, radius = numbers
        angles = [2 * math.pi * index / 40 for index in range(40)]
        radii = [radius * (0.8 + 0.2 * math.cos(8 * angle)) for angle in angles]
        corners = [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]
    else:
        corners = list(zip(numbers[::2], numbers[1::2], strict=True))
        if kind == "mirrored":
            corners += [(-x, y) for x, y in reversed(corners)]
    return np.array(corners, np.float64)


def _around(
    x: float, y: float, across: float, down: float, *, count: int = 24, closed: bool = False
) -> list[tuple[float, float]]:
    angles = [2 * math.pi * index / count for index in range(count + closed)]
    return [(x + across * math.cos(angle), y + down * math.sin(angle)) for angle in angles]


def _surface(words: str) -> Surface:
    pattern, dark, light, period = words.split()
    return Surface(getattr(tiny_textures, pattern), dark, light, float(period))


def _read(name: str) -> Any:
    return json.loads(files(__package__).joinpath(name).read_text("utf-8"))


@cache
def figures() -> dict[tuple[bool, str], Figure]:
    """Every figure, by (is it a thing, its category name)."""
    return {
        (kind == "things", entry["name"]): Figure(
            entry["name"],
            tuple(polygon(shape) for shape in entry["outline"]),
            _surface(entry["surface"]),
            tuple(
                (color, polygon(shape))
                for color, shape in (detail.split(" ", 1) for detail in entry.get("details", ()))
            ),
            tuple(entry["size"]),
            entry["turn"],
        )
        for kind, entries in _read("figures.json").items()
        for entry in entries
    }


@cache
def grounds() -> dict[str, Surface]:
    """Read the surfaces that stuff covers in whole bands, by COCO-Stuff category name."""
    return {name: _surface(words) for name, words in _read("scenes.json")["grounds"].items()}


@cache
def scenes() -> list[dict[str, Any]]:
    """Read the kinds of scene: bands from top to bottom, with what may stand, hang or lie in each."""
    found: list[dict[str, Any]] = _read("scenes.json")["scenes"]
    return found


class Canvas:
    """A picture being painted back to front, remembering what each pixel shows."""

    def __init__(self, width: int, height: int, rng: np.random.Generator) -> None:
        self.width, self.height, self.rng = width, height, rng
        self.image = np.zeros((height, width, 3), np.float32)
        self.owner = np.full((height, width), -1, np.int32)
        self.ground = self.owner.copy()
        self.regions: list[Region] = []

    def fill(self, name: str, surface: Surface, top: np.ndarray) -> None:
        """Cover everything from the line `top` (W,) to the bottom edge with stuff of that name."""
        first = int(max(0, math.floor(float(top.min()))))
        painted = surface.paint(self.rng, self.height - first, self.width)
        below = np.arange(first, self.height)[:, None] >= top[None, :]
        self.image[first:] = np.where(below[..., None], painted, self.image[first:])
        for layer in (self.owner, self.ground):
            layer[first:][below] = len(self.regions)
        self.regions.append(Region(name, is_thing=False))

    def place(
        self, figure: Figure, x: float, y: float, half: float, *, is_thing: bool, has_body: bool = True
    ) -> None:
        """Paint a figure with the center of its box at (x, y) and `half` its half height, in pixels.

        Things are shaded, unless they are flat and have no body.
        """
        angle = math.radians(float(self.rng.uniform(-figure.turn, figure.turn)))
        flip = -1.0 if self.rng.random() < 0.5 else 1.0
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        matrix = np.array([[flip], [1.0]]) * turn * half

        def at(points: np.ndarray) -> np.ndarray:
            return np.round(points @ matrix + (x, y), 2)

        polygons = [at(points) for points in figure.outline]
        corners = np.concatenate(polygons)
        left, top = (max(0, math.floor(value)) for value in corners.min(axis=0))
        right = min(self.width, math.ceil(corners[:, 0].max()) + 1)
        bottom = min(self.height, math.ceil(corners[:, 1].max()) + 1)
        if right - left < 3 or bottom - top < 3:
            return
        window = (slice(top, bottom), slice(left, right))
        size = (right - left, bottom - top)
        cover = _coverage(polygons, left, top, size)
        middle = (figure.size[0] + figure.size[1]) / 2
        color = figure.surface.paint(self.rng, size[1], size[0], half / middle)
        for name, points in figure.details:
            share = _coverage([at(points)], left, top, size)[..., None]
            color = color * (1 - share) + np.array(ImageColor.getrgb(name), np.float32) * share
        if is_thing and has_body:  # light from the upper left gives body
            down, along = np.linspace(-1, 1, size[1])[:, None], np.linspace(-1, 1, size[0])[None, :]
            color = color * (1 - 0.12 * (down + along))[..., None]
        self.image[window] = self.image[window] * (1 - cover[..., None]) + color * cover[..., None]
        for layer in (self.owner,) if is_thing else (self.owner, self.ground):
            layer[window][cover > 0.5] = len(self.regions)
        self.regions.append(Region(figure.name, is_thing, polygons))

    def finish(self, *, weather: bool = True) -> Drawing:
        """Add the light of the day and a camera's softness, unless there is no `weather`; and noise."""
        rng = self.rng
        if not weather:
            noise = rng.normal(0, 3, self.image.shape)
            image = np.clip(np.round(self.image + noise), 0, 255).astype(np.uint8)
            return Drawing(image, self.owner, self.ground, self.regions)
        light = rng.uniform(0.82, 1.1) * rng.normal(1.0, 0.03, 3)
        fall = 1 + rng.uniform(-0.12, 0.12) * np.linspace(-1, 1, self.width)[None, :, None]
        lit = np.clip(self.image * light * fall, 0, 255).astype(np.uint8)
        if rng.random() < 0.5:
            soft = Image.fromarray(lit).filter(ImageFilter.GaussianBlur(float(rng.uniform(0.4, 0.9))))
            lit = np.asarray(soft)
        noise = rng.normal(0, rng.uniform(2, 6), lit.shape)
        image = np.clip(np.round(lit + noise), 0, 255).astype(np.uint8)
        return Drawing(image, self.owner, self.ground, self.regions)


def _coverage(polygons: list[np.ndarray], left: int, top: int, size: tuple[int, int]) -> np.ndarray:
    """Share of each pixel of a window that lies in the union of polygons: (height, width) float32."""
    fine = Image.new("L", (size[0] * _FINE, size[1] * _FINE))
    draw = ImageDraw.Draw(fine)
    for points in polygons:
        draw.polygon([(float(x), float(y)) for x, y in (points - (left, top)) * _FINE], fill=255)
    return np.asarray(fine.reduce(_FINE), np.float32) / 255


def _choose(rng: np.random.Generator, weights: dict[Any, float]) -> Any:
    names = list(weights)
    shares = np.cumsum([weights[name] for name in names])
    return names[min(int(np.searchsorted(shares, rng.random() * shares[-1], side="right")), len(names) - 1)]


def draw_scene(rng: np.random.Generator, width: int, height: int, commonness: dict[str, float]) -> Drawing:
    """Draw one picture.

    Args:
        rng: decides everything; the same state gives the same picture.
        width: in pixels, 32 or more.
        height: in pixels, 32 or more.
        commonness: by LVIS name, how readily a thing is chosen where a scene admits it (1 if absent).
    """
    canvas = Canvas(width, height, rng)
    unit = min(width, height) / 96
    bands = scenes()[_choose(rng, {index: scene["share"] for index, scene in enumerate(scenes())})]["bands"]
    edges = [0.0]
    for index, band in enumerate(bands):
        line = edges[-1] + wavy_line(rng, width, band.get("roughness", 0) * unit)
        stuff = _choose(rng, band["stuff"])
        canvas.fill(stuff, grounds()[stuff], line if index else np.zeros(width))
        share = rng.uniform(*band["height"]) if "height" in band else 1.0
        edges.append(min(float(height), edges[-1] + share * height))
        # What stands behind the next band, with its foot on that band's edge, is painted before it.
        behind = bands[index + 1].get("backdrop", {}) if index + 1 < len(bands) else {}
        for where, foot in (("hangs", None), ("lies", None), ("backdrop", edges[-1] + 2 * unit)):
            for name, mean in (behind if where == "backdrop" else band.get(where, {})).items():
                for _ in range(int(rng.poisson(mean))):
                    _place_in(canvas, figures()[False, name], edges[-2:], foot, unit, is_thing=False)
    _place_things(canvas, bands, edges, unit, commonness)
    return canvas.finish()


def _place_things(
    canvas: Canvas, bands: list[dict[str, Any]], edges: list[float], unit: float, commonness: dict[str, float]
) -> None:
    """Three to seven things, the far ones first, so that the near ones overlap them."""
    rng = canvas.rng
    weights = {
        (index, name): weight * commonness.get(name, 1.0)
        for index, band in enumerate(bands)
        for name, weight in band["things"].items()
    }
    placed = []
    for _ in range(int(rng.integers(3, 8))):
        index, name = _choose(rng, weights)
        top, bottom = edges[index], edges[index + 1]
        placed.append((float(rng.uniform(top + 0.1 * (bottom - top), bottom)), index, name))
    for y, index, name in sorted(placed, key=lambda item: item[0]):
        foot = y if bands[index].get("stands") else None
        _place_in(canvas, figures()[True, name], edges[index : index + 2], foot, unit, is_thing=True)


def _place_in(
    canvas: Canvas, figure: Figure, edges: list[float], foot: float | None, unit: float, *, is_thing: bool
) -> None:
    """Put a figure into a band: with its foot at a height, or with its center anywhere in the band."""
    rng = canvas.rng
    half = float(rng.uniform(*figure.size)) * unit
    x = float(rng.uniform(0.04, 0.96)) * canvas.width
    if foot is not None:
        if is_thing:  # nearer means lower and larger
            half *= 0.75 + 0.5 * foot / canvas.height
        y = foot - 0.85 * half
    else:
        room = max(0.0, edges[1] - edges[0] - 2 * half) / 2
        y = (edges[0] + edges[1]) / 2 + float(rng.uniform(-1, 1)) * room
    canvas.place(figure, x, y, half, is_thing=is_thing)


def wavy_line(rng: np.random.Generator, width: int, roughness: float) -> np.ndarray:
    """Draw a gently waving line (W,) around 0 that leaves it by at most `roughness` pixels."""
    along = np.arange(width) / width
    phase = rng.uniform(0, 2 * math.pi, 2)
    return roughness * (0.7 * np.sin(5 * along + phase[0]) + 0.3 * np.sin(17 * along + phase[1]))
