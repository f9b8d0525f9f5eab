"""The layout is chosen by its name: in the settings, the command and the stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipeline.cli.data import app
from pipeline.config.data_section import DataSettings
from pipeline.data.check.layouts import check_layout
from pipeline.data.labels.label_space import LabelSpace
from pipeline.data.layouts.layout import LAYOUTS
from pipeline.data.layouts.opening import likely_layouts, open_layout
from pipeline.runtime.errors import DataError, UsageError
from tests.pipeline.data.layouts.miniature import MAKERS
from tests.pipeline.data.layouts.small_layouts import Coco, Masks
from tests.pipeline.data.small_dataset import typical


@pytest.fixture
def stored(tmp_path: Path) -> Masks:
    return Masks(tmp_path / "masks")


def test_the_settings_and_the_command_know_the_layouts(stored: Masks, tmp_path: Path) -> None:
    annotation = DataSettings.model_fields["layout"].annotation
    assert annotation is not None
    assert annotation.__args__ == LAYOUTS
    made = CliRunner().invoke(
        app, ["bootstrap", str(stored.root), str(tmp_path / "out"), "--layout", "masks"]
    )
    assert made.exit_code == 0, made.output
    assert "3 classes" in made.output
    refused = CliRunner().invoke(
        app, ["bootstrap", str(stored.root), str(tmp_path / "o"), "--layout", "coco2"]
    )
    assert isinstance(refused.exception, UsageError)


def test_the_stage_reads_the_layout_from_the_settings(
    stored: Masks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages.bootstrap import main

    settings = {"data": {"root": str(stored.root), "layout": "masks"}, "runtime": {"num_workers": 0}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    main()
    assert LabelSpace.load(tmp_path / "data" / "bootstrapped" / "label_space.json").num_classes == 3


def test_a_folder_in_another_layout_is_named_by_the_layout_it_looks_like(
    stored: Masks, tmp_path: Path
) -> None:
    coco = Coco(tmp_path / "coco").write()
    for root, layout, likely in (
        (coco, "coco_lvis", "coco"),
        (stored.root, "coco_lvis", "masks"),
        (coco, "masks", "coco"),
        (stored.root, "coco", "masks"),
        (coco, "cityscapes", "coco"),
    ):
        with pytest.raises(DataError, match=f"looks like {likely}: --layout {likely}"):
            open_layout(layout, root)
        (fault,) = check_layout(root, layout).faults
        assert f"--layout {likely}" in fault.remedy
        assert "lvis_v1" not in fault.detail
    for name, make in MAKERS.items():
        make(tmp_path / name)
        assert likely_layouts(tmp_path / name) == [name]
    assert likely_layouts(typical(tmp_path / "official").write())[0] == "coco_lvis"
    assert likely_layouts(tmp_path) == []
