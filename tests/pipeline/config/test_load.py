"""params.yaml becomes checked settings, or one clear error."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.load import load_settings
from pipeline.config.schema import Settings
from pipeline.runtime.errors import UsageError
from tests.paths import ROOT

PROJECT = ROOT


def write(folder: Path, **sections: object) -> Path:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump({"data": {"root": "data/tiny"}, **sections}))
    return path


def test_the_projects_own_params_are_valid_for_every_variant() -> None:
    plain = load_settings(PROJECT / "params.yaml")
    assert set(plain.variants) >= {"embedding", "essnet", "softmax", "dense"}
    for variant in plain.variants:
        assert load_settings(PROJECT / "params.yaml", variant=variant).variant == variant


def test_a_variant_overrides_only_what_it_names(tmp_path: Path) -> None:
    path = write(tmp_path, loss={"num_negatives": 5}, variants={"a": {"loss": {"name": "knn"}}, "b": {}})
    assert load_settings(path).loss.name == "exact"
    changed = load_settings(path, variant="a")
    assert (changed.loss.name, changed.loss.num_negatives) == ("knn", 5)
    assert load_settings(path, variant="b").loss == load_settings(path).loss


def test_overrides_come_last_and_leave_the_file_alone(tmp_path: Path) -> None:
    path = write(tmp_path, variants={"a": {"loss": {"num_negatives": 3}}})
    before = path.read_bytes()
    assert load_settings(path, variant="a", overrides={"loss.num_negatives": 9}).loss.num_negatives == 9
    assert path.read_bytes() == before


def test_paths_are_relative_to_the_file_and_come_out_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, model={"weights": "w/a.safetensors"})
    monkeypatch.chdir("/")
    settings = load_settings(path)
    assert settings.data.root == tmp_path / "data" / "tiny"
    assert settings.model.weights == tmp_path / "w" / "a.safetensors"


def test_settings_are_frozen(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path))
    with pytest.raises(ValueError, match="frozen"):
        settings.loss.temperature = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("sections", "key", "said"),
    [
        ({"loss": {"temprature": 1}}, "loss.temprature", "did you mean temperature"),
        ({"los": {}}, "los", "did you mean loss"),
        ({"project": "/"}, "project", "unknown setting"),
        ({"file": "/"}, "file", "unknown setting"),
        ({"loss": {"name": "exakt"}}, "loss.name", "'exact', 'knn', 'sampled' or 'dense'"),
        ({"loss": {"temperature": 0}}, "loss.temperature", "greater than 0"),
        ({"loss": {"temperature": "hot"}}, "loss.temperature", "valid number"),
        ({"loss": {"temperature": float("nan")}}, "loss.temperature", "finite number"),
        ({"train": {"steps": 1.5}}, "train.steps", "integer"),
        ({"train": {"steps": True}}, "train.steps", "integer"),
        ({"train": {"scale_min": 3.0}}, "train", "must not exceed scale_max"),
        ({"model": {"pretrained": True, "weights": "a"}}, "model", "exclude each other"),
        ({"tune": {"folder": "s3://bucket/sweeps"}}, "tune.folder", "must be a path, not a URL"),
        ({"model": {"output_stride": 12}}, "model.output_stride", "8, 16 or 32"),
        ({"data": {"root": "x", "holdout_fraction": 1.0}}, "data.holdout_fraction", "less than 1"),
        ({"data": {}}, "data.root", "missing"),
        ({"runtime": {"device": "gpu"}}, "runtime.device", "pattern"),
        ({"variants": {"a": {"loss": 3}}}, "variants.a", "dictionary"),
    ],
)
def test_a_mistake_is_named_with_its_key_and_what_is_allowed(
    tmp_path: Path, sections: dict, key: str, said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        load_settings(write(tmp_path, **sections))
    assert caught.value.exit_code == 2
    assert caught.value.where is not None
    assert caught.value.where.endswith(f"params.yaml: {key}") or f": {key}." in caught.value.where
    assert said in str(caught.value)


def test_a_mistake_in_any_variant_surfaces_when_another_is_loaded(tmp_path: Path) -> None:
    path = write(tmp_path, variants={"good": {}, "bad": {"loss": {"name": "exakt"}}})
    with pytest.raises(UsageError, match="exakt"):
        load_settings(path, variant="good")


@pytest.mark.parametrize("text", ["a: [", "just words", ""])
def test_a_file_that_is_not_a_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UsageError):
        load_settings(tmp_path / "params.yaml")


def test_missing_file_and_unknown_variant_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no settings file"):
        load_settings(tmp_path / "params.yaml")
    with pytest.raises(UsageError, match=r"unknown variant 'x'(.|\n)*a, b"):
        load_settings(write(tmp_path, variants={"a": {}, "b": {}}), variant="x")
    with pytest.raises(UsageError, match="cannot override"):
        load_settings(write(tmp_path), overrides={"steps": 3})


@given(
    key=st.text(min_size=1, max_size=12), value=st.one_of(st.none(), st.booleans(), st.integers(), st.text())
)
def test_whatever_is_written_gives_settings_or_a_usage_problem(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: object
) -> None:
    path = write(tmp_path_factory.mktemp("params"), train={key: value})
    with contextlib.suppress(UsageError):
        assert isinstance(load_settings(path), Settings)


def settings_of(folder: Path, text: str) -> Settings:
    (folder / "params.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    return load_settings(folder / "params.yaml")


def test_numbers_and_words_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    from dvc.utils.serialize import load_yaml

    numbers = ["1e-3", "1E-3", "1.e-3", ".001", "1.0e-3", "0.001"]
    for number in numbers:
        text = f"data: {{root: x}}\ntrain: {{learning_rate: {number}}}\n"
        settings = settings_of(tmp_path, text)
        assert settings.train.learning_rate == 0.001
        assert load_yaml(str(tmp_path / "params.yaml"))["train"]["learning_rate"] == 0.001
    with pytest.raises(UsageError, match="true or false"):  # a word for DVC too
        settings_of(tmp_path, "data: {root: x}\ntrain: {compile: yes}\n")


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    assert settings_of(tmp_path, "\ufeffdata: {root: x}\n").data.root == tmp_path / "x"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: {root: x}\ndata: {root: y}", "duplicate key"),
        ("data: {root: x}\nvariants: {2024: {}}", 'in quotes: "2024"'),
        ("data: {root: x, 1: 2}", "data\n  found:   1, of type int"),
        ("data: {root: x}\nvariants: {../a: {}}", "letters, digits"),
        ("data: {root: x}\nvariants: {a b: {}}", "letters, digits"),
        ("data: {root: x}\nvariants: {v1.5: {}}", "letters, digits"),
        ('data: {root: "a\\0b"}', "NUL"),
        ('data: {root: "a\\ud800b"}', "halves of characters"),
        ("data: {root: 2024-13-45}", "month must be in 1..12"),
        ("data: {root: x}\ntrain: {steps: " + "9" * 5000 + "}", "4300 digits"),
        ("data: &a {root: *a}", "anchor"),
        ("[" * 5000, "without end"),
        ("data: {root: x}\ntrain: {seed: 9223372036854775808}", "less than or equal to 9223372036854775807"),
        ("data: {root: x}\ntune: {seed: 4294967296}", "less than or equal to 2147483647"),
        ("data: {root: x}\ntrain: {steps: 1e400}", "integer"),
        ("data: {root: ~/x}", "DVC takes ~ for the name of a folder"),
        ("data: {root: x}\nmodel: {weights: ~nobody-of-this-name/x}", "model.weights"),
        ("data: {root: x}\ntracking: {experiment: 2024}", "text, in quotes"),
    ],
)
def test_odd_values_are_one_message_with_their_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings_of(tmp_path, text)
    assert said in str(caught.value)
    assert str(tmp_path / "params.yaml") in str(caught.value.where)


def test_a_value_of_several_kinds_is_named_by_its_key_with_all_that_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        settings_of(tmp_path, 'data: {root: x}\ntrain: {batch_size: "6"}')
    assert str(caught.value.where).endswith("params.yaml: train.batch_size")
    assert caught.value.allowed == "a valid integer or 'auto'"
    with pytest.raises(UsageError) as caught:
        settings_of(tmp_path, "data: {root: x, keep_classes: [1, {a: b}]}")
    assert str(caught.value.where).endswith("data.keep_classes.1")


def test_a_home_folder_is_written_out_for_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    with pytest.raises(UsageError, match="/home/me/x"):
        settings_of(tmp_path, "data: {root: ~/x}")
    assert settings_of(tmp_path, "data: {root: x}\nmodel: {weights: ~/w}").model.weights == Path("/home/me/w")
