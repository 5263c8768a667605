"""Optimizer and learning-rate schedule."""

import math

import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from exp_tools.params import TrainParams


def make_optimizer(model: nn.Module, params: TrainParams) -> torch.optim.Optimizer:
    """AdamW; weight decay leaves biases, normalisation and scalars such as soft attention's γ alone."""
    groups = param_groups_weight_decay(model, params.weight_decay)
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=params.lr, fused=fused)


def learning_rate_factor(step: int, *, steps_an_epoch: int, params: TrainParams) -> float:
    """Share of train.lr at a step: a linear rise over the warm-up, then constant or half a cosine to zero."""
    warmup = params.warmup_epochs * steps_an_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if params.schedule == "constant":
        return 1.0
    total = params.epochs * steps_an_epoch
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))


def make_schedule(optimizer: torch.optim.Optimizer, params: TrainParams, steps_an_epoch: int):
    """The schedule as a torch scheduler that advances once a step."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, steps_an_epoch=steps_an_epoch, params=params)
    )
