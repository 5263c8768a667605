"""E-MAS: blocks against other implementations, strides, and what a batch of one does."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.models.segmentation.deeplabv3 import ASPP as TorchvisionASPP

from exp_tools.models.architectures.emas import ASPP
from exp_tools.models.registry import build_model, count_parameters


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model("emas", {}, 7).eval()


def test_parameters_by_part(model):
    parts = {name: count_parameters(part) for name, part in model.named_children()}
    assert parts == {
        "backbone": 2_223_872 + 4_007_548,
        "align": 2 * (1280 * 512 + 2 * 512),
        # 1x1, three 3x3 and the pooled 1x1 from 512 to 256; 1x1 from 1280 to 256; BatchNorm behind each
        "aspp": 512 * 256 * (1 + 27 + 1) + 1280 * 256 + 6 * 2 * 256,
        "excite": 2 * 256 * 16,
        "classifier": 256 * 128 + 128 + 128 * 7 + 7,
    }
    assert sum(parts.values()) == 11_718_019


def test_aspp_is_that_of_torchvision():
    """Theirs has a dropout of 0.5 behind it, which evaluation switches off."""
    torch.manual_seed(0)
    ours, theirs = ASPP(8, 4).eval(), TorchvisionASPP(8, [6, 12, 18], 4).eval()
    with torch.no_grad():
        for tensor in [*theirs.parameters(), *theirs.buffers()]:
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    mine, other = ours.state_dict(), theirs.state_dict()
    assert [tensor.shape for tensor in mine.values()] == [tensor.shape for tensor in other.values()]
    ours.load_state_dict(dict(zip(mine, other.values(), strict=True)))
    features = torch.randn(2, 8, 14, 14)
    torch.testing.assert_close(ours(features), theirs(features))


def test_the_two_branches_are_multiplied(model):
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        branches = [
            functional.relu(model.align[name].bn(model.align[name].conv(model.backbone[name](images))))
            for name in ("mobilenet", "efficientnet")
        ]
        scales = model.aspp(branches[0] * branches[1])
        squeezed = scales.mean(dim=(2, 3))
        excited = (squeezed @ model.excite.fc1.weight[:, :, 0, 0].T).relu() @ model.excite.fc2.weight[:, :, 0, 0].T
        expected = scales * excited.sigmoid()[:, :, None, None]
        torch.testing.assert_close(model.feature_map(images), expected)
        torch.testing.assert_close(model(images), model.classifier(expected.mean(dim=(2, 3))))


@pytest.mark.parametrize(("stride", "side"), [(32, 7), (16, 14)])
def test_output_stride(stride, side):
    with torch.device("meta"):
        model = build_model("emas", {"output_stride": stride}, 7)
        assert count_parameters(model) == 11_718_019
        assert model.feature_map(torch.empty(2, 3, 224, 224)).shape == (2, 256, side, side)


def test_the_wide_dilations_see_something_only_on_fine_maps():
    """At 7x7 only the centre tap of dilations 12 and 18 lies on the map; at 14x14 dilation 12 has others."""
    aspp = ASPP(2, 2)
    for side, dilation, seen in (
        (7, 1, True),
        (7, 2, False),
        (7, 3, False),
        (14, 2, True),
        (14, 3, False),
        (20, 3, True),
    ):
        weight = aspp.branches[dilation].conv.weight
        weight.grad = None
        aspp.branches[dilation].conv(torch.randn(1, 2, side, side)).square().sum().backward()
        others = weight.grad.clone()
        others[:, :, 1, 1] = 0
        assert bool(others.abs().max() > 0) == seen, (side, dilation)


def test_a_batch_of_one_trains_and_leaves_the_pooled_statistics():
    model = build_model("emas", {}, 2)
    norm = model.aspp.pooled[2]
    before = norm.running_mean.clone()
    model(torch.randn(1, 3, 64, 64)).sum().backward()
    assert torch.equal(norm.running_mean, before)
    assert model.aspp.pooled[1].weight.grad.abs().max() > 0
    model(torch.randn(2, 3, 64, 64))
    assert not torch.equal(norm.running_mean, before)


def test_both_backbones_want_the_same_pixels(model):
    assert isinstance(model.backbone, nn.ModuleDict)
    one, other = model.backbone.values()
    assert (one.pixel_mean, one.pixel_std) == (other.pixel_mean, other.pixel_std)
    assert model.pixel_mean == one.pixel_mean == (0.485, 0.456, 0.406)
