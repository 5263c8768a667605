"""Gradient checkpointing remembers less and changes no byte; where it cannot be, a line says so."""

import copy

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from exp_tools.errors import UserError
from exp_tools.models.recompute import recompute_activations, statistics_at_rest
from exp_tools.models.registry import build_model

BACKBONES = ["test_resnet", "resnet10t", "tf_efficientnet_lite0", "test_vit", "convnext_atto"]


def remembered(model, images):
    """Output of a forward pass, and the bytes that it keeps for the backward pass, parameters and copies aside."""
    kept = {parameter.data_ptr() for parameter in model.parameters()}
    sizes = {}

    def note(tensor):
        if tensor.data_ptr() not in kept:
            sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        out = model(images)
    return out, sum(sizes.values())


@pytest.mark.parametrize("backbone", BACKBONES)
def test_it_remembers_less_and_learns_the_same(backbone):
    torch.manual_seed(0)
    plain = build_model("timm", {"backbone": backbone, "drop_path": 0.2, "dropout": 0.1}, 3).train()
    lean = copy.deepcopy(plain)
    recompute_activations(lean)
    images = torch.randn(4, 3, 64, 64)
    memory = {}
    for model in (plain, lean):
        torch.manual_seed(1)  # of dropout and stochastic depth
        out, memory[model] = remembered(model, images)
        with statistics_at_rest(model):
            out.square().sum().backward()
    assert memory[lean] < 0.9 * memory[plain]
    for (name, one), other in zip(plain.named_parameters(), lean.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name
    for name, tensor in plain.state_dict().items():  # BatchNorm's statistics and its count of batches
        assert torch.equal(tensor, lean.state_dict()[name]), name


def test_batchnorm_goes_on_counting_afterwards():
    model = build_model("timm", {"backbone": "test_resnet"}, 3).train()
    with statistics_at_rest(model):
        pass
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(torch.randn(2, 3, 64, 64))
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if "running" in name or "num_batches" in name}


@pytest.mark.parametrize(
    ("name", "knobs", "fault"),
    [
        (
            "timm",
            {"backbone": "vgg11"},
            r"vgg11 cannot compute its activations twice \(gradient checkpointing not supp.*another backbone",
        ),
        (
            "soft_attention",
            {"backbone": "resnet18", "place": "inner"},
            r"resnet18 cannot .* \(with place inner\); set it to false or take place last",
        ),
    ],
)
def test_what_cannot_be_is_refused(name, knobs, fault):
    with torch.device("meta"):
        model = build_model(name, knobs, 3)
    with pytest.raises(UserError, match=rf"train\.checkpointing: {fault}"):
        recompute_activations(model)


def test_both_backbones_of_two_are_switched():
    model = build_model("emas", {}, 3)
    recompute_activations(model)
    assert [part.network.grad_checkpointing for part in model.backbone.values()] == [True, True]
