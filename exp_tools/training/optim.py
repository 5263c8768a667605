"""The optimizer, and the learning rate as a function of the step."""

import math
from dataclasses import asdict, dataclass

import torch
from torch import nn

from exp_tools.params import TrainParams


def make_optimizer(model: nn.Module, params: TrainParams) -> torch.optim.Optimizer:
    """AdamW, Adam or SGD with Nesterov's momentum, over all parameters, also those that are frozen now.

    Weight decay leaves biases, normalisation and scalars such as soft attention's γ alone: all that has one dimension.
    AdamW shrinks the weights themselves; Adam and SGD add the decay to the gradient.
    """
    parameters = list(model.parameters())
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": params.weight_decay},
    ]
    if params.optimizer == "sgd":
        # Not fused: that kernel fails when some parameters are unfrozen after others have gathered momentum.
        return torch.optim.SGD(groups, lr=params.lr, momentum=params.momentum, nesterov=params.momentum > 0)
    kind = torch.optim.AdamW if params.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=params.lr, eps=params.eps, fused=parameters[0].device.type in ("cpu", "cuda"))


def learning_rate(step: int, *, steps_an_epoch: int, params: TrainParams, plateau_factor: float = 1.0) -> float:
    """Learning rate of a step of the optimizer.

    Parameters
    ----------
    step : steps done before it, over the whole run
    steps_an_epoch : steps of the optimizer, not batches
    params : constant in the frozen epochs, at frozen_lr; then the schedule, over the epochs that remain
    plateau_factor : see Plateau; of the schedule "plateau" alone
    """
    first = params.frozen_epochs * steps_an_epoch
    if step < first:
        return params.frozen_lr or params.lr
    step, total = step - first, (params.epochs - params.frozen_epochs) * steps_an_epoch
    if params.schedule == "one_cycle":
        return _one_cycle(step, total, params.lr)
    if params.schedule == "warm_restarts":
        length = params.restart_epochs * steps_an_epoch
        while step >= length:
            step, length = step - length, length * params.restart_factor
        return _half_cosine(params.lr, params.min_lr, step / length)

    top = max(params.min_lr, params.lr * plateau_factor) if params.schedule == "plateau" else params.lr
    warmup = params.warmup_epochs * steps_an_epoch
    if step < warmup:
        return top * (step + 1) / (warmup + 1)
    if params.schedule == "cosine":
        return _half_cosine(top, params.min_lr, (step - warmup) / (total - warmup))
    return top


def _half_cosine(start: float, end: float, share: float) -> float:
    """From start to end along half a cosine; `share` of the way, 0..1."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


def _one_cycle(step: int, total: int, lr: float) -> float:
    """From lr / 25 up to lr over 30 % of the steps, then down to lr / 250,000 (torch's OneCycleLR at its defaults).

    Smith and Topin, Super-Convergence, arXiv 1708.07120; the momentum stays as it is.
    """
    peak, last = 0.3 * total - 1, total - 1
    start, end = lr / 25, lr / 25 / 1e4
    if step <= peak:
        return _half_cosine(start, lr, step / peak)
    return _half_cosine(lr, end, (step - peak) / (last - peak))


@dataclass
class Plateau:
    """State of the schedule "plateau", which lowers the learning rate when a score no longer rises.

    factor : what the learning rate is multiplied with
    best : highest score so far
    bad_epochs : epochs since then, or since the last cut
    """

    factor: float = 1.0
    best: float = -math.inf
    bad_epochs: int = 0

    def update(self, goodness: float, params: TrainParams) -> None:
        """Take in the score of an epoch, higher is better; the epoch after plateau_patience bad ones, if bad, cuts."""
        if goodness > self.best:
            self.best, self.bad_epochs = goodness, 0
        else:
            self.bad_epochs += 1
        if self.bad_epochs > params.plateau_patience:
            self.factor, self.bad_epochs = self.factor * params.plateau_factor, 0

    def state(self) -> dict[str, float]:
        """Plain numbers, for from_state."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, float]) -> "Plateau":
        return cls(**state)
