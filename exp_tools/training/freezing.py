"""The parameters that learn in each epoch: the head alone at first, then part of the backbone or all of it.

What is frozen is fully frozen: BatchNorm uses the statistics that it has and gathers no others; nothing drops out.
"""

from torch import nn

from exp_tools.errors import UserError
from exp_tools.models.backbone import batch_norms
from exp_tools.params import TrainParams


def phase_of(epoch: int, params: TrainParams) -> str:
    """The phase of an epoch, counted from 1: "frozen" for the first `frozen_epochs`, then "tuned"."""
    return "frozen" if epoch <= params.frozen_epochs else "tuned"


def apply_phase(model: nn.Module, epoch: int, params: TrainParams) -> bool:
    """Set which parameters of a model learn in an epoch, and tell whether that changed any.

    Outside `model.backbone` all do. Of the backbone none does in a frozen epoch; in others its last parameters, in the
    order of `parameters()`, whole tensors, as many as make up at least the share `unfreeze`; of two backbones side by
    side (a ModuleDict), the same share of each. With `freeze_norm` the backbone's BatchNorm layers never learn.

    Raises
    ------
    UserError
        freeze_norm is set, and the backbone has no BatchNorm.
    """
    share = 0.0 if phase_of(epoch, params) == "frozen" else params.unfreeze
    backbone = model.backbone
    parts = backbone.values() if isinstance(backbone, nn.ModuleDict) else [backbone]
    resting = set().union(*(_all_but_the_last(list(part.parameters()), share) for part in parts))
    if params.freeze_norm:
        if not (norms := batch_norms(backbone)):
            raise UserError("train.freeze_norm: this backbone has no BatchNorm to freeze; set it to false")
        resting |= {id(parameter) for norm in norms for parameter in norm.parameters()}
    changed = False
    for parameter in model.parameters():
        learns = id(parameter) not in resting
        changed |= parameter.requires_grad != learns
        parameter.requires_grad_(learns)
    return changed


def train_mode(model: nn.Module, params: TrainParams) -> None:
    """Put a model into training mode, except for the modules of its backbone whose parameters are all frozen.

    A module without parameters does as the nearest one around it that has some; BatchNorm rests with `freeze_norm`.
    """
    model.train()
    _rest_where_frozen(model.backbone)
    for norm in batch_norms(model.backbone) if params.freeze_norm else ():
        norm.eval()


def _all_but_the_last(parameters: list[nn.Parameter], share: float) -> set[int]:
    """Ids of the parameters that are left when the last ones, at least `share` of all numbers, are taken."""
    wanted = share * sum(parameter.numel() for parameter in parameters)
    taken = 0
    while parameters and taken < wanted:
        taken += parameters.pop().numel()
    return {id(parameter) for parameter in parameters}


def _rest_where_frozen(module: nn.Module) -> None:
    learning = [parameter.requires_grad for parameter in module.parameters()]
    if learning and not any(learning):
        module.eval()
    elif learning:
        for child in module.children():
            _rest_where_frozen(child)
