"""Grad-CAM equals captum's on every architecture, and leaves the model as it was."""

import copy

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

from exp_tools.explain.maps import attention_map, grad_cam, has_attention
from exp_tools.models.registry import build_model

MODELS = {
    "soft_attention": ("soft_attention", {"backbone": "test_resnet"}),
    "soft_attention, a sum": ("soft_attention", {"backbone": "test_resnet", "concat": False}),
    "soft_attention, inner": ("soft_attention", {"backbone": "resnet10t", "place": "inner"}),
    "control": ("soft_attention", {"backbone": "test_resnet", "enabled": False}),
    "emas": ("emas", {}),
    "efficientnet_v2": ("efficientnet_v2", {}),
    "multimodal": ("multimodal", {"backbone": "test_efficientnet"}),
    "timm": ("timm", {"backbone": "test_convnext"}),
}


def built(name: str, knobs: dict) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build_model(name, knobs, 4).eval()
    for layer in model.modules():  # statistics that are not of an untrained network
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    metadata = (torch.tensor([[0.5, 1, 3], [-1, 0, 2], [0, 2, 0]]),) if model.uses_metadata else ()
    return model, (torch.randn(3, 3, 160, 160), *metadata)


def watched(name: str, model: nn.Module) -> nn.Module:
    """The layer whose output is the map; a backbone that pools by itself makes it inside timm's network."""
    if name == "emas":
        return model.excite
    if not getattr(model, "pools_as_timm", False):
        return model.backbone
    network = model.backbone.network
    return network.stages if hasattr(network, "stages") else network.bn2


@pytest.mark.parametrize("name", MODELS)
def test_equals_captum(name):
    model, inputs = built(*MODELS[name])
    captum = LayerGradCam(model, watched(name, model))
    drawn = 0
    for target in (torch.tensor([2, 0, 3]), torch.tensor([1, 3, 0])):
        theirs = captum.attribute(inputs[0], target, inputs[1:] or None, relu_attributions=True)[:, 0].detach()
        ours = grad_cam(model, inputs, target)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-6 * float(theirs.max()))
        drawn += int((ours.max(axis=(1, 2)) > 0).sum())
    assert drawn >= 1


class Toy(nn.Module):
    """Two channels, the image's red and green; the logits of two classes are 3 red - green, and green, each meaned."""

    def feature_map(self, x):
        return x[:, :2]

    def forward(self, x):
        red, green = self.feature_map(x).mean(dim=(2, 3)).T
        return torch.stack([3 * red - green, green], dim=1)


def test_a_map_worked_out_by_hand():
    image = torch.zeros(1, 3, 2, 2)
    image[0, 0] = torch.tensor([[4.0, 0], [0, 1]])
    image[0, 1] = torch.tensor([[0.0, 8], [0, 1]])
    # Each of 4 places has the gradient 3/4 or -1/4 (class 0), 0 or 1/4 (class 1); its mean over places is the same.
    np.testing.assert_allclose(grad_cam(Toy(), (image,), torch.tensor([0])), [[[3, 0], [0, 0.5]]])
    np.testing.assert_allclose(grad_cam(Toy(), (image,), torch.tensor([1])), [[[0, 2], [0, 0.25]]])


def test_blank_where_nothing_speaks_for_the_class():
    image = torch.zeros(1, 3, 2, 2)
    image[0, 1] = 1
    assert grad_cam(Toy(), (image,), torch.tensor([0])).max() == 0


def test_the_model_is_left_as_it_was():
    model, inputs = built(*MODELS["soft_attention"])
    model.requires_grad_(False)
    before, keys = copy.deepcopy(model.state_dict()), set(vars(model))
    grad_cam(model, inputs, torch.tensor([1, 1, 1]))
    assert set(vars(model)) == keys
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_same_under_inference_mode_and_autocast():
    model, inputs = built(*MODELS["soft_attention"])
    target = torch.tensor([2, 0, 3])
    plain = grad_cam(model, inputs, target)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        made_here = tuple(tensor * 1 for tensor in inputs)
        np.testing.assert_array_equal(grad_cam(model, made_here, target), plain)
        attended = attention_map(model, made_here)
    assert attended.dtype == np.float32
    np.testing.assert_array_equal(attended, attention_map(model, inputs))


def test_the_attention_map_is_the_networks_own():
    model, inputs = built(*MODELS["soft_attention"])
    made = attention_map(model, inputs)
    assert made.shape == grad_cam(model, inputs, torch.tensor([0, 0, 0])).shape
    np.testing.assert_allclose(made.sum(axis=(1, 2)), 16, rtol=1e-5)
    np.testing.assert_array_equal(made, model.attention_map(inputs[0]).detach().numpy())


@pytest.mark.parametrize("name", MODELS)
def test_who_has_attention(name):
    model, _ = built(*MODELS[name])
    assert has_attention(model) == name.startswith("soft_attention")
