"""Soft attention against a hand-worked example, and the traps of public ports."""

import copy

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

from exp_tools.errors import UserError
from exp_tools.models.architectures.soft_attention import SoftAttention, widen
from exp_tools.models.registry import build_model, count_parameters

TINY = {"backbone": "test_resnet", "heads": 4}


def test_hand_worked_example():
    block = SoftAttention(channels=2, heads=2, kernel_size=1)
    with torch.no_grad():
        block.maps.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]).reshape(2, 2, 1, 1))
        block.maps.bias.zero_()
        block.gamma.fill_(0.5)
    features = torch.tensor([[[[0.0, np.log(3.0)]], [[0.0, 0.0]]]], dtype=torch.float32)  # [1, 2 channels, 1, 2]
    # head 1: softmax(0, ln 3) = (1/4, 3/4); head 2: softmax(0, 0) = (1/2, 1/2); their sum (3/4, 5/4)
    torch.testing.assert_close(block.attention_map(features), torch.tensor([[[0.75, 1.25]]]))
    expected = torch.tensor([[[[0.0, 0.5 * np.log(3.0) * 1.25]], [[0.0, 0.0]]]], dtype=torch.float32)
    torch.testing.assert_close(block(features), expected)


def test_gradients_are_right():
    torch.manual_seed(0)
    block = SoftAttention(3, heads=2).double()
    features = torch.randn(1, 3, 4, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(block, (features,))


def test_the_maps_see_every_channel():
    torch.manual_seed(0)
    block = SoftAttention(channels=12, heads=3)
    features = torch.randn(2, 12, 5, 5, requires_grad=True)
    weights = torch.randn(2, 5, 5)
    (block.attention_map(features) * weights).sum().backward()
    assert (features.grad.abs().amax(dim=(0, 2, 3)) > 0).all()


def test_each_head_is_a_distribution_over_positions():
    block = SoftAttention(6, heads=5)
    attention = block.attention_map(torch.randn(3, 6, 4, 7))
    assert (attention >= 0).all()
    torch.testing.assert_close(attention.sum(dim=(1, 2)), torch.full((3,), 5.0))


def test_there_is_exactly_one_gamma_and_it_starts_at_a_hundredth():
    model = build_model("soft_attention", TINY, 7)
    scalars = [parameter for parameter in model.parameters() if parameter.ndim == 0]
    assert len(scalars) == 1
    assert scalars[0].item() == pytest.approx(0.01)


def test_without_attention_it_is_the_plain_network():
    model = build_model("soft_attention", TINY | {"enabled": False}, 3).eval()
    images = torch.randn(2, 3, 64, 64)
    features = functional.relu(functional.max_pool2d(model.feature_map(images), 2, ceil_mode=True)).mean(dim=(2, 3))
    torch.testing.assert_close(model(images), model.classifier(features))
    assert model.attention is None
    with pytest.raises(RuntimeError, match="no attention map"):
        model.attention_map(images)


@pytest.mark.parametrize(
    "backbone", ["resnet18", "densenet121", "vgg11_bn", "efficientnet_b0", "inception_resnet_v2", "test_vit"]
)
def test_backbones_and_sizes(backbone):
    concat = backbone in ("resnet18", "vgg11_bn", "test_vit")
    model = build_model("soft_attention", {"backbone": backbone, "concat": concat}, 2).eval()
    for size in (96,) if backbone == "inception_resnet_v2" else (32, 80):
        images = torch.randn(1, 3, size, size)
        assert model(images).shape == (1, 2)
        assert (
            model.attention_map(images).shape
            == model.feature_map(images).shape[:1] + model.feature_map(images).shape[2:]
        )


def test_an_odd_feature_map_keeps_its_last_row():
    model = build_model("soft_attention", TINY, 2).eval()
    features = torch.zeros(1, model.backbone.num_features, 3, 3)
    features[:, :, 2, 2] = 1.0
    model.feature_map = lambda images: features
    assert not torch.allclose(model(torch.zeros(1)), model.classifier.bias)


# --- the place before the last stage


INNER = {"place": "inner", "heads": 4}
CUT = ["vgg11_bn", "resnet18", "resnet50", "test_resnet"]


@pytest.mark.parametrize(
    ("backbone", "count"),
    [
        # backbone, sixteen maps and γ, the widened first convolution(s) of the last stage, the classifier
        ("vgg16_bn", 14_723_136 + 512 * 16 * 9 + 17 + 512 * 512 * 9 + 513 * 7),
        ("resnet34", 21_284_672 + 256 * 16 * 9 + 17 + 256 * 512 * 9 + 256 * 512 + 513 * 7),
    ],
)
def test_the_papers_inner_places(backbone, count):
    with torch.device("meta"):
        model = build_model("soft_attention", {"backbone": backbone, "place": "inner"}, 7).eval()
        images = torch.empty(1, 3, 224, 224)
        assert count_parameters(model) == count
        side = 28 if backbone == "vgg16_bn" else 14
        assert model.attention_map(images).shape == (1, side, side)
        assert model.feature_map(images).shape == (1, 512, 7, 7)


@pytest.mark.parametrize("backbone", CUT)
def test_widening_changes_nothing_at_first(backbone):
    """With new weights of zero the cut network computes what the plain one does: its weights survived."""
    torch.manual_seed(0)
    model = build_model("soft_attention", INNER | {"backbone": backbone}, 2).eval()
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
    plain = timm.create_model(backbone, num_classes=0, global_pool="").eval()
    missing = plain.load_state_dict(model.backbone.network.state_dict(), strict=False).missing_keys
    assert all(name.startswith("pre_logits") for name in missing)
    for size in (32, 97):
        images = torch.randn(2, 3, size, size)
        with torch.no_grad():
            torch.testing.assert_close(model.feature_map(images), plain.forward_features(images))


@pytest.mark.parametrize("backbone", CUT)
@pytest.mark.parametrize("knobs", [{}, {"concat": False}, {"enabled": False}])
def test_inner_attention_and_its_control(backbone, knobs):
    model = build_model("soft_attention", INNER | {"backbone": backbone} | knobs, 2).eval()
    widened = 0 if knobs else 1 if backbone.startswith("vgg") else 2  # a ResNet's shortcut reads the input too
    assert len(model.widening) == widened
    assert all(parameter.count_nonzero() == 0 for parameter in model.widening.parameters())
    assert model.classifier.in_features == model.backbone.num_features
    model.train()(torch.randn(2, 3, 64, 64)).logsumexp(dim=1).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    # the last new convolution: a ResNet's shortcut, since timm starts the block's own branch at zero
    learning = [*list(model.widening.parameters())[-1:], *([model.attention.gamma] if "concat" in knobs else [])]
    assert all(parameter.grad.abs().max() > 0 for parameter in learning)


def test_a_widened_convolution_is_one_over_both_halves():
    torch.manual_seed(0)
    parent = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1))
    first = parent[0].weight
    extra = widen(parent, "0")
    nn.init.normal_(extra.weight)
    whole = nn.Conv2d(6, 5, 3, stride=2, padding=1)
    whole.weight.data = torch.cat([first, extra.weight], dim=1).detach()
    whole.bias.data = parent[0].bias.detach()
    x = torch.randn(2, 6, 9, 9)
    torch.testing.assert_close(parent(x), whole(x))
    assert sorted(parent.state_dict()) == ["0.bias", "0.weight"]


def test_new_weights_lie_outside_the_backbone_and_a_copy_has_its_own():
    model = build_model("soft_attention", INNER | {"backbone": "test_resnet"}, 2).eval()
    inside = {id(parameter) for parameter in model.backbone.parameters()}
    assert not inside & {id(parameter) for parameter in model.widening.parameters()}
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        copied = copy.deepcopy(model)
        before = model(images)
        copied.widening[1].weight.fill_(1.0)  # the shortcut's; timm starts the block's own branch at zero
        assert torch.equal(model(images), before)
        assert not torch.allclose(copied(images), before)


def test_inner_attention_is_what_the_last_stage_reads():
    torch.manual_seed(0)
    model = build_model("soft_attention", INNER | {"backbone": "vgg11_bn"}, 2).eval()
    nn.init.normal_(model.widening[0].weight, std=0.05)
    layers = model.backbone.network.features
    images = torch.randn(1, 3, 64, 64)
    pools = [place for place, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    with torch.no_grad():
        features = layers[: pools[3]](images)
        attended = model.attention.gamma * features * model.attention_map(images).unsqueeze(1)
        joined = torch.cat([functional.max_pool2d(features, 2), functional.max_pool2d(attended, 2)], dim=1).relu()
        expected = layers[pools[3] + 1 :](joined).mean(dim=(2, 3))
        torch.testing.assert_close(model(images), model.classifier(expected))


@pytest.mark.parametrize("backbone", ["densenet121", "test_vit", "test_efficientnet"])
def test_other_backbones_have_no_inner_place(backbone):
    with pytest.raises(UserError, match=f"for VGG and ResNet backbones, and {backbone} is neither; use place last"):
        build_model("soft_attention", INNER | {"backbone": backbone}, 2)
