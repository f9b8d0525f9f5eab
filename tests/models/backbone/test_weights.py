"""A backbone's weights come in whole or not at all, from a file or by download."""

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from models.backbone import weights as backbone_weights
from models.backbone.backbone import Backbone
from tests.models.backbone.building import build
from tests.paths import SHARED

REAL_WEIGHTS = SHARED / "weights" / "tf_efficientnet_lite0.safetensors"


def whole_model(name: str, seed: int = 1) -> torch.nn.Module:
    """timm's own classifier, every tensor random, batch-norm statistics included."""
    torch.manual_seed(seed)
    model = timm.create_model(name)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_convnext", "test_efficientnet", "test_vit", "test_mambaout"]
)
@pytest.mark.parametrize("with_classifier", [True, False])
def test_a_local_file_gives_the_features_of_the_model_it_was_saved_from(name, with_classifier, tmp_path):
    model = whole_model(name)
    tensors = model.state_dict()
    if not with_classifier:
        tensors = {
            key: value for key, value in tensors.items() if not key.startswith(("head.fc", "classifier"))
        }
    save_file(tensors, tmp_path / "weights.safetensors")
    backbone = build(name, output_stride=32, weights=tmp_path / "weights.safetensors").eval()

    pixels = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        expected = model.forward_intermediates(pixels, intermediates_only=True)[-1]
        found = backbone._channels_first(backbone.network(pixels)[-1])
    torch.testing.assert_close(found, expected)
    assert backbone.loaded.missing == ()
    assert len(backbone.loaded.loaded) == len(backbone.network.state_dict())
    assert set(backbone.loaded.unexpected) < set(tensors)


def test_a_file_of_the_feature_extractor_itself_loads_too(tmp_path):
    first = build("test_vit")
    save_file(first.network.state_dict(), tmp_path / "features.safetensors")
    second = build("test_vit", weights=tmp_path / "features.safetensors")
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def test_names_that_timm_knows_how_to_convert_are_converted(tmp_path):
    tensors = whole_model("test_convnext").state_dict()
    renamed = {
        f"visual.trunk.{key}": value for key, value in tensors.items()
    }  # as CLIP's image tower has them
    renamed["visual.head.proj.weight"] = tensors["head.fc.weight"]
    save_file({key: value.clone() for key, value in renamed.items()}, tmp_path / "clip.safetensors")
    backbone = build("test_convnext", weights=tmp_path / "clip.safetensors")
    assert backbone.loaded.missing == ()
    assert torch.equal(backbone.network.state_dict()["stem_0.weight"], tensors["stem.0.weight"])


@pytest.mark.skipif(not REAL_WEIGHTS.is_file(), reason="shared/weights is not beside this checkout")
def test_the_real_weights_load_whole_and_recover_the_classifier_s_features():
    backbone = build("tf_efficientnet_lite0", output_stride=32, weights=REAL_WEIGHTS).eval()
    assert backbone.loaded.missing == ()
    assert {key.partition(".")[0] for key in backbone.loaded.unexpected} == {"conv_head", "bn2", "classifier"}
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(load_file(REAL_WEIGHTS))
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.forward_intermediates(pixels, intermediates_only=True)[-1]
        torch.testing.assert_close(backbone.network(pixels)[-1], expected)


@pytest.mark.parametrize(
    ("file_of", "backbone", "found"),
    [
        ("test_resnet", "test_convnext", "missing"),
        ("test_convnext", "test_convnext2", "another shape"),
        ("test_efficientnet", "test_vit", "missing"),
    ],
)
def test_weights_of_another_model_are_refused_whole(file_of, backbone, found, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file(whole_model(file_of).state_dict(), path)
    with pytest.raises(ValueError, match=rf"(?s)another model.*{path}.*{found}.*{backbone}.*model.weights"):
        build(backbone, weights=path)


def test_a_file_without_batch_norm_statistics_is_refused(tmp_path):
    tensors = {k: v for k, v in whole_model("test_resnet").state_dict().items() if "running_var" not in k}
    save_file(tensors, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match="running_var"):
        build("test_resnet", weights=tmp_path / "part.safetensors")


def test_a_missing_file_and_a_file_of_another_kind_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"(?s)no weights file.*absent.*model\.weights"):
        build("test_resnet", weights=tmp_path / "absent.safetensors")
    torch.save({"a": torch.zeros(1)}, tmp_path / "pickle.pth")
    with pytest.raises(ValueError, match=r"(?s)not a safetensors file.*pickle\.pth.*save_file"):
        build("test_resnet", weights=tmp_path / "pickle.pth")


def test_download_and_file_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="exclude each other"):
        Backbone("test_resnet", pretrained=True, weights=tmp_path / "w.safetensors")


def test_without_a_network_a_download_fails_at_once_and_names_the_fix(monkeypatch, tmp_path):
    def unreachable(*_args: object, **_options: object) -> None:
        raise RuntimeError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_args: None)
    monkeypatch.setattr(timm, "create_model", unreachable)  # timm, which would retry, is never asked
    with pytest.raises(ConnectionError, match=r"(?s)test_resnet.*Name or service.*model\.weights"):
        Backbone("test_resnet", pretrained=True)


def test_cached_weights_need_no_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_args: "a/file")
    monkeypatch.setattr(
        "huggingface_hub.get_hf_file_metadata", lambda *_args, **_options: pytest.fail("asked")
    )
    backbone_weights.check_weights_reachable("test_resnet", timm.get_pretrained_cfg("test_resnet"))


def test_a_model_that_nobody_trained_cannot_be_asked_for_weights():
    untrained = next(
        name
        for name in timm.list_models("*resnet*")
        if not (config := timm.get_pretrained_cfg(name)).hf_hub_id and not config.url
    )
    with pytest.raises(ValueError, match="timm has no weights"):
        Backbone(untrained, pretrained=True)
