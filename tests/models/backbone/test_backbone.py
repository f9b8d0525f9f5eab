"""The backbone: any timm model gives features of several levels."""

import warnings

import pytest
import timm
import torch

from models.backbone.backbone import Backbone, OutputStrideWarning
from tests.models.backbone.building import KINDS, build


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [(97, 131), (64, 96), (33, 32)])
def test_features_have_the_channels_and_strides_that_the_backbone_states(name, size):
    backbone = build(name).eval()
    low, *_, high = backbone(torch.rand(1, 3, *size))
    padded = backbone.image_size or [
        -(-side // backbone.size_multiple) * backbone.size_multiple for side in size
    ]
    assert low.shape == (1, backbone.channels[0], padded[0] // 4, padded[1] // 4)
    stride = backbone.output_stride
    assert high.shape == (1, backbone.channels[-1], padded[0] // stride, padded[1] // stride)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet", "test_byobnet"])
def test_convolutional_backbones_reach_every_output_stride_without_a_warning(name, output_stride):
    with warnings.catch_warnings():
        warnings.simplefilter("error", OutputStrideWarning)
        backbone = Backbone(name, output_stride=output_stride)
    assert backbone.output_stride == output_stride
    assert backbone(torch.rand(2, 3, 64, 64))[-1].shape[-1] == 64 // output_stride


@pytest.mark.parametrize(
    ("name", "asked", "reached"),
    [("test_mambaout", 16, 32), ("test_vit", 8, 16), ("ghostnet_050", 8, 32)],
)
def test_an_output_stride_out_of_reach_is_told_and_the_nearest_taken(name, asked, reached):
    with pytest.warns(OutputStrideWarning, match=rf"stride {asked} asked.*{name}.*{reached} reached.*ResNet"):
        backbone = Backbone(name, output_stride=asked)
    assert backbone.output_stride == reached


def test_a_plain_transformer_at_its_patch_size_is_no_reason_to_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error", OutputStrideWarning)
        assert Backbone("test_vit", output_stride=16).output_stride == 16


def test_swin_takes_any_size_and_gives_channels_first():
    backbone = build("swin_tiny_patch4_window7_224", output_stride=32).eval()
    with torch.no_grad():
        low, *_, high = backbone(torch.rand(1, 3, 50, 70))
    assert backbone.image_size is None
    assert (low.shape, high.shape) == ((1, 96, 16, 24), (1, 768, 2, 3))


def test_a_model_of_one_size_refuses_larger_images_and_says_what_takes_them():
    backbone = build("test_vit_relpos")
    assert backbone.image_size == (160, 160)
    with pytest.raises(ValueError, match=r"161x100 found, at most 160x160 allowed.*ViT"):
        backbone(torch.rand(1, 3, 161, 100))


@pytest.mark.parametrize("name", ["test_resnet", "tf_efficientnet_lite0", "test_convnext"])
def test_images_are_normalized_with_the_mean_and_deviation_of_the_weights(name):
    backbone = build(name).eval()
    config = timm.get_pretrained_cfg(name)
    images = torch.rand(1, 3, 64, 64)
    channels = [(images[:, c] - config.mean[c]) / config.std[c] for c in range(3)]
    with torch.no_grad():
        expected = backbone.network(torch.stack(channels, dim=1))
        features = backbone(images)
    torch.testing.assert_close(features[-1], expected[-1])
    assert {"mean", "std"} <= set(backbone.state_dict())


def test_padding_has_the_mean_color():
    backbone = build("test_resnet").eval()
    image = torch.rand(1, 3, 50, 60)
    padded = backbone.mean.expand(1, 3, 64, 64).clone()
    padded[..., :50, :60] = image
    with torch.no_grad():
        torch.testing.assert_close(backbone(image)[-1], backbone(padded)[-1])


def test_batch_norm_momentum_is_set_or_left():
    def momenta(backbone: Backbone) -> set[float]:
        return {m.momentum for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)}

    assert momenta(build("test_resnet", batch_norm_momentum=0.01)) == {0.01}
    assert momenta(build("test_resnet")) == {0.1}


def test_an_unknown_name_is_answered_with_the_names_close_to_it():
    with pytest.raises(ValueError, match=r"(?s)no model 'resnet5O'.*allowed:.*resnet50"):
        Backbone("resnet5O")
    with pytest.raises(ValueError, match=r"(?s)unknown weights tag 'nope'.*a1_in1k"):
        Backbone("resnet50.nope")


def test_a_model_that_gives_no_features_is_refused_with_models_that_do(monkeypatch):
    """timm has hardly one left, so it is made to refuse here as it does: whatever the arguments."""

    def refuses(*_names: object, **_arguments: object) -> None:
        raise RuntimeError("features_only not implemented")

    monkeypatch.setattr(timm, "create_model", refuses)
    with pytest.raises(
        ValueError, match=r"(?s)'test_vit' gives no features.*not implemented.*allowed:.*convnext"
    ):
        Backbone("test_vit")


def test_images_below_the_least_size_of_a_model_are_padded_to_it():
    """Inception does not pad: its features are gone below 75 pixels, as its page says."""
    backbone = build("inception_v3").eval()
    assert backbone.least_side == 96  # the multiple of its stride from there on
    with torch.no_grad():
        levels = backbone(torch.rand(1, 3, 40, 32))
    assert levels[0].shape[-2:] == (24, 24)
    assert all(level.isfinite().all() for level in levels)
    assert build("test_resnet").least_side == build("test_resnet").size_multiple


def test_the_hubs_spelling_of_timms_models_is_taken_and_others_are_refused():
    assert build("hf-hub:timm/test_resnet.r160_in1k").name == "test_resnet.r160_in1k"
    assert build("timm/test_resnet").name == "test_resnet"
    with pytest.raises(ValueError, match=r"(?s)somebody/net.*allowed:.*hf-hub:timm/"):
        build("hf-hub:somebody/net")


def test_advice_about_strides_can_be_followed():
    with pytest.warns(OutputStrideWarning, match=r"17 reached(?!.*Set model.output_stride)"):
        Backbone("crossvit_tiny_240", output_stride=16)
