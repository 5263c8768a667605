"""Fit the head of a probe on features that are computed already: the encoders rest, so it takes seconds.

Every setting that is tried (a penalty, a number of neighbours, an epoch) is a step, and is scored on validation; the
best by `train.select_on` is kept. After `train.patience` settings without a better score the rest is not tried (all
numbers of neighbours are: they cost nothing).

Features are standardised by the mean and deviation of the training images, and what was learnt is folded back, so that
the head takes features as the encoders give them.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from exp_tools.data.inputs.dataset import EpochOrder
from exp_tools.errors import UserError
from exp_tools.evaluation.validation import validation_scores
from exp_tools.params import TrainParams
from exp_tools.training.loader import PROCESSOR_BATCH, TrainingData
from exp_tools.training.losses import class_weights, make_loss, one_hot, weighted_targets
from exp_tools.training.optim import Plateau, learning_rate, make_optimizer
from exp_tools.training.state import Fitted, Scores

PENALTIES = tuple(10 ** (1 - place / 2) for place in range(13))
"""λ of (λ / 2) |W|² next to the mean loss, 10 to 10⁻⁵: strong ones first, each fit starts where the last ended."""
NEIGHBOURS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
MOST_STEPS = 100
"""Of L-BFGS for a penalty."""
OFF = {"mixup": 0, "cutmix": 0, "ema": None}
"""Settings of training that need the images, or an average over many steps, and the values that turn them off."""
OFF_FOR_NEIGHBOURS = {"loss": "cross_entropy", "label_smoothing": 0}

Trial = tuple[dict[str, float], Tensor]
"""What a setting is and what is logged of it, and logits of validation [N, C]; the head holds the setting."""


def check_settings(params: TrainParams, head: str) -> None:
    """Raise UserError for a setting of training that a probe cannot honour."""
    for key, off in (OFF | (OFF_FOR_NEIGHBOURS if head == "knn" else {})).items():
        if (value := getattr(params, key)) != off:
            why = "nearest neighbours minimise no loss" if key in OFF_FOR_NEIGHBOURS else "its encoders are frozen"
            told = "null" if off is None else off
            raise UserError(
                f"train.{key} is {value}, which a probe with a {head} head cannot do: {why}; set it to {told}"
            )


def fit_probe(
    model: nn.Module,
    features: np.ndarray,
    data: TrainingData,
    params: TrainParams,
    *,
    on_step: Callable[[int, Scores], None] = lambda step, scores: None,
) -> tuple[Fitted, dict[str, Any]]:
    """Fit the head of a probe and leave the best one in it.

    Parameters
    ----------
    model : as build_model("probe", …) makes it
    features : of the rows data.train and then data.val, float32 [N, D]
    data : labels, rows and metadata
    params : the section `train`
    on_step : called for each setting with its number, from 1, and its scores

    Returns
    -------
    The best setting as `Fitted`, its logits those of the head that is kept; and the knobs that it decided

    Raises
    ------
    UserError
        A class is missing from train, or as `check_settings`.
    """
    kind = "knn" if hasattr(model.head, "reference") else "mlp" if isinstance(model.head, nn.Sequential) else "linear"
    check_settings(params, kind)
    metadata = None if data.metadata is None else torch.from_numpy(data.metadata[np.r_[data.train, data.val]])
    joined = model.join(torch.from_numpy(features), metadata)
    train, val = joined[: len(data.train)], joined[len(data.train) :]
    trials = {"linear": _linear, "knn": _neighbours, "mlp": _mlp}[kind]
    mean, scale = (torch.zeros(1), torch.ones(1)) if kind == "knn" else _standard(train)
    labels = data.labels[data.val]
    best: dict[str, Any] = {}
    step = 0
    for step, (facts, logits) in enumerate(
        trials(model.head, (train - mean) / scale, (val - mean) / scale, data, params), start=1
    ):
        scores = validation_scores(logits.numpy(), labels, data.classes)
        logged = {"train/lr": 0.0} | {name: value for name, value in facts.items() if name not in _DECIDED}
        on_step(step, logged | {f"val/{name}": value for name, value in scores.items()})
        goodness = -scores["loss"] if params.select_on == "loss" else scores[params.select_on]
        if not best or goodness > best["goodness"]:
            best = {"goodness": goodness, "step": step, "head": copy.deepcopy(model.head.state_dict()), "facts": facts}
        elif kind != "knn" and params.patience is not None and step - best["step"] >= params.patience:
            break
    model.head.load_state_dict(best["head"])
    if kind == "knn":
        model.head.neighbours = int(best["facts"]["neighbours"])
    else:
        _fold(model.head if kind == "linear" else model.head[0], mean, scale)
    with torch.inference_mode():
        logits = model.head(val).numpy()
    decided = {name: value for name, value in best["facts"].items() if name in _DECIDED}
    scores = validation_scores(logits, labels, data.classes)
    return Fitted(best["step"], scores, logits, epochs_run=step, batch_size=_batch_size(kind, data, params)), decided


_DECIDED = ("penalty", "neighbours")
"""No curves: a file that only probes have in metrics/train would stay there when Git goes back to another model.

And one that dvc.yaml draws must be there: a head without steps has the learning rate 0.
"""


def _standard(train: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each feature [D]; 1 for one that is the same everywhere."""
    scale, mean = torch.std_mean(train, dim=0, correction=0)
    return mean, torch.where(scale > 1e-6, scale, 1.0)


def _fold(layer: nn.Linear, mean: Tensor, scale: Tensor) -> None:
    """Let a layer that was fitted to standardised features take them as they are."""
    with torch.no_grad():
        weight = layer.weight.double() / scale
        layer.bias.copy_(layer.bias.double() - weight @ mean.double())
        layer.weight.copy_(weight)


def _batch_size(kind: str, data: TrainingData, params: TrainParams) -> int:
    if kind != "mlp":
        return len(data.train)
    return PROCESSOR_BATCH if params.batch_size == "auto" else params.batch_size


def _targets(data: TrainingData, params: TrainParams, *rules: Any) -> tuple[Tensor, Tensor]:
    """Targets of the loss [N, C], weighted by the rules together and smoothed, and each image's weight [N]."""
    labels = data.labels[data.train]
    weights = np.prod([class_weights(labels, data.classes, rule) for rule in rules], axis=0)
    plain = one_hot(torch.from_numpy(labels).long(), len(data.classes))
    targets = weighted_targets(plain, torch.from_numpy(weights).float(), params.label_smoothing)
    return targets, targets.sum(1)


def _linear(head: nn.Linear, train: Tensor, val: Tensor, data: TrainingData, params: TrainParams) -> Iterator[Trial]:
    """Multinomial logistic regression for each of PENALTIES; a sampler is a weight here, with the same expectation.

    L-BFGS in the coordinates of the features' principal axes, each scaled by the loss's curvature along it (at most a
    quarter of the variance, plus the penalty): 14 to 100 evaluations for a penalty instead of many hundreds.
    """
    targets, weights = _targets(data, params, params.sampler, params.class_weights)
    loss_of, total = make_loss(params), weights.sum()
    variance, axes = torch.linalg.eigh((train * (weights / total)[:, None]).T.double() @ train.double())
    used = variance > 1e-7 * variance[-1]  # along the others the best weight is zero
    variance, axes = variance[used].float(), axes[:, used].float()
    along = train @ axes
    weight, bias = torch.zeros(len(data.classes), len(variance)), torch.zeros(len(data.classes), requires_grad=True)
    for penalty in PENALTIES:
        scale = (variance / 4 + penalty).rsqrt()
        scaled = (weight / scale).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [scaled, bias],
            max_iter=MOST_STEPS,
            tolerance_grad=1e-6,
            tolerance_change=1e-6,
            line_search_fn="strong_wolfe",
        )

        def loss_at(weight: Tensor) -> Tensor:
            return loss_of(along @ weight.T + bias, targets).sum() / total

        def objective(scaled: Tensor = scaled, scale: Tensor = scale, penalty: float = penalty) -> Tensor:
            scaled.grad = bias.grad = None
            loss = loss_at(scaled * scale) + penalty / 2 * (scaled * scale).square().sum()
            loss.backward()
            return loss

        with _one_thread():
            optimizer.step(objective)
        with torch.no_grad():
            weight = scaled * scale
            head.weight.copy_(weight @ axes.T)
            head.bias.copy_(bias)
            yield {"penalty": penalty, "train/loss": float(loss_at(weight))}, head(val)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Products with as few columns as there are classes wait for memory: a second thread would wait for the first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _neighbours(
    head: nn.Module, train: Tensor, val: Tensor, data: TrainingData, params: TrainParams
) -> Iterator[Trial]:
    """Weighted votes of as many neighbours as NEIGHBOURS says; a sampler is a weight of votes here."""
    targets, _ = _targets(data, params, params.sampler, params.class_weights)
    with torch.inference_mode():
        head.reference.copy_(head.unit(train))
        head.votes.copy_(targets)
        tried = sorted({min(neighbours, len(train)) for neighbours in NEIGHBOURS})
        similarity, places = head.nearest(val, tried[-1])
        for neighbours in tried:
            yield {"neighbours": neighbours}, head.count(similarity[:, :neighbours], places[:, :neighbours])


def _mlp(head: nn.Module, train: Tensor, val: Tensor, data: TrainingData, params: TrainParams) -> Iterator[Trial]:
    """One hidden layer, trained as the section `train` says: optimizer, schedule, epochs, batches, sampler."""
    params = params.model_copy(update={"frozen_epochs": 0})
    targets, weights = _targets(data, params, params.class_weights)
    drawn = None
    if params.sampler != "none":
        labels = data.labels[data.train]
        drawn = class_weights(labels, data.classes, params.sampler)[labels]
    batch_size = _batch_size("mlp", data, params)
    order = EpochOrder(np.arange(len(train)), batch_size, seed=params.seed, weights=drawn)
    loss_of, plateau = make_loss(params), Plateau()
    optimizer = make_optimizer(head, params)
    labels = data.labels[data.val]
    for epoch in range(params.epochs):
        order.set_epoch(epoch + 1)
        lost = weighed = 0.0
        for step, keys in enumerate(order):
            rows = [key.index for key in keys]
            rate = learning_rate(
                epoch * len(order) + step, steps_an_epoch=len(order), params=params, plateau_factor=plateau.factor
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, weight = loss_of(head(train[rows]), targets[rows]).sum(), weights[rows].sum()
            (loss / weight).backward()
            if params.clip_norm is not None:
                nn.utils.clip_grad_norm_(head.parameters(), params.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            lost, weighed = lost + float(loss.detach()), weighed + float(weight)
        with torch.inference_mode():
            logits = head(val)
        if params.schedule == "plateau":
            scores = validation_scores(logits.numpy(), labels, data.classes)
            plateau.update(-scores["loss"] if params.select_on == "loss" else scores[params.select_on], params)
        yield {"train/loss": lost / weighed, "train/lr": rate}, logits
