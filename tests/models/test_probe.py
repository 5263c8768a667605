"""The network of a probe: several encoders, each with its own pixels, and what explanations see of them."""

import pytest
import torch

from exp_tools.explain.maps import grad_cam
from exp_tools.models.registry import build_model

PIXELS = {"pretrained_cfg_overlay": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}
BOTH = {"encoders": [{"backbone": "test_resnet"}, {"backbone": "test_vit", "options": PIXELS}]}


def test_each_encoder_sees_its_own_pixels():
    torch.manual_seed(0)
    model = build_model("probe", BOTH, 3).eval()
    pixels = torch.rand(2, 3, 64, 64)
    parts = []
    for encoder in model.backbone.values():
        mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (encoder.pixel_mean, encoder.pixel_std))
        parts.append(encoder.pooled((pixels - mean) / std))
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (model.pixel_mean, model.pixel_std))
    assert model.backbone["1"].pixel_mean == (0.1, 0.2, 0.3) != model.pixel_mean
    expected = model.classify(torch.cat(parts, dim=1))
    torch.testing.assert_close(model((pixels - mean) / std), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["linear", "mlp", "knn"])
def test_a_map_of_several_encoders_has_the_finest_grid(head):
    torch.manual_seed(0)
    model = build_model("probe", BOTH | {"head": head}, 3).eval()
    images = torch.randn(2, 3, 96, 96)
    made = grad_cam(model, (images,), torch.tensor([0, 1]))
    assert made.shape == (2, 6, 6)  # of the transformer; the ResNet has 3x3
    assert model.feature_map(images).shape[2:] == (6, 6)


@pytest.mark.sweep
def test_a_map_of_several_linear_encoders_is_the_sum_of_theirs():
    """The head is linear and pools averages, so each position's share of a logit is known by hand."""
    torch.manual_seed(0)
    model = build_model("probe", {"encoders": [{"backbone": "test_resnet"}, {"backbone": "test_convnext"}]}, 2).eval()
    resnet = model.backbone["0"]
    with torch.no_grad():
        model.head.weight[:, resnet.pooled_features :] = 0  # the second one has no say
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        share = torch.einsum("chw,c->hw", resnet(images)[0], model.head.weight[1, : resnet.pooled_features])
    found = torch.from_numpy(grad_cam(model, (images,), torch.tensor([1]))[0])
    positions = found.numel()
    torch.testing.assert_close(found, (share / positions).relu(), rtol=1e-3, atol=1e-6)
