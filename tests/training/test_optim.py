"""Schedules are torch's own, decay spares what it should, and optimizers survive the unfreezing of a backbone."""

import numpy as np
import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.optim import lr_scheduler

from exp_tools.errors import UserError
from exp_tools.models.registry import build_model
from exp_tools.training.optim import Plateau, learning_rate, make_optimizer

STEPS = 5
SCHEDULES = ("constant", "cosine", "warm_restarts", "one_cycle", "plateau")


@pytest.fixture
def settings(params):
    """Twelve epochs, no warm-up."""
    return params.train.model_copy(update={"epochs": 12, "lr": 0.1, "warmup_epochs": 0, "min_lr": 0.001})


def change(settings, **changes):
    return settings.model_copy(update=changes)


def rates(settings, **options):
    return [
        learning_rate(step, steps_an_epoch=STEPS, params=settings, **options) for step in range(settings.epochs * STEPS)
    ]


def rates_of_torch(settings, make_schedule):
    """Learning rate at each step of a run under one of torch's schedules."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=settings.lr)
    schedule = make_schedule(optimizer)
    found = []
    for _ in range(settings.epochs * STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_cosine_is_torchs(settings):
    total = settings.epochs * STEPS
    theirs = rates_of_torch(settings, lambda own: lr_scheduler.CosineAnnealingLR(own, T_max=total, eta_min=0.001))
    np.testing.assert_allclose(rates(change(settings, schedule="cosine")), theirs, rtol=1e-9)


@pytest.mark.parametrize(("first", "factor"), [(2, 2), (3, 1), (20, 2)])
def test_warm_restarts_are_torchs(settings, first, factor):
    def make(optimizer):
        return lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=first * STEPS, T_mult=factor, eta_min=0.001)

    ours = rates(change(settings, schedule="warm_restarts", restart_epochs=first, restart_factor=factor))
    np.testing.assert_allclose(ours, rates_of_torch(settings, make), rtol=1e-9)


@pytest.mark.parametrize("epochs", [1, 2, 12])
def test_one_cycle_is_torchs(settings, epochs):
    settings = change(settings, schedule="one_cycle", epochs=epochs)

    def make(optimizer):
        # torch takes one step ahead, and refuses it after the last
        cycle = lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=epochs * STEPS, cycle_momentum=False)
        advance = cycle.step
        cycle.step = lambda: advance() if cycle.last_epoch < epochs * STEPS - 1 else None
        return cycle

    np.testing.assert_allclose(rates(settings), rates_of_torch(settings, make), rtol=1e-9)


def test_one_cycle_of_a_single_step_has_a_rate(settings):
    once = change(settings, schedule="one_cycle", epochs=1)
    assert 0 < learning_rate(0, steps_an_epoch=1, params=once) <= 0.1


@pytest.mark.parametrize("schedule", ["constant", "cosine", "plateau"])
def test_warm_up_rises_evenly_to_the_top(settings, schedule):
    found = rates(change(settings, schedule=schedule, warmup_epochs=2))
    np.testing.assert_allclose(found[:11], 0.1 * np.arange(1, 12) / 11)
    if schedule == "cosine":
        assert found[35] == pytest.approx((0.1 + 0.001) / 2)
        assert np.all(np.diff(found[10:]) < 0)
    else:
        assert set(found[10:]) == {0.1}


def test_a_run_that_is_all_warm_up_only_rises(settings):
    found = rates(change(settings, schedule="cosine", warmup_epochs=20.5))
    np.testing.assert_allclose(found, 0.1 * np.arange(1, 61) / 103.5)


def test_only_the_plateau_schedule_heeds_the_plateau(settings):
    for schedule in SCHEDULES:
        chosen = change(settings, schedule=schedule)
        if schedule == "plateau":
            assert set(rates(chosen, plateau_factor=0.25)) == {0.025}
            assert set(rates(chosen, plateau_factor=1e-4)) == {0.001}
        else:
            assert rates(chosen, plateau_factor=0.25) == rates(chosen)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("frozen_lr", "expected"), [(0.02, 0.02), (None, 0.1)])
def test_after_the_frozen_epochs_the_schedule_starts_anew(settings, schedule, frozen_lr, expected):
    chosen = change(settings, schedule=schedule, warmup_epochs=1)
    found = rates(change(chosen, frozen_epochs=4, frozen_lr=frozen_lr))
    assert found[: 4 * STEPS] == [expected] * 4 * STEPS
    assert found[4 * STEPS :] == rates(change(chosen, epochs=8))


def test_a_run_that_stays_frozen_keeps_the_frozen_rate(settings):
    head_alone = change(settings, frozen_epochs=12, unfreeze=0.0, frozen_lr=0.02)
    assert set(rates(head_alone)) == {0.02}


def test_plateau_is_torchs(settings):
    settings = change(settings, schedule="plateau", epochs=60, plateau_factor=0.5, plateau_patience=2)
    scores = np.random.default_rng(1).random(60).round(1)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=settings.lr)
    theirs = lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", threshold=0, factor=0.5, patience=2, min_lr=0.001, eps=0
    )
    plateau = Plateau()
    for epoch, score in enumerate(scores):
        rate = learning_rate(epoch * STEPS, steps_an_epoch=STEPS, params=settings, plateau_factor=plateau.factor)
        assert rate == optimizer.param_groups[0]["lr"]
        theirs.step(score)
        plateau.update(score, settings)
        plateau = Plateau.from_state(plateau.state())
    assert rate == 0.001


def test_plateau_by_hand(settings):
    settings = change(settings, plateau_factor=0.1, plateau_patience=1)
    plateau, factors = Plateau(), []
    for score in (0.5, 0.5, 0.6, 0.6, 0.1, 0.2, 0.3):
        plateau.update(score, settings)
        factors.append(plateau.factor)
    np.testing.assert_allclose(factors, [1, 1, 1, 1, 0.1, 0.1, 0.01])
    assert plateau.state() == {"factor": pytest.approx(0.01), "best": 0.6, "bad_epochs": 0}


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("adamw", 2 * (1 - 0.1 * 0.5)),  # decay apart from the gradient, which is zero
        ("adam", 2 - 0.1),  # a gradient of 0.5 · 2, divided by its own size
        ("sgd", 2 - 0.1 * (1 + 0.9) * 0.5 * 2),  # and Nesterov's look ahead
    ],
)
def test_weight_decay_by_hand_and_only_on_matrices(settings, optimizer, expected):
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 2.0)
    nn.init.constant_(model.bias, 2.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    make_optimizer(model, change(settings, optimizer=optimizer, weight_decay=0.5, momentum=0.9)).step()
    assert model.weight.item() == pytest.approx(expected)
    assert model.bias.item() == 2.0


@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
def test_eps_damps_small_gradients(settings, optimizer):
    model = nn.Linear(1, 1)
    before = model.bias.item()
    model.bias.grad = torch.full((1,), 0.1)
    make_optimizer(model, change(settings, optimizer=optimizer, eps=0.1)).step()
    assert before - model.bias.item() == pytest.approx(0.1 * 0.1 / (0.1 + 0.1))


def test_sgd_without_momentum_is_plain_descent(settings):
    model = nn.Linear(1, 1)
    before = model.bias.item()
    model.bias.grad = torch.ones(1)
    make_optimizer(model, change(settings, optimizer="sgd", momentum=0.0)).step()
    assert before - model.bias.item() == pytest.approx(0.1)


def test_weight_decay_spares_scalars_biases_and_norms(settings):
    model = build_model("soft_attention", {"backbone": "test_resnet"}, 4)
    groups = make_optimizer(model, settings).param_groups
    bare = {id(parameter) for group in groups if group["weight_decay"] == 0 for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in bare) == (parameter.ndim <= 1), name


@pytest.mark.parametrize(
    ("backbone", "tables"),
    [
        ("vit_tiny_patch16_224", {"pos_embed", "cls_token"}),
        ("swin_tiny_patch4_window7_224", {"layers.3.blocks.1.attn.relative_position_bias_table"}),
        ("swinv2_tiny_window8_256", {"layers.0.blocks.0.attn.logit_scale"}),
        ("xcit_nano_12_p16_224", {"pos_embed.token_projection.weight"}),  # timm names a pattern
    ],
)
def test_weight_decay_spares_what_timm_says(settings, backbone, tables):
    with torch.device("meta"):
        model = build_model("timm", {"backbone": backbone}, 4)
    bare = {
        id(parameter)
        for group in make_optimizer(model, settings).param_groups
        if group["weight_decay"] == 0
        for parameter in group["params"]
    }
    spared = {name for name, parameter in model.backbone.network.named_parameters() if id(parameter) in bare}
    assert tables <= spared
    assert {name for name in spared if name.endswith(("qkv.weight", "fc1.weight"))} == set()
    assert id(model.classifier.weight) not in bare


def scale_of(model, settings):
    """Factor of the learning rate of each parameter, by its id."""
    groups = make_optimizer(model, settings).param_groups
    return {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}


@pytest.mark.parametrize("backbone", ["test_vit", "resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_layer_decay_is_timms(settings, backbone):
    with torch.device("meta"):
        model = build_model("timm", {"backbone": backbone}, 4)
        whole = timm.create_model(backbone, num_classes=4)
    theirs = param_groups_layer_decay(whole, layer_decay=0.8)
    expected = {id(parameter): group["lr_scale"] for group in theirs for parameter in group["params"]}
    scales = scale_of(model, change(settings, layer_decay=0.8))
    ours = dict(model.backbone.network.named_parameters())
    assert len({scales[id(parameter)] for parameter in ours.values()}) > 4
    for name, parameter in whole.named_parameters():
        if name in ours:
            assert scales[id(ours[name])] == pytest.approx(expected[id(parameter)]), name
    assert scales[id(model.classifier.weight)] == scales[id(model.classifier.bias)] == 1
    assert set(scale_of(model, settings).values()) == {1.0}


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("emas", {}),
        ("efficientnet_v2", {}),
        ("multimodal", {"backbone": "test_resnet"}),
        ("soft_attention", {"backbone": "resnet18", "place": "inner"}),
    ],
)
def test_in_every_architecture_heads_learn_fully_and_early_layers_least(settings, name, knobs):
    with torch.device("meta"):
        model = build_model(name, knobs, 4)
    scales = scale_of(model, change(settings, layer_decay=0.5))
    assert scales.keys() == {id(parameter) for parameter in model.parameters()}
    inside = {id(parameter) for parameter in model.backbone.parameters()}
    assert {scale for key, scale in scales.items() if key not in inside} == {1.0}
    parts = model.backbone.values() if isinstance(model.backbone, nn.ModuleDict) else [model.backbone]
    for part in parts:
        found = [scales[id(parameter)] for parameter in part.parameters()]
        assert max(found) == 0.5
        assert found[0] == min(found) < 0.1


def test_a_backbone_whose_layers_have_no_order_is_refused(settings):
    with torch.device("meta"):
        model = build_model("timm", {"backbone": "pit_ti_224"}, 4)
    with pytest.raises(
        UserError, match=r"train\.layer_decay: timm does not know .* PoolingVisionTransformer; set it to"
    ):
        make_optimizer(model, change(settings, layer_decay=0.8))


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_frozen_parameters_rest_and_learn_once_unfrozen(settings, optimizer):
    head, backbone = nn.Linear(1, 1), nn.Linear(1, 1).requires_grad_(False)
    before = backbone.weight.item()
    made = make_optimizer(nn.Sequential(backbone, head), change(settings, optimizer=optimizer))
    for frozen in (True, False):
        backbone.requires_grad_(not frozen)
        head(backbone(torch.ones(1, 1))).sum().backward()
        made.step()
        made.zero_grad()
        assert (backbone.weight.item() == before) == frozen
