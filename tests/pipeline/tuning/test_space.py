"""The search space: what it may say, and that a mistake in it is found before anything starts."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from typer.testing import CliRunner

from pipeline.cli.tune import app
from pipeline.config.load import load_settings
from pipeline.config.schema import Settings
from pipeline.runtime.errors import UsageError
from pipeline.tuning.space import read_space


@pytest.fixture
def settings(project: Path) -> Settings:
    return load_settings(variant="essnet")


def test_each_kind_has_its_distribution(settings: Settings) -> None:
    space = read_space(
        {
            "loss.name": {"choice": ["knn", "sampled"]},
            "train.learning_rate": {"loguniform": [0.001, 0.1]},
            "loss.temperature": {"uniform": [0.05, 0.2]},
            "loss.num_negatives": {"loguniform": [1, 32]},
        },
        settings,
    )
    kinds = [dimension.distribution() for dimension in space.dimensions]
    assert kinds == [
        CategoricalDistribution(("knn", "sampled")),
        FloatDistribution(0.001, 0.1, log=True),
        FloatDistribution(0.05, 0.2),
        IntDistribution(1, 32, log=True),
    ]


def test_a_grid_visits_every_point_in_turn_and_then_again(settings: Settings) -> None:
    space = read_space(
        {"model.embedding_dim": {"grid": [4, 8]}, "loss.num_negatives": {"grid": [1, 3, 7]}}, settings
    )
    points = [tuple(space.grid_point(number).values()) for number in range(12)]
    assert space.grid_size == space.size == 6
    assert set(points[:6]) == {(dim, count) for dim in (4, 8) for count in (1, 3, 7)}
    assert points[6:] == points[:6]
    assert space.drawn == []


def test_points_that_differ_only_in_settings_they_do_not_use_count_once(settings: Settings) -> None:
    negatives = {"loss.num_negatives": {"choice": [1, 3, 7]}}
    space = read_space({"loss.name": {"choice": ["exact", "knn"]}, **negatives}, settings)
    assert (space.points, space.size) == (6, 4)
    assert read_space(negatives, settings).size == 3
    assert read_space(negatives, load_settings(variant="exact")).size == 1
    endless = {"loss.name": {"choice": ["exact"]}, "loss.temperature": {"uniform": [0.1, 0.2]}}
    assert read_space(endless, settings).size == math.inf


def test_corners_are_the_smallest_and_largest_values(settings: Settings) -> None:
    space = read_space(
        {"model.embedding_dim": {"choice": [8, 4, 16]}, "loss.name": {"choice": ["knn", "sampled"]}}, settings
    )
    corners = [tuple(corner.values()) for corner in space.corners()]
    assert corners == [(4, "knn"), (4, "sampled"), (16, "knn"), (16, "sampled")]


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({}, "nothing to sweep"),
        ({"loss.num_negative": {"choice": [1]}}, "did you mean num_negatives"),
        ({"los.num_negatives": {"choice": [1]}}, "cannot override this key"),
        ({"variant": {"choice": ["exact"]}}, "cannot override this key"),
        ({"model.embedding_dim": {"choise": [4]}}, "needs one kind"),
        ({"model.embedding_dim": {"choice": [4], "grid": [4]}}, "needs one kind"),
        ({"model.embedding_dim": {"choice": []}}, "nothing to choose from"),
        ({"model.embedding_dim": {"choice": [4, 0]}}, "model.embedding_dim"),
        ({"model.embedding_dim": {"choice": ["four"]}}, "model.embedding_dim"),
        ({"model.embedding_dim": {"grid": [4, 4]}}, "named twice"),
        ({"loss.temperature": {"uniform": [0.2, 0.1]}}, "not a range"),
        ({"loss.temperature": {"uniform": [0.1]}}, "not a range"),
        ({"loss.temperature": {"loguniform": [0.0, 0.1]}}, "not a range"),
        ({"loss.temperature": {"uniform": ["a", "b"]}}, "not a range"),
        ({"loss.temperature": {"uniform": [-1.0, 0.1]}}, "loss.temperature"),
    ],
)
def test_a_mistake_is_one_error_that_names_it_and_the_file_it_was_read_from(
    project: Path, space: dict[str, Any], told: str
) -> None:
    other = shutil.copy(project / "params.yaml", project / "other.yaml")
    with pytest.raises(UsageError) as error:
        read_space(space, load_settings(other, variant="essnet"))
    assert told in str(error.value)
    assert str(error.value.where).startswith(f"{project / 'other.yaml'}: ")


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"space": {"model.embedding_dim": {"choise": [4]}}}, "needs one kind"),
        ({"fixed": {"model.embedding_dims": 4}}, "did you mean embedding_dim"),
        ({"fixed": {"tune.seed": 4}}, "cannot override this key"),
        ({"fixed": {"model.embedding_dim": 4}}, "both fixed and swept"),
    ],
)
def test_the_command_names_the_file_that_it_was_given(
    project: Path, section: dict[str, Any], told: str
) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["tune"] = {"space": {"model.embedding_dim": {"choice": [4, 8]}}} | section
    (project / "other.yaml").write_text(yaml.safe_dump(params))
    error = CliRunner().invoke(app, ["--dry-run", "--params", "other.yaml"]).exception
    assert isinstance(error, UsageError)
    assert told in str(error)
    assert str(error.where).startswith(f"{project / 'other.yaml'}: ")
