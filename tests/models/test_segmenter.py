"""The segmenter's contract, for every kind of backbone and both heads."""

import json
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from models.backbone.backbone import OutputStrideWarning
from models.decoders import DECODERS
from models.segmenter import Segmenter, SegmenterConfig, build_segmenter, resized_side
from tests.models.backbone.building import KINDS

HEADS = ["embedding", "softmax"]
OTHER_DECODERS = [name for name in DECODERS if name != "deeplabv3plus"]  # the default everywhere else here


def build(
    name: str = "test_resnet", head: str = "embedding", num_classes: int = 300, **changes: object
) -> Segmenter:
    torch.manual_seed(0)
    values = {"embedding_dim": 6, "decoder_channels": 16} | changes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OutputStrideWarning)
        return build_segmenter(SegmenterConfig(backbone=name, head=head, num_classes=num_classes, **values))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [(97, 131), (64, 96)])
def test_any_size_gives_stride_4_maps_and_full_size_predictions(name, head, size):
    segmenter = build(name, head).eval()
    images = torch.rand(2, 3, *size)
    channels = 6 if head == "embedding" else 16
    assert segmenter(images).shape == (2, channels, -(-size[0] // 4), -(-size[1] // 4))
    predicted = segmenter.predict(images)
    assert (predicted.shape, predicted.dtype) == ((2, *size), torch.int64)
    assert 0 <= predicted.min() <= predicted.max() < 300
    assert segmenter.predict(images, size=(31, 17)).shape == (2, 31, 17)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", OTHER_DECODERS)
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [(97, 131), (33, 50)])
def test_every_decoder_keeps_the_contract_on_every_kind_of_backbone(name, decoder, size):
    """CNN, hierarchical with and without channels last, plain transformer; sizes that no stride divides."""
    segmenter = build(name, decoder=decoder).eval()
    images = torch.rand(2, 3, *size)
    assert segmenter(images).shape == (2, 6, -(-size[0] // 4), -(-size[1] // 4))
    assert segmenter.predict(images).shape == (2, *size)
    assert segmenter.decoder.channels == 16


@pytest.mark.slow
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_takes_swin_whose_features_are_channels_last(decoder):
    segmenter = build("swin_tiny_patch4_window7_224", decoder=decoder, output_stride=32).train()
    output = segmenter(torch.rand(2, 3, 50, 70))
    assert output.shape == (2, 6, 13, 18)
    (output * torch.randn_like(output)).sum().backward()
    assert segmenter.backbone.network.patch_embed.proj.weight.grad.abs().sum() > 0
    assert [name for name, parameter in segmenter.named_parameters() if parameter.grad is None] == (
        ["head.class_table"]
    )
    again = build(
        "swin_tiny_patch4_window7_224", decoder=decoder, output_stride=32, num_classes=1284, input_scale=0.5
    )
    rebuilt = {name: tensor for name, tensor in segmenter.state_dict().items() if name != "head.class_table"}
    again.load_state_dict(rebuilt | {"head.class_table": torch.full((1284, 6), -1.0)})
    images = torch.rand(1, 3, 100, 140)
    halved = F.interpolate(images, size=(50, 70), mode="bilinear", antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(images), segmenter.eval()(halved))
        again.head.class_table[1283] = 1.0
        again.head.projection.weight.zero_()
        again.head.projection.bias.fill_(1.0)
    assert (again.predict(images) == 1283).all()


@pytest.mark.slow
@pytest.mark.parametrize("decoder", OTHER_DECODERS)
@pytest.mark.parametrize("name", KINDS)
def test_the_gradient_reaches_every_parameter_of_every_decoder(name, decoder):
    segmenter = build(name, "softmax", decoder=decoder).train()
    output = segmenter.head.logits(segmenter(torch.rand(1, 3, 97, 131)))
    (output * torch.randn_like(output)).sum().backward()
    assert [name for name, parameter in segmenter.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.isfinite().all() for parameter in segmenter.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("decoder", OTHER_DECODERS)
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit"])
def test_every_decoder_is_rebuilt_from_its_arguments_and_predicts_classes_above_255(name, decoder):
    first = build(name, decoder=decoder, num_classes=1284)
    first.train()(torch.rand(2, 3, 64, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OutputStrideWarning)
        values = {"decoder": decoder, "decoder_channels": 16, "embedding_dim": 6, "num_classes": 1284}
        second = build_segmenter(SegmenterConfig.from_dict({"backbone": name, **values}))
    second.load_state_dict(first.state_dict())
    images = torch.rand(1, 3, 97, 131)
    with torch.no_grad():
        assert torch.equal(first.eval()(images), second.eval()(images))
        second.head.class_table.fill_(-1.0)[1283] = 1.0
        second.head.projection.weight.zero_()
        second.head.projection.bias.fill_(1.0)
    assert (second.predict(images) == 1283).all()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", KINDS)
def test_the_gradient_reaches_every_parameter_from_a_batch_of_one(name, head):
    segmenter = build(name, head).train()
    output = segmenter(torch.rand(1, 3, 97, 131))
    classes = segmenter.head.class_embeddings
    loss = (output * torch.randn_like(output)).sum() + (classes * torch.randn_like(classes)).sum()
    if segmenter.head.bias is not None:
        loss = loss + segmenter.head.bias.sum()
    loss.backward()
    assert [name for name, parameter in segmenter.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.isfinite().all() for parameter in segmenter.parameters())


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", KINDS)
def test_arguments_and_state_dict_rebuild_the_same_network(name, head):
    first = build(name, head)
    first.train()(torch.rand(2, 3, 64, 64))  # moves the batch-norm statistics
    values = json.loads(json.dumps(_arguments(name, head).to_dict()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OutputStrideWarning)
        second = build_segmenter(SegmenterConfig.from_dict(values))
    second.load_state_dict(first.state_dict())
    images = torch.rand(1, 3, 97, 131)
    with torch.no_grad():
        assert torch.equal(first.eval()(images), second.eval()(images))


def _arguments(name: str, head: str) -> SegmenterConfig:
    return SegmenterConfig(backbone=name, head=head, num_classes=300, embedding_dim=6, decoder_channels=16)


@pytest.mark.parametrize("head", HEADS)
def test_one_class_is_predicted_everywhere(head):
    assert not build(head=head, num_classes=1).predict(torch.rand(1, 3, 32, 32)).any()


@pytest.mark.parametrize("head", HEADS)
def test_every_class_above_255_can_be_predicted(head):
    """All pixels take the one class that the head is turned towards, whatever its id."""
    segmenter = build(head=head, num_classes=1284)
    images = torch.rand(1, 3, 32, 32)
    for wanted in (255, 256, 1283):
        with torch.no_grad():
            if head == "embedding":
                segmenter.head.class_table.fill_(-1.0)[wanted] = 1.0
                segmenter.head.projection.weight.zero_()
                segmenter.head.projection.bias.fill_(1.0)
            else:
                segmenter.head.classifier.bias.zero_()[wanted] = 1e4
        assert (segmenter.predict(images) == wanted).all()


def test_an_image_s_prediction_does_not_depend_on_its_batch():
    segmenter = build()
    images = torch.rand(3, 3, 50, 70)
    together = segmenter.predict(images)
    alone = torch.cat([segmenter.predict(image[None]) for image in images])
    assert (together == alone).float().mean() > 0.999  # rounding may differ between batch sizes


def test_prediction_leaves_the_modes_and_statistics_as_they_were():
    segmenter = build().train()
    segmenter.backbone.eval()  # frozen statistics, say
    before = {key: value.clone() for key, value in segmenter.state_dict().items()}
    predicted = segmenter.predict(torch.rand(2, 3, 32, 32))
    assert (segmenter.decoder.training, segmenter.backbone.training) == (True, False)
    assert all(torch.equal(value, before[key]) for key, value in segmenter.state_dict().items())
    predicted += 1  # an ordinary tensor
    assert torch.equal(
        segmenter.eval().predict(torch.zeros(1, 3, 32, 32)),
        segmenter.train().predict(torch.zeros(1, 3, 32, 32)),
    )


@pytest.mark.parametrize("head", HEADS)
def test_parameter_groups_share_out_every_parameter_once(head):
    segmenter = build(head=head)
    groups = segmenter.parameter_groups()
    shared_out = [pair for group in groups for pair in group]
    assert sorted(name for name, _ in shared_out) == sorted(name for name, _ in segmenter.named_parameters())
    assert all(parameter is segmenter.get_parameter(name) for name, parameter in shared_out)
    assert {id(p) for _, p in groups.backbone} == {id(p) for p in segmenter.backbone.parameters()}
    assert [name for name, _ in groups.class_embeddings] == (
        ["head.class_table"] if head == "embedding" else []
    )


def test_local_weights_reach_the_backbone(tmp_path):
    torch.manual_seed(5)
    model = timm.create_model("test_resnet")
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    segmenter = build_segmenter(
        _arguments("test_resnet", "embedding"), weights=tmp_path / "weights.safetensors"
    )
    assert torch.equal(segmenter.backbone.network.state_dict()["conv1.0.weight"], model.conv1[0].weight)


def test_bfloat16_autocast_trains():
    segmenter = build().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = segmenter(torch.rand(2, 3, 64, 64))
    assert output.dtype == torch.float32
    (output * torch.randn_like(output)).sum().backward()
    assert segmenter.backbone.network.conv1[0].weight.grad.isfinite().all()


def test_unknown_arguments_are_refused_by_name():
    values = _arguments("test_resnet", "softmax").to_dict()
    with pytest.raises(ValueError, match=r"unknown: backbon; allowed: num_classes, backbone"):
        SegmenterConfig.from_dict(values | {"backbon": "x"})
    with pytest.raises(ValueError, match="num_classes missing"):
        SegmenterConfig.from_dict({"backbone": "test_resnet"})
    with pytest.raises(ValueError, match=r"head is 'linear'; allowed: .*'softmax'"):
        build(head="linear")
    with pytest.raises(ValueError, match=r"decoder is 'unet'.*deeplabv3plus.*, fpn, upernet, linear"):
        build(decoder="unet")


@pytest.mark.parametrize("head", ["embedding", "softmax"])
def test_an_input_scale_is_resizing_before_the_network(head):
    whole = build("test_resnet", head).eval()
    halved = build("test_resnet", head, input_scale=0.5).eval()
    halved.load_state_dict(whole.state_dict())
    images = torch.rand(2, 3, 71, 96)
    resized = F.interpolate(images, size=(36, 48), mode="bilinear", antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(halved(images), whole(resized))
    assert torch.equal(halved.predict(images), whole.predict(resized, (71, 96)))
    assert halved.predict(images).shape == (2, 71, 96)


def test_an_input_scale_of_zero_is_refused():
    with pytest.raises(ValueError, match="input_scale is 0"):
        build_segmenter(SegmenterConfig(num_classes=3, backbone="test_resnet", input_scale=0))


@pytest.mark.slow
def test_a_graph_with_free_height_and_width_can_be_exported():
    class Decoded(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.segmenter = build("test_resnet").eval()

        def forward(self, images):
            return self.segmenter.decoder(self.segmenter.backbone(images))

    module, free = Decoded(), torch.export.Dim.DYNAMIC
    shapes = ({0: free, 2: free, 3: free},)
    with torch.no_grad():
        graph = torch.export.export(module, (torch.rand(2, 3, 70, 101),), dynamic_shapes=shapes).module()
        for size in ((1, 3, 64, 48), (3, 3, 33, 90)):
            images = torch.rand(size)
            torch.testing.assert_close(graph(images), module(images))


@pytest.mark.parametrize("scale", [0.25, 1 / 3, 0.5, 0.75, 1, 1.5, 2])
def test_resized_sides_are_the_nearest_whole_numbers(scale):
    for side in range(1, 200):
        found = resized_side(side, scale)
        assert isinstance(found, int)
        assert found >= 1
        assert abs(found - side * scale) <= 0.5 + 1e-9 or found == 1


@pytest.mark.parametrize(
    ("changes", "convolutions"),
    [
        ({"embedding_dim": 16}, 1),  # a file of before the setting existed
        ({"embedding_dim": 16, "projection": "if_needed"}, 0),
        ({"embedding_dim": 6, "projection": "if_needed"}, 1),
    ],
)
def test_a_projection_is_left_out_only_where_none_is_needed(changes, convolutions):
    values = {"backbone": "test_resnet", "num_classes": 3, "decoder_channels": 16, **changes}
    head = build_segmenter(SegmenterConfig.from_dict(values)).head
    assert sum(isinstance(module, torch.nn.Conv2d) for module in head.modules()) == convolutions
    assert head.class_embeddings.shape == (3, changes["embedding_dim"])
