"""Define the search space: one dimension per swept setting, with a kind and values.

`choice` samples one of the values, `uniform` and `loguniform` sample between two bounds, `grid` takes its
values in turn. Every named value is checked against the settings before anything starts.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipeline.config.load import with_overrides
from pipeline.config.schema import Settings
from pipeline.config.unused import used
from pipeline.runtime.errors import UsageError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

KINDS = ("choice", "uniform", "loguniform", "grid")
_FORM = "KEY: {choice: [1, 2]}, {grid: [1, 2]}, {uniform: [low, high]} or {loguniform: [low, high]}"
_MAX_CORNERS = 64
MAX_POINTS = 100_000
"""Of a space whose points are listed."""


@dataclass(frozen=True)
class Dimension:
    """Describe one swept setting.

    Attributes:
        key: dotted, as "model.embedding_dim".
        kind: one of KINDS.
        values: the candidates, or the two bounds of uniform and loguniform.
    """

    key: str
    kind: str
    values: tuple[Any, ...]

    def distribution(self) -> BaseDistribution:
        """Return the Optuna distribution. Two integer bounds give integers only."""
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
        """Count the different values; infinite between two floats."""
        if self.kind in ("choice", "grid"):
            return len(self.values)
        low, high = self.values
        return high - low + 1 if isinstance(low, int) and isinstance(high, int) else math.inf

    def candidates(self) -> Sequence[Any]:
        """List all values of a dimension of finite size."""
        return self.values if self.kind in ("choice", "grid") else range(self.values[0], self.values[1] + 1)

    def __str__(self) -> str:
        return f"{self.key}: {self.kind} {', '.join(str(value) for value in self.values)}"


@dataclass(frozen=True)
class Space:
    """Hold all swept settings, in the order of the settings file.

    Attributes:
        dimensions: one a setting.
        settings: what trials start from, as a tree.
    """

    dimensions: tuple[Dimension, ...]
    settings: Mapping[str, Any]

    @property
    def keys(self) -> list[str]:
        """List the dotted keys."""
        return [dimension.key for dimension in self.dimensions]

    @property
    def drawn(self) -> list[Dimension]:
        """List the dimensions that are sampled; the others are grids."""
        return [dimension for dimension in self.dimensions if dimension.kind != "grid"]

    @property
    def points(self) -> float:
        """Count the points; infinite if a dimension is continuous."""
        return math.prod(dimension.size for dimension in self.dimensions)

    @cached_property
    def size(self) -> float:
        """Count the different trainings, grids included; infinite if a dimension is continuous.

        Points that differ only in settings they do not use count once, in spaces of up to MAX_POINTS points.
        """
        if self.points > MAX_POINTS:
            return self.points
        return len({self.training_key(point) for point in _points(self.dimensions)})

    def training_key(self, values: Mapping[str, Any]) -> str:
        """Return a key of a point's training, the same for all that differ only in unused settings."""
        return json.dumps(used(values, self.settings), sort_keys=True, default=str)

    def drawn_points(self) -> Iterator[dict[str, Any]]:
        """Generate all points of the sampled dimensions, which must be finite."""
        return _points(self.drawn)

    @property
    def grid_size(self) -> int:
        """Count the grid points; 1 without a grid."""
        return math.prod(len(dimension.values) for dimension in self._grids())

    def grid_point(self, number: int) -> dict[str, Any]:
        """Return the grid values of trial `number`; after the last grid point the first comes again."""
        grids = self._grids()
        points = itertools.product(*(dimension.values for dimension in grids))
        point = next(itertools.islice(points, number % self.grid_size, None))
        return dict(zip((dimension.key for dimension in grids), point, strict=True))

    def corners(self) -> Iterator[dict[str, Any]]:
        """Generate the points of each dimension's smallest and largest values (all, if unordered)."""
        ends = [(dimension.key, _ends(dimension)) for dimension in self.dimensions]
        for values in itertools.islice(itertools.product(*(values for _, values in ends)), _MAX_CORNERS):
            yield dict(zip((key for key, _ in ends), values, strict=True))

    def _grids(self) -> list[Dimension]:
        return [dimension for dimension in self.dimensions if dimension.kind == "grid"]


def _points(dimensions: Sequence[Dimension]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*(dimension.candidates() for dimension in dimensions)):
        yield dict(zip((dimension.key for dimension in dimensions), values, strict=True))


def _ends(dimension: Dimension) -> list[Any]:
    values = list(dimension.values)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return [min(values)] if min(values) == max(values) else [min(values), max(values)]
    return values


def read_space(space: Mapping[str, Mapping[str, list[Any]]], settings: Settings) -> Space:
    """Read the space and check each value against the settings.

    Args:
        space: {dotted key: {kind: values}}, as in the settings file.
        settings: the settings that trials start from.

    Raises:
        UsageError: the space is empty, a key or kind is unknown, or the settings do not allow a value.
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
    return Space(dimensions, settings.model_dump(mode="json"))


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
