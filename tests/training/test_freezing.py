"""Frozen means frozen: weights, BatchNorm statistics, dropout; and the share that is unfrozen is the last one."""

import pytest
import torch
from torch import nn

from exp_tools.errors import UserError
from exp_tools.models.registry import build_model
from exp_tools.training.freezing import apply_phase, phase_of, train_mode


@pytest.fixture
def settings(params):
    return params.train.model_copy(update={"epochs": 5, "frozen_epochs": 2, "unfreeze": 0.3})


class Small(nn.Module):
    """A backbone of 4·3 + 3, 3 + 3 and 3·2 + 2 parameters, and a head; dropout and BatchNorm in either part of it."""

    def __init__(self):
        super().__init__()
        first = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.BatchNorm1d(3, affine=False))
        last = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2))
        self.backbone = nn.Sequential(first, nn.Dropout(0.5), last)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2), nn.Linear(2, 2))

    def forward(self, x):
        return self.head(self.backbone(x))


def learning(module):
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


def active(module):
    return {name for name, part in module.named_modules() if part.training}


def a_few_steps(model, size=32):
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        model(torch.randn(4, 3, size, size, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def copy_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(module, before):
    return [name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])]


def test_phases_are_counted_from_one(settings):
    assert [phase_of(epoch, settings) for epoch in (1, 2, 3, 5)] == ["frozen", "frozen", "tuned", "tuned"]
    assert phase_of(1, settings.model_copy(update={"frozen_epochs": 0})) == "tuned"


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_resnet"])
def test_training_the_head_leaves_every_byte_of_the_backbone(settings, backbone):
    model = build_model("timm", {"backbone": backbone}, 3)
    before, head = copy_of(model.backbone), copy_of(model.classifier)
    assert any(name.endswith("running_mean") for name in before)
    for epoch in (1, 2):
        apply_phase(model, epoch, settings)
        train_mode(model, settings)
        a_few_steps(model)
    assert changed(model.backbone, before) == []
    assert changed(model.classifier, head) == ["weight", "bias"]


def test_the_unfrozen_end_learns_and_the_rest_stays(settings):
    model = build_model("timm", {"backbone": "test_efficientnet"}, 3)
    before = copy_of(model.backbone)
    apply_phase(model, 3, settings)
    train_mode(model, settings)
    a_few_steps(model)
    names = list(before)
    moved = changed(model.backbone, before)
    first = names.index(moved[0])
    assert first > 0
    assert moved == names[first:]  # statistics of BatchNorm among them


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, []),
        (2 / 29, ["2.2.bias"]),
        (3 / 29, ["2.2.weight", "2.2.bias"]),
        (8 / 29, ["2.2.weight", "2.2.bias"]),
        (0.3, ["2.0.bias", "2.2.weight", "2.2.bias"]),
        (1.0, ["0.0.weight", "0.0.bias", "2.0.weight", "2.0.bias", "2.2.weight", "2.2.bias"]),
    ],
)
def test_the_last_share_of_29_parameters_is_unfrozen(settings, share, expected):
    model = Small()
    apply_phase(model, 3, settings.model_copy(update={"unfreeze": share}))
    assert learning(model.backbone) == expected
    assert len(learning(model.head)) == 4


def test_of_two_backbones_the_same_share_of_each_is_unfrozen(settings):
    model = build_model("emas", {}, 3)
    for share in (0.0, 0.3, 1.0):
        apply_phase(model, 3, settings.model_copy(update={"unfreeze": share}))
        for part in model.backbone.values():
            counts = [(parameter.numel(), parameter.requires_grad) for parameter in part.parameters()]
            found = sum(count for count, learns in counts if learns) / sum(count for count, _ in counts)
            assert share <= found <= share + 0.15, share


def test_apply_phase_tells_of_changes(settings):
    model = Small()
    assert [apply_phase(model, epoch, settings) for epoch in range(1, 6)] == [True, False, True, False, False]
    whole = settings.model_copy(update={"frozen_epochs": 0, "unfreeze": 1.0})
    assert not apply_phase(Small(), 1, whole)


def test_in_the_frozen_phase_only_the_head_is_in_training_mode(settings):
    model = Small().eval()
    apply_phase(model, 1, settings)
    train_mode(model, settings)
    assert active(model) == {"", "head", "head.0", "head.1", "head.2"}


def test_parts_without_parameters_follow_what_they_stand_in(settings):
    model = Small()
    apply_phase(model, 3, settings.model_copy(update={"unfreeze": 8 / 29}))  # of the backbone the last layer alone
    train_mode(model, settings)
    assert active(model.backbone) == {"", "1", "2", "2.1", "2.2"}
    apply_phase(model, 3, settings.model_copy(update={"unfreeze": 1.0}))
    train_mode(model, settings)
    assert active(model) == {name for name, _ in model.named_modules()}


def test_frozen_norms_keep_statistics_scale_and_shift_while_the_rest_learns(settings):
    model = build_model("timm", {"backbone": "test_efficientnet"}, 3)
    frozen = settings.model_copy(update={"freeze_norm": True, "unfreeze": 1.0})
    norms = {name for name, part in model.backbone.named_modules() if isinstance(part, nn.BatchNorm2d)}
    before = copy_of(model.backbone)
    assert len(norms) > 5
    assert [apply_phase(model, epoch, frozen) for epoch in (1, 2, 3, 4)] == [True, False, True, False]
    train_mode(model, frozen)
    a_few_steps(model)
    assert set(changed(model.backbone, before)) == {name for name in before if name.rpartition(".")[0] not in norms}
    assert model.backbone.training


def test_frozen_norms_without_parameters_rest_too_and_those_of_the_head_do_not(settings):
    model, frozen = Small(), settings.model_copy(update={"freeze_norm": True, "unfreeze": 1.0})
    apply_phase(model, 3, frozen)
    train_mode(model, frozen)
    everything = {name for name, _ in model.named_modules()}
    assert active(model) == everything - {"backbone.0.2", "backbone.2.0"}
    assert "head.1" in active(model)


def test_a_backbone_without_batchnorm_has_none_to_freeze(settings):
    model = build_model("timm", {"backbone": "test_vit"}, 3)
    with pytest.raises(UserError, match=r"train\.freeze_norm: this backbone has no BatchNorm"):
        apply_phase(model, 1, settings.model_copy(update={"freeze_norm": True}))
    apply_phase(model, 1, settings)
