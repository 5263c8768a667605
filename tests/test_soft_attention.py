"""Soft attention against a hand-worked example, and the traps of public ports."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from exp_tools.models.registry import build_model
from exp_tools.models.soft_attention import SoftAttention

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


@pytest.mark.parametrize("backbone", ["resnet18", "densenet121", "test_resnet"])
@pytest.mark.parametrize("concat", [True, False])
def test_backbones_classes_and_sizes(backbone, concat):
    model = build_model("soft_attention", {"backbone": backbone, "concat": concat}, 2).eval()
    for size in (64, 80):
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
