"""The training loop.

For each epoch: draw an order, and for each batch augment, normalise on the device, step; then score the validation
split, keep the weights if they are the best so far, and stop when they have not been for a while. The test split is
never seen here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from exp_tools.data.augment import magnitudes
from exp_tools.data.dataset import Batch, EpochOrder, PackedImages
from exp_tools.errors import UserError
from exp_tools.evaluation.calibration import fit_temperature, softmax
from exp_tools.evaluation.metrics import headline_metrics
from exp_tools.evaluation.predict import predict_logits
from exp_tools.models.inputs import normalise
from exp_tools.params import TrainParams
from exp_tools.training.losses import class_counts, class_weights, make_loss
from exp_tools.training.optim import make_optimizer, make_schedule

Scores = dict[str, float]
SHOWN_SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auc")


@dataclass(frozen=True)
class TrainingData:
    """Packed images, the class index of every row, the rows of the two splits that training may see, class names."""

    images: Path
    labels: np.ndarray
    train: np.ndarray
    val: np.ndarray
    classes: list[str]


@dataclass(frozen=True)
class Fitted:
    """What training found: the best epoch (from 1), its validation scores, the temperature, and the epochs run.

    The model itself holds the best weights.
    """

    best_epoch: int
    best_scores: Scores
    temperature: float
    epochs_run: int


def fit(
    model: nn.Module,
    data: TrainingData,
    params: TrainParams,
    *,
    device: torch.device,
    precision: str,
    workers: int = 0,
    on_epoch: Callable[[int, Scores], None] = lambda epoch, scores: None,
) -> Fitted:
    """Train a model and leave its best weights in it.

    Parameters
    ----------
    model : maps normalised images to logits; has pixel_mean and pixel_std
    data, params : see there
    device, precision : where and in what numbers ("fp32", "bf16", "fp16") to compute
    workers : loader processes; the result does not depend on it
    on_epoch : called after each epoch with its number, from 1, and its scores

    Raises
    ------
    UserError
        A class is missing from train, or the loss is no longer a finite number.
    """
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        step_scheduler_with_optimizer=False,
    )
    loader, order = make_loader(data, params, workers=workers, pin=device.type == "cuda")
    if params.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, params)
    schedule = make_schedule(optimizer, params, len(loader))
    loss_of = make_loss(params.balance, data.labels[data.train], data.classes, params.label_smoothing).to(device)
    run_model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)

    best: tuple[float, int, Scores, dict[str, Tensor], np.ndarray] | None = None
    with tqdm(total=params.epochs * len(loader), desc="train", unit="step", disable=None) as progress:
        for epoch in range(1, params.epochs + 1):
            order.set_epoch(epoch)
            rate = optimizer.param_groups[0]["lr"]
            loss = train_epoch(accelerator, run_model, loader, loss_of, optimizer, schedule, params, epoch, progress)
            logits = predict_logits(
                model, data.images, data.val, batch_size=2 * params.batch_size, device=device, precision=precision
            )
            scores = validation_scores(logits, data)
            on_epoch(epoch, {"train/loss": loss, "train/lr": rate, **{f"val/{name}": scores[name] for name in scores}})
            progress.set_postfix({"loss": f"{loss:.3f}", f"val {params.select_on}": f"{scores[params.select_on]:.3f}"})
            goodness = -scores["loss"] if params.select_on == "loss" else scores[params.select_on]
            if best is None or goodness > best[0]:
                weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
                best = (goodness, epoch, scores, weights, logits)
            elif params.patience is not None and epoch - best[1] >= params.patience:
                break
    _, best_epoch, best_scores, weights, logits = best
    model.load_state_dict(weights)
    temperature = fit_temperature(logits, data.labels[data.val])
    return Fitted(best_epoch, best_scores, temperature, epoch)


def train_epoch(accelerator, model, loader, loss_of, optimizer, schedule, params, epoch, progress) -> float:
    """One pass over the loader; returns the mean loss over its images."""
    model.train()
    network = accelerator.unwrap_model(model)
    total, count = torch.zeros((), device=accelerator.device), 0
    for step, batch in enumerate(loader):
        images = normalise(batch.images, network.pixel_mean, network.pixel_std)
        with accelerator.autocast():
            logits = model(images)
        loss = loss_of(logits.float(), batch.labels)
        accelerator.backward(loss)
        if params.clip_norm is not None:
            accelerator.clip_grad_norm_(model.parameters(), params.clip_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        total += loss.detach() * len(batch.labels)
        count += len(batch.labels)
        progress.update()
        if step % 50 == 0 or step == len(loader) - 1:  # asking costs a wait for the GPU
            require_finite(total, epoch, step)
    return float(total) / count


def require_finite(loss: Tensor, epoch: int, step: int) -> None:
    """Raise UserError when the loss has become infinite or NaN."""
    if not torch.isfinite(loss):
        raise UserError(
            f"the loss is no finite number any more (epoch {epoch}, step {step}): training diverged. Lower train.lr, "
            "set train.clip_norm, lengthen train.warmup_epochs, or compute in train.precision fp32"
        )


def validation_scores(logits: np.ndarray, data: TrainingData) -> Scores:
    """Loss and headline scores on the validation split."""
    if not np.isfinite(logits).all():
        raise UserError(
            "the network's outputs on the validation split are not finite: training diverged; lower train.lr"
        )
    scores = headline_metrics(softmax(logits), data.labels[data.val], data.classes)
    return {"loss": scores["log_loss"], **{name: scores[name] for name in SHOWN_SCORES}}


def make_loader(
    data: TrainingData, params: TrainParams, *, workers: int = 0, pin: bool = False
) -> tuple[DataLoader, EpochOrder]:
    """The training loader and the order it follows; call `order.set_epoch` before each pass."""
    labels = data.labels[data.train]
    weights = None
    if params.balance == "weighted_sampler":
        weights = class_weights(labels, data.classes)[labels]
    else:
        class_counts(labels, data.classes)
    order = EpochOrder(data.train, params.batch_size, seed=params.seed, weights=weights)
    loader = DataLoader(
        PackedImages(data.images, data.labels, magnitudes(params.augment), params.seed),
        batch_sampler=order,
        collate_fn=to_tensors,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin,
        generator=torch.Generator().manual_seed(params.seed),
    )
    return loader, order


def to_tensors(batch: Batch) -> Batch:
    """The arrays of a batch as tensors that share their memory."""
    return Batch(*(torch.from_numpy(array) for array in batch))
