"""What a sweep varies: dimensions by dotted key, each with a kind and values, checked against the settings.

`choice` draws one of the values, `uniform` and `loguniform` draw between two bounds, `grid` goes through its
values in turn. Whatever the space can propose is tried on the settings before anything is started, so that a
mistake in it ends like any other wrong setting.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.config.load import with_overrides
from pipeline.config.schema import Settings
from pipeline.runtime.errors import UsageError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

KINDS = ("choice", "uniform", "loguniform", "grid")
_FORM = "KEY: {choice: [1, 2]}, {grid: [1, 2]}, {uniform: [low, high]} or {loguniform: [low, high]}"
_MOST_CORNERS = 64


@dataclass(frozen=True)
class Dimension:
    """One swept setting.

    Attributes:
        key: dotted, as "model.embedding_dim".
        kind: one of KINDS.
        values: the candidates, or the two bounds of uniform and loguniform.
    """

    key: str
    kind: str
    values: tuple[Any, ...]

    def distribution(self) -> BaseDistribution:
        """Optuna's view of the dimension; between two whole numbers only whole numbers are drawn."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        if self.kind in ("choice", "grid"):
            return CategoricalDistribution(self.values)
        low, high = self.values
        log = self.kind == "loguniform"
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log)
        return FloatDistribution(low, high, log=log)

    @property
    def size(self) -> float:
        """Number of different values; infinite between two fractions."""
        if self.kind in ("choice", "grid"):
            return len(self.values)
        low, high = self.values
        return high - low + 1 if isinstance(low, int) and isinstance(high, int) else math.inf

    def candidates(self) -> Sequence[Any]:
        """All values of a dimension of finite size."""
        return self.values if self.kind in ("choice", "grid") else range(self.values[0], self.values[1] + 1)

    def __str__(self) -> str:
        return f"{self.key}: {self.kind} {', '.join(str(value) for value in self.values)}"


@dataclass(frozen=True)
class Space:
    """All swept settings, in the order of the settings file."""

    dimensions: tuple[Dimension, ...]

    @property
    def keys(self) -> list[str]:
        """Dotted keys."""
        return [dimension.key for dimension in self.dimensions]

    @property
    def drawn(self) -> list[Dimension]:
        """The dimensions that are drawn; the others are grids."""
        return [dimension for dimension in self.dimensions if dimension.kind != "grid"]

    @property
    def size(self) -> float:
        """Number of different points, grids included; infinite where a dimension is continuous."""
        return math.prod(dimension.size for dimension in self.dimensions)

    def drawn_points(self) -> Iterator[dict[str, Any]]:
        """All points of the drawn dimensions, if they are finitely many."""
        drawn = self.drawn
        for values in itertools.product(*(dimension.candidates() for dimension in drawn)):
            yield dict(zip((dimension.key for dimension in drawn), values, strict=True))

    @property
    def grid_size(self) -> int:
        """Number of grid points; 1 without a grid."""
        return math.prod(len(dimension.values) for dimension in self._grids())

    def grid_point(self, number: int) -> dict[str, Any]:
        """Values of the grid dimensions for trial `number`; the points come in turn, again and again."""
        grids = self._grids()
        points = itertools.product(*(dimension.values for dimension in grids))
        point = next(itertools.islice(points, number % self.grid_size, None))
        return dict(zip((dimension.key for dimension in grids), point, strict=True))

    def corners(self) -> Iterator[dict[str, Any]]:
        """Points made of each dimension's smallest and largest values (of all, where they have no order)."""
        ends = [(dimension.key, _ends(dimension)) for dimension in self.dimensions]
        for values in itertools.islice(itertools.product(*(values for _, values in ends)), _MOST_CORNERS):
            yield dict(zip((key for key, _ in ends), values, strict=True))

    def _grids(self) -> list[Dimension]:
        return [dimension for dimension in self.dimensions if dimension.kind == "grid"]


def _ends(dimension: Dimension) -> list[Any]:
    values = list(dimension.values)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return [min(values)] if min(values) == max(values) else [min(values), max(values)]
    return values


def read_space(space: Mapping[str, Mapping[str, list[Any]]], settings: Settings) -> Space:
    """Checks the space, value by value, against the settings.

    Args:
        space: {dotted key: {kind: values}}, as in the settings file.
        settings: what the trials start from.

    Raises:
        UsageError: an empty space, an unknown key or kind, values the settings do not allow.
    """
    if not space:
        raise UsageError(
            "nothing to sweep",
            where=f"{settings.file}: tune.space",
            found="an empty space",
            allowed=_FORM,
            hint="name at least one setting and its values",
        )
    dimensions = tuple(_dimension(key, ranges, settings) for key, ranges in space.items())
    for dimension in dimensions:
        for value in dimension.values:
            with_overrides(settings, {dimension.key: value}, where=f"{settings.file}: tune.space")
    return Space(dimensions)


def _dimension(key: str, ranges: Mapping[str, list[Any]], settings: Settings) -> Dimension:
    where = f"{settings.file}: tune.space.{key}"
    if len(ranges) != 1 or next(iter(ranges)) not in KINDS:
        raise UsageError("a swept setting needs one kind", where=where, found=dict(ranges), allowed=_FORM)
    kind, values = next(iter(ranges.items()))
    if not values:
        raise UsageError("nothing to choose from", where=where, found="no values", allowed=_FORM)
    if kind in ("uniform", "loguniform"):
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        if (
            len(values) != 2
            or not numbers
            or values[0] >= values[1]
            or (kind == "loguniform" and values[0] <= 0)
        ):
            raise UsageError(
                "not a range",
                where=where,
                found=values,
                allowed="[low, high], two numbers, low below high"
                + (" and above 0" if kind != "uniform" else ""),
            )
    elif len(set(map(repr, values))) != len(values):
        raise UsageError("a value is named twice", where=where, found=values, allowed="different values")
    return Dimension(key, kind, tuple(values))
