"""Ending a run cleanly: signals, diverged losses, full memory."""

import contextlib
import os
import signal
from collections.abc import Iterator

from exp_tools.errors import UserError
from exp_tools.params import TrainParams


class StopRequest:
    """Remembers SIGTERM or SIGINT while it is entered, so that training ends after the step at hand.

    A second signal acts as it always does: at once. Not under torchrun, where each process may get two for one: a
    cluster signals all processes of a job, and then the launcher signals its own.
    """

    def __init__(self):
        self.signal: int = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.signal = number
        if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun passes its own SIGTERM on, and ends who does not obey
            return
        for other, handler in self._before.items():
            signal.signal(other, handler)


def divergence(epoch: int, step: int, images: list[str], rate: float, params: TrainParams, precision: str) -> UserError:
    """The error for a loss that is infinite or NaN.

    Parameters
    ----------
    epoch, step : when, both from 1
    images : ids of the images in that batch
    rate : learning rate of the step
    params, precision : parameters of the run, and its floating-point format
    """
    cures = []
    if (epoch, step) == (1, 1):
        cures.append("it is the very first loss, so look at model.weights first: they may hold NaN or infinite")
    if precision == "fp16":
        cures.append("fp16 overflows above 65,504: set train.precision to bf16 or fp32")
    cures.append(f"the learning rate was {rate:.3g}: lower train.lr or lengthen train.warmup_epochs")
    if params.clip_norm is None:
        cures.append("gradients are not limited: set train.clip_norm to 1.0")
    shown = ", ".join(images[:4]) + (f" and {len(images) - 4} more" if len(images) > 4 else "")
    return UserError(
        f"the loss became NaN or infinite (epoch {epoch}, step {step}; batch: {shown}): training diverged. "
        "What was saved before is kept. What may help:\n  - " + "\n  - ".join(cures)
    )


def advice_on_batch(size: int, images: int, params: TrainParams) -> str:
    """What `train.batch_size: auto` took, and what that means for the learning rate.

    Goyal et al., arXiv:1706.02677, for SGD; Malladi et al., NeurIPS 2022, arXiv:2205.10287, for Adam.
    """
    factor = f"{size}/B" if params.optimizer == "sgd" else f"the root of {size}/B"
    return (
        f"train.batch_size auto: {size} images a batch, {-(-images // size)} batches an epoch. train.lr {params.lr:g} "
        f"is taken as it is: one that was found with batches of B images wants a factor of {factor}"
    )


@contextlib.contextmanager
def advice_on_memory(params: TrainParams, found: int | None = None) -> Iterator[None]:
    """Turn an out-of-memory error of the device into one that names the parameters to change.

    `found` is the batch size where train.batch_size is auto.
    """
    from accelerate.utils.memory import should_reduce_batch_size

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
            raise
        if params.batch_size == "auto":
            size, first = f"{found} (found by auto)" if found else "auto", "set it to a smaller number"
        else:
            size = str(params.batch_size)
            first = "halve it and double train.accumulate (the same images per step), or set train.batch_size to auto"
        raise UserError(
            f"out of memory at train.batch_size {size}: {first}, or lower prepare.image_size, or take a smaller "
            f"backbone; train.precision bf16 halves what activations need, and train.checkpointing remembers fewer of "
            f"them. ({error})"
        ) from error


@contextlib.contextmanager
def advice_on_disk() -> Iterator[None]:
    """Turn an error of writing the training curves into one with a remedy."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the training curves could not be written ({error}). Make room on the disk; the same command resumes from "
            "the last saved state"
        ) from error
