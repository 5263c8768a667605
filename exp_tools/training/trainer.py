"""The training loop.

For each epoch: draw an order, and for each step fetch its batches augmented, normalise them on the device, and move the
weights; then score the validation split, keep the weights if they are the best so far, save the state, and stop when
the score has not risen for a while. The test split is never seen here.

Everything drawn by chance is a function of (seed, epoch, position) or (seed, epoch, step, process), and of no generator
that lives on between steps. So no generator is saved, and a run that was killed any number of times ends with the bytes
of one that was not.

With several processes each sees its share of every batch; gradients are averaged; the loss is divided by the sum of the
weights of the step's images on all processes, so that N processes compute what one computes on the whole batch.
"""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from exp_tools.data.inputs.dataset import PADDING, Batch
from exp_tools.errors import Stopped
from exp_tools.evaluation.validation import validation_scores
from exp_tools.models.device_images import upload
from exp_tools.models.normalize import network_inputs
from exp_tools.models.recompute import recompute_activations, statistics_at_rest
from exp_tools.params import TrainParams
from exp_tools.training.checkpoints import RunStore
from exp_tools.training.distributed import ProcessGroup, predict_together, wrap
from exp_tools.training.freezing import apply_phase, train_mode
from exp_tools.training.interrupts import StopRequest, advice_on_batch, advice_on_disk, advice_on_memory, divergence
from exp_tools.training.loader import Setup, TrainingData, groups, make_loader, resolve_batch_size
from exp_tools.training.losses import class_weights, make_loss, one_hot, weighted_targets
from exp_tools.training.mixup import mix
from exp_tools.training.optim import Plateau, learning_rate, make_optimizer
from exp_tools.training.reporting import TrainingReport
from exp_tools.training.state import Fitted, Progress, Scores, is_finite, pack_state, seed_from, unpack_state

LOOK_EVERY = 50
"""Steps between two looks at the loss on a GPU, where each look waits for it; a processor looks at every step."""


def fit(
    model: nn.Module,
    data: TrainingData,
    params: TrainParams,
    setup: Setup,
    *,
    store: RunStore | None = None,
    stop: StopRequest | None = None,
    on_epoch: Callable[[int, Scores], None] = lambda epoch, scores: None,
) -> Fitted:
    """Train a model and leave its best weights in it.

    Parameters
    ----------
    model : as `registry.build_model` makes it
    data, setup : `loader.TrainingData` (images, labels, rows) and `loader.Setup` (device, precision, loader processes)
    params : the section `train`
    store : where the state is saved, and found again; None: nowhere
    stop : asked after every step whether to end
    on_epoch : called for each epoch with its number, from 1, and its scores, also for those that a resumed run has
        behind it; in the first process only

    Raises
    ------
    UserError
        A class is missing from train, the loss is no longer a finite number, or memory is out.
    Stopped
        A stop was requested; the state is saved.
    """
    with advice_on_memory(params):
        trainer = Trainer(model, data, params, setup, store, stop or StopRequest(), on_epoch)
    with advice_on_memory(params, found=trainer.params.batch_size):
        return trainer.run()


class Trainer:
    """One run of training; `fit` is its only user."""

    def __init__(self, model, data, params, setup, store, stop, on_epoch):
        threads = torch.get_num_threads()
        mixed = "no" if setup.precision == "fp32" else setup.precision
        self.accelerator = Accelerator(cpu=setup.device.type == "cpu", mixed_precision=mixed)
        torch.set_num_threads(threads)  # which accelerate changes where several processes meet
        self.team, self.device = ProcessGroup(), self.accelerator.device
        self.data, self.setup, self.stop, self.stopping, self.saved = data, setup, stop, False, False
        self.store = store if self.team.is_first else None
        self.on_epoch = on_epoch if self.team.is_first else lambda epoch, scores: None
        state = self.team.share(self.store.load() if self.store else None)

        network = model.to(self.device, memory_format=torch.channels_last if params.channels_last else None)
        if params.checkpointing:
            recompute_activations(network)
        # Before a batch size is tried: they take a part of the memory.
        images = upload(data.images, self.device) if setup.augment_on_device else None
        if params.batch_size == "auto":  # before BatchNorm waits for other processes, which may try another size
            found = state["batch_size"] if state else resolve_batch_size(network, data, setup, self.team)
            params = params.model_copy(update={"batch_size": found})
            if self.team.is_first:
                print(advice_on_batch(found, len(data.train), params), flush=True)
        several_gpus = self.team.world > 1 and self.device.type == "cuda"
        self.network = convert_sync_batchnorm(network) if several_gpus else network
        self.params = params
        share = {"rank": self.team.rank, "world": self.team.world}
        self.image_size = np.load(data.images, mmap_mode="r").shape[1]
        self.loader, self.order = make_loader(data, params, setup, images, **share)
        self.steps_an_epoch = -(-len(self.order) // params.accumulate)
        self.weights = torch.from_numpy(class_weights(data.labels[data.train], data.classes, params.class_weights))
        self.device_weights = self.weights.float().to(self.device)
        self.mix = partial(mix, mixup=params.mixup, cutmix=params.cutmix, seed=params.seed, rank=self.team.rank)
        self.loss_of = make_loss(params)
        self.optimizer = self.accelerator.prepare_optimizer(make_optimizer(self.network, params))
        self.plateau = Plateau()
        self.ema = None if params.ema is None else ModelEmaV3(self.network, params.ema, use_warmup=True)
        self.kept = self.network if self.ema is None else self.ema.module
        self.runner: nn.Module | None = None
        self.progress = Progress()
        self.best: dict[str, Any] = {}
        self.loss = torch.zeros((), device=self.device)
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=self.device)
        if state:
            self.restore(state)

    # --- epochs

    def run(self) -> Fitted:
        """Train to the end, from wherever the state is."""
        for epoch, scores in enumerate(self.progress.history, start=1):
            with advice_on_disk():
                self.on_epoch(epoch, scores)
        sizes = {"steps": self.steps_an_epoch, "images": len(self.data.train)}
        with TrainingReport(self.progress, self.params, **sizes, shown=self.team.is_first) as report:
            while not self.progress.is_over(self.params):
                self.run_epoch(report)
        self.network.load_state_dict(self.best["weights"])
        logits = self.best["logits"].numpy()
        return Fitted(
            best_epoch=self.progress.best_epoch,
            best_scores=validation_scores(logits, self.data.labels[self.data.val], self.data.classes),
            logits=logits,
            epochs_run=len(self.progress.history),
            batch_size=self.params.batch_size,
        )

    def run_epoch(self, report: TrainingReport) -> None:
        """Train the rest of an epoch, score validation, keep the best weights, save."""
        epoch, progress = 1 + len(self.progress.history), self.progress
        if apply_phase(self.network, epoch, self.params) or self.runner is None:
            self.runner = wrap(self.network, self.team, self.device, compiled=self.params.compile, size=self.image_size)
        train_mode(self.network, self.params)
        rate = self.rate(epoch, 0)
        self.loss.fill_(progress.loss)
        self.order.set_epoch(epoch, first=progress.step * self.params.accumulate)
        for batches in groups(self.loader, self.params.accumulate):
            self.step(epoch, batches)
            self.stopping |= self.team.world == 1 and self.stop.signal != 0
            report.step()
            if self.device.type == "cpu" or progress.step % LOOK_EVERY == 0:
                self.look(epoch)
            due = self.setup.checkpoint_steps and progress.step % self.setup.checkpoint_steps == 0
            if progress.step < self.steps_an_epoch and (due or self.stopping):
                self.save(epoch)
                self.end_if_asked(epoch)
        if self.team.add(float(self.stop.signal != 0)) != [0]:  # during the last step: validation may take long
            self.save(epoch)
            self.end_if_asked(epoch)
        loss = self.mean_loss(epoch)
        logits = self.predict()
        scores = validation_scores(logits, self.data.labels[self.data.val], self.data.classes)
        goodness = -scores["loss"] if self.params.select_on == "loss" else scores[self.params.select_on]
        if epoch > self.params.frozen_epochs:
            self.plateau.update(goodness, self.params)
        progress.history.append({"train/loss": loss, "train/lr": rate, **{f"val/{key}": scores[key] for key in scores}})
        progress.step, progress.loss, progress.weight = 0, 0.0, 0.0
        self.keep_if_best(epoch, goodness, logits)
        self.save(epoch)
        with advice_on_disk():
            self.on_epoch(epoch, progress.history[-1])
        report.epoch(loss, scores)
        if not self.progress.is_over(self.params):
            self.end_if_asked(epoch)

    def keep_if_best(self, epoch: int, goodness: float, logits: np.ndarray) -> None:
        """Remember the weights, and their outputs on validation, when no epoch before was as good."""
        if self.progress.best_epoch and not goodness > self.progress.best_goodness:
            return
        self.progress.best_epoch, self.progress.best_goodness = epoch, goodness
        weights = {name: tensor.detach().cpu().clone() for name, tensor in self.kept.state_dict().items()}
        self.best = {"weights": weights, "logits": torch.from_numpy(logits)}
        if self.store:
            self.store.save_best(epoch, self.best)

    # --- steps

    def step(self, epoch: int, batches: list[Batch]) -> None:
        """One optimizer step on one batch, or on several whose gradients add up."""
        params, step = self.params, self.progress.step
        count = len(self.data.classes)
        own = sum(float((one_hot(batch.labels, count) * self.weights).sum()) for batch in batches)
        total, asked = self.team.add(own, float(self.stop.signal != 0))
        self.stopping = asked > 0  # the same answer in all processes, or they would wait for each other
        torch.manual_seed(seed_from(params.seed, epoch, step, self.team.rank))  # of dropout
        for place, batch in enumerate(batches):
            images, *more = network_inputs(self.network, batch.images, batch.metadata, self.device)
            images = images if params.channels_last else images.contiguous()
            inputs, target = self.mix(
                (images, *more),
                one_hot(batch.labels.to(self.device, non_blocking=True), count),
                epoch=epoch,
                step=step * params.accumulate + place,
            )
            waits = place < len(batches) - 1  # gradients of several processes meet once, after the last batch
            with self.accelerator.no_sync(self.runner) if waits else contextlib.nullcontext():
                with self.accelerator.autocast():
                    logits = self.runner(*inputs)
                counted = weighted_targets(target, self.device_weights, params.label_smoothing)
                loss = self.loss_of(logits, counted).sum()
                with statistics_at_rest(self.network) if params.checkpointing else contextlib.nullcontext():
                    self.accelerator.backward(loss * (self.team.world / total))
            self.note_loss(loss.detach(), step * params.accumulate + place)
        self.progress.step += 1
        self.progress.weight += own
        if params.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.network.parameters(), params.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(epoch, step) * group["lr_scale"]
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.network, (epoch - 1) * self.steps_an_epoch + step + 1)

    def rate(self, epoch: int, step: int) -> float:
        """Learning rate of a step (from 0) of an epoch."""
        return learning_rate(
            (epoch - 1) * self.steps_an_epoch + step,
            steps_an_epoch=self.steps_an_epoch,
            params=self.params,
            plateau_factor=self.plateau.factor,
        )

    def note_loss(self, loss: Tensor, batch: int) -> None:
        """Add a batch's weighted loss; remember the first batch whose loss is not finite, without asking the GPU."""
        self.loss += loss
        bad = ~torch.isfinite(loss) & (self.first_bad < 0)
        self.first_bad = torch.where(bad, batch, self.first_bad)

    def look(self, epoch: int) -> None:
        """Raise UserError when a loss of this process was not finite."""
        if (batch := int(self.first_bad)) < 0:
            return
        step = batch // self.params.accumulate
        self.order.set_epoch(epoch, first=batch)
        rows = [key.index for key in next(iter(self.order)) if key.index != PADDING]
        images = [str(self.data.image_ids[row]) for row in rows]
        raise divergence(epoch, step + 1, images, self.rate(epoch, step), self.params, self.setup.precision)

    def mean_loss(self, epoch: int) -> float:
        """Weighted mean loss of the epoch over all processes."""
        self.look(epoch)
        loss, weight = self.team.add(float(self.loss), self.progress.weight)
        return loss / weight

    def predict(self) -> np.ndarray:
        """Logits of the validation split, by the weights that would be kept."""
        return predict_together(
            self.team,
            self.kept,
            self.data.images,
            self.data.val,
            len(self.data.classes),
            metadata=self.data.metadata,
            batch_size=2 * self.params.batch_size,
            device=self.device,
            precision=self.setup.precision,
        )

    # --- state

    def save(self, epoch: int) -> None:
        """Save everything needed to resume, unless a loss or a weight is NaN or infinite."""
        self.look(epoch)
        (asked,) = self.team.add(float(self.stop.signal != 0))
        self.stopping, self.saved = asked > 0, False
        self.progress.loss = float(self.loss) if self.progress.step else 0.0
        sums = self.team.gather((self.progress.loss, self.progress.weight))
        if not self.store or not is_finite(self.network):
            return
        state = pack_state(
            self.progress,
            sums,
            batch_size=self.params.batch_size,
            network=self.network,
            optimizer=self.optimizer,
            plateau=self.plateau,
            ema=self.ema,
            scaler=self.accelerator.scaler,
        )
        self.saved = self.store.save(state, self.progress.best_epoch, self.best, self.progress.shown())

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        self.progress, self.plateau = unpack_state(
            state,
            rank=self.team.rank,
            network=self.network,
            optimizer=self.optimizer,
            ema=self.ema,
            scaler=self.accelerator.scaler,
        )
        self.best = state["best"] or {}
        if self.team.is_first:
            print(f"resuming after epoch {len(self.progress.history)}, step {self.progress.step}", flush=True)

    def end_if_asked(self, epoch: int) -> None:
        """Raise Stopped when a process was asked to stop; a state that is kept has been saved by now."""
        if not self.stopping:
            return
        where = f"epoch {epoch}, step {self.progress.step or self.steps_an_epoch}"
        kept = f"the state is saved in {self.store and self.store.folder}, and the same command resumes from there"
        if not self.saved:
            kept = "this state could not be saved, one before it may be" if self.store else "no state is kept"
        message = f"stopped after {where}; {kept}" if self.team.is_first else ""
        raise Stopped(message, self.stop.signal or 15)
