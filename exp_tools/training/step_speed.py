"""Measure the training speed of the chosen model in each precision on this machine, for people to read."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from exp_tools.data.inputs.metadata import Vocabulary
from exp_tools.devices import prepare_machine, resolve_precision
from exp_tools.models.normalize import network_inputs
from exp_tools.models.recompute import recompute_activations
from exp_tools.models.registry import build_model, depthwise_share, metadata_knobs
from exp_tools.params import Params
from exp_tools.training.optim import make_optimizer

LOWER = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = {"cpu": ("fp32", "bf16"), "mps": ("fp32", "bf16"), "cuda": ("fp32", "bf16", "fp16")}
CLASSES = 7
MOST_IMAGES = 16
"""Images of a batch at most, so that the answer comes in seconds: the ratio between precisions hardly depends on it."""
PATIENTS = Vocabulary(50.0, 1.0, 50.0, ("female", "male", "unknown"), ("back", "unknown"))
"""For networks that take metadata."""
REPEATS = 5
CLEAR = 1.1
"""A difference in speed that is worth a change of parameters."""


class Speed(NamedTuple):
    """Images per second of one training step, by precision, and which precision `train.precision` takes now."""

    rates: dict[str, float]
    batch: int
    used: str

    @property
    def best(self) -> str:
        """The fastest precision; the one in use unless another is clearly faster."""
        fastest = max(self.rates, key=self.rates.__getitem__)
        return fastest if self.rates[fastest] > CLEAR * self.rates[self.used] else self.used


def measure(params: Params, repeats: int = REPEATS) -> Speed:
    """Time steps of the chosen model on random images: forward, backward and optimizer, in turns, medians.

    Parameters
    ----------
    params : model, prepare.image_size, train and machine are used; weights are random
    repeats : timed steps in each precision

    Raises
    ------
    UserError : as `build_model`; a precision or a device that this machine does not have
    """
    device = prepare_machine(params.machine)
    batch = MOST_IMAGES if params.train.batch_size == "auto" else min(params.train.batch_size, MOST_IMAGES)
    name, size = params.model.name, params.prepare.image_size
    knobs = params.model.architecture | metadata_knobs(name, PATIENTS)
    used = resolve_precision(params.train.precision, device, partial(depthwise_share, name, knobs, size))
    step = _step(params, knobs, device, batch)
    times: dict[str, list[float]] = {precision: [] for precision in PRECISIONS[device.type]}
    for turn in range(repeats + 1):
        for precision in times:
            start = time.perf_counter()
            step(precision)
            if turn:  # the first step makes plans and buffers
                times[precision].append(time.perf_counter() - start)
    return Speed({name: batch / statistics.median(taken) for name, taken in times.items()}, batch, used)


def _step(params: Params, knobs: dict[str, Any], device: torch.device, batch: int) -> Callable[[str], None]:
    """A training step in the precision that it is called with."""
    torch.manual_seed(0)
    model = build_model(params.model.name, knobs, CLASSES).train()
    model = model.to(device, memory_format=torch.channels_last if params.train.channels_last else None)
    if params.train.checkpointing:
        recompute_activations(model)
    optimizer = make_optimizer(model, params.train)
    size = params.prepare.image_size
    images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8)
    inputs = network_inputs(model, images, torch.zeros(batch, 3), device)
    labels = torch.arange(batch, device=device) % CLASSES

    def step(precision: str) -> None:
        lower = LOWER.get(precision)
        with torch.autocast(device.type, dtype=lower, enabled=lower is not None):
            loss = cross_entropy(model(*inputs).float(), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # a GPU is waited for

    return step
