"""The state of a training run: its progress, everything needed to resume, and its results."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer

from exp_tools.params import TrainParams
from exp_tools.training.optim import Plateau

Scores = dict[str, float]


@dataclass(frozen=True)
class Fitted:
    """The result of training: the best epoch (from 1), its validation scores and logits, epochs run, batch size.

    The model itself holds the best weights; `logits` [N, C] are its outputs on the validation images, in their order.
    """

    best_epoch: int
    best_scores: Scores
    logits: np.ndarray
    epochs_run: int
    batch_size: int


@dataclass
class Progress:
    """Progress of a run: steps done in the epoch under way, the loss and weight that this process added to it so far,
    scores of the epochs before."""

    step: int = 0
    loss: float = 0.0
    weight: float = 0.0
    history: list[Scores] = field(default_factory=list)
    best_epoch: int = 0
    best_goodness: float = -np.inf

    def is_over(self, params: TrainParams) -> bool:
        """Whether all epochs are run, or the score has not risen for `patience` epochs of the unfrozen phase."""
        epochs = len(self.history)
        unfrozen = params.frozen_epochs if params.unfreeze and params.frozen_epochs < params.epochs else 0
        since = max(self.best_epoch, unfrozen)
        return epochs >= params.epochs or (params.patience is not None and epochs - since >= params.patience)

    def shown(self) -> dict[str, Any]:
        """An unfinished run as `exp-tools runs` shows it."""
        best = abs(self.best_goodness) if self.best_epoch else None
        return {"epoch": len(self.history), "step": self.step, "best_epoch": self.best_epoch, "best_score": best}


def pack_state(
    progress: Progress,
    sums: list[tuple[float, float]],
    *,
    batch_size: int,
    network: nn.Module,
    optimizer: Optimizer,
    plateau: Plateau,
    ema: ModelEmaV3 | None,
    scaler: torch.amp.GradScaler | None,
) -> dict[str, Any]:
    """Everything needed to resume, as one dictionary of tensors and numbers.

    sums : loss and weight of the epoch under way, of each process
    """
    return {
        "batch_size": batch_size,
        "progress": asdict(progress),
        "sums": sums,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "plateau": plateau.state(),
        "ema": ema.module.state_dict() if ema is not None else {},
        "scaler": scaler.state_dict() if scaler is not None else {},
    }


def unpack_state(
    state: dict[str, Any],
    *,
    rank: int,
    network: nn.Module,
    optimizer: Optimizer,
    ema: ModelEmaV3 | None,
    scaler: torch.amp.GradScaler | None,
) -> tuple[Progress, Plateau]:
    """Put a packed state back into the parts of a run; returns the two that are made new."""
    progress = Progress(**state["progress"])
    progress.loss, progress.weight = state["sums"][rank]
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    if ema is not None:
        ema.module.load_state_dict(state["ema"])
    if scaler is not None:
        scaler.load_state_dict(state["scaler"])
    return progress, Plateau.from_state(state["plateau"])


def is_finite(network: nn.Module) -> bool:
    """Whether all weights and statistics of a network are finite numbers."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values())


def seed_from(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
