"""The optimizer, and the learning rate as a function of the step."""

import math
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase

import torch
from timm.models import group_parameters
from torch import nn

from exp_tools.errors import UserError
from exp_tools.models.backbone import Backbone, timm_networks
from exp_tools.params import TrainParams


def make_optimizer(model: nn.Module, params: TrainParams) -> torch.optim.Optimizer:
    """AdamW, Adam or SGD with Nesterov's momentum, over all parameters, also those that are frozen now.

    Weight decay leaves biases, normalisation and scalars such as soft attention's γ alone: all that has one dimension;
    and what timm names in a network's no_weight_decay (tables of positions, tokens). AdamW shrinks the weights
    themselves; Adam and SGD add the decay to the gradient.

    A group's "lr_scale" is what its learning rate is multiplied with: 1, or less for a backbone with layer_decay.

    Raises
    ------
    UserError
        layer_decay is set, and timm does not know the order of a backbone's layers.
    """
    parameters = dict(model.named_parameters())
    spared = _spared(model) | {name for name, parameter in parameters.items() if parameter.ndim <= 1}
    scales = {} if params.layer_decay is None else _layer_scales(model, params.layer_decay)
    members: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        members.setdefault((scales.get(name, 1.0), name not in spared), []).append(parameter)
    groups = [
        {"params": some, "weight_decay": params.weight_decay if decayed else 0.0, "lr_scale": scale}
        for (scale, decayed), some in sorted(members.items(), key=lambda item: item[0])
    ]
    if params.optimizer == "sgd":
        # Not fused: that kernel fails when some parameters are unfrozen after others have gathered momentum.
        return torch.optim.SGD(groups, lr=params.lr, momentum=params.momentum, nesterov=params.momentum > 0)
    kind = torch.optim.AdamW if params.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=params.lr, eps=params.eps, fused=next(model.parameters()).device.type in ("cpu", "cuda"))


def _spared(model: nn.Module) -> set[str]:
    """Parameters that the model's timm networks want no weight decay for; timm names some by patterns."""
    found = set()
    for place, network in timm_networks(model).items():
        patterns = network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()
        for name, _ in network.named_parameters():
            if any(fnmatchcase(name, pattern) for pattern in patterns):
                found.add(f"{place}.{name}")
    return found


def _layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """The factor of each parameter of the backbones: `decay` for the last layer, its square for the one before, ...

    Layers are timm's group_matcher's. The factors are those of timm's param_groups_layer_decay, which counts the head
    as the last layer; here it is outside, with factor 1.
    """
    scales = {}
    for place, backbone in ((name, part) for name, part in model.named_modules() if isinstance(part, Backbone)):
        network = backbone.network
        if not hasattr(network, "group_matcher"):
            raise UserError(
                f"train.layer_decay: timm does not know the order of the layers of {type(network).__name__}; set it to "
                "null or take another backbone"
            )
        whole = backbone.with_head()
        depths = group_parameters(whole, whole.group_matcher(coarse=False), reverse=True)
        last = max(depths.values())
        own = dict(network.named_parameters())
        scales |= {f"{place}.network.{name}": decay ** (last - depth) for name, depth in depths.items() if name in own}
    return scales


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
