"""EfficientNetV2: published counts of the three sizes and two heads, and the order of the deep head."""

import pytest
import torch
from torch import nn

from exp_tools.models.architectures.efficientnet_v2 import deep_head
from exp_tools.models.registry import build_model, count_parameters

DEEP_HEAD = 1280 * 512 + 512 + 2 * 512 + 512 * 256 + 256 + 2 * 256 + 256 * 7 + 7


@pytest.mark.parametrize(
    ("knobs", "classes", "count"),
    [
        ({}, 7, 20_968_023),
        ({"size": "s", "head": "linear"}, 2, 20_180_050),
        ({"size": "m"}, 7, 53_648_891),
        ({"size": "l"}, 7, 118_024_807),
    ],
)
def test_published_counts(knobs, classes, count):
    with torch.device("meta"):
        model = build_model("efficientnet_v2", knobs, classes)
    assert count_parameters(model) == count
    head = count - count_parameters(model.backbone)
    assert head == (1281 * classes if knobs.get("head") == "linear" else DEEP_HEAD)
    assert model.pixel_mean == model.pixel_std == (0.5, 0.5, 0.5)


def test_the_published_head_has_790_535():
    assert count_parameters(deep_head(1280, 7, 0.3)) == DEEP_HEAD == 790_535


def test_the_order_of_the_deep_head():
    torch.manual_seed(0)
    head = deep_head(6, 3, 0.5).eval()
    first, norm, _, _, second, other, _, _, last = head
    for layer in (norm, other):
        layer.running_mean.uniform_(-1, 1)
        layer.running_var.uniform_(0.5, 2)
    x = torch.randn(4, 6)

    def normed(values, layer):
        return (values - layer.running_mean) / (layer.running_var + 1e-5).sqrt()

    hidden = normed(x @ first.weight.T + first.bias, norm).clamp(min=0)
    hidden = normed(hidden @ second.weight.T + second.bias, other).clamp(min=0)
    torch.testing.assert_close(head(x), hidden @ last.weight.T + last.bias)


@pytest.mark.parametrize("head", ["deep", "linear"])
def test_dropout_stands_before_every_layer_but_none_behind(head):
    with torch.device("meta"):
        model = build_model("efficientnet_v2", {"head": head, "dropout": 0.25}, 7)
    found = [layer.p for layer in [model.dropout, *model.classifier.modules()] if isinstance(layer, nn.Dropout)]
    assert found == [0.25] * (3 if head == "deep" else 1)
