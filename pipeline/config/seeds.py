"""Name the trainings that repeat a variant with another seed.

`softmax-seed-1` is `softmax` with train.seed 1. Such a name stands wherever a variant's does; its stages are
those that the section `seeds` asks DVC for. `softmax-seeds` names what is said of all of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from pydantic import Field, field_validator

from pipeline.config.section import Section, Seed

_REPEAT = re.compile(r"(.+)-seed-(0|[1-9]\d*)")


class SeedSettings(Section):
    """Trainings beside those of the variants, which differ in the seed alone.

    Two lists, and not a list of each variant, since DVC makes stages of what it finds in params.yaml, and
    another seed must not be another variant, which would be trained again.
    """

    variants: list[str] = Field(
        default_factory=list, description="names of the variants that are trained again with other seeds"
    )
    values: list[Seed] = Field([1, 2], description="their train.seed, besides the one of the variant itself")

    @field_validator("variants", "values")
    @classmethod
    def _each_once(cls, found: list[object]) -> list[object]:
        if len(set(found)) < len(found):
            raise ValueError("each one once: a training repeated with its own seed is the same training")
        return found


def repeat_name(variant: str, seed: int) -> str:
    """Return the name of a variant's training with another seed."""
    return f"{variant}-seed-{seed}"


def repeat_of(name: str) -> tuple[str, int] | None:
    """Return the variant and the seed that a name stands for; None for the name of a variant itself."""
    found = _REPEAT.fullmatch(name)
    return None if found is None else (found[1], int(found[2]))


def is_reserved(name: str, variants: Collection[str]) -> bool:
    """Tell whether a name stands for seeds of one of the variants, so that none may be called so."""
    of_all = name.removesuffix("-seeds")
    repeat = repeat_of(name)
    return (of_all != name and of_all in variants) or (repeat is not None and repeat[0] in variants)
