"""A training step never waits for the device: shown on torch's `meta` device, which has no numbers to give back.

Reading a value there is an error, and so is a copy back to the processor; uploads are counted.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from exp_tools.models.registry import build_model
from exp_tools.training.interrupts import StopRequest
from exp_tools.training.loader import Setup, TrainingData
from exp_tools.training.trainer import Trainer

META = torch.device("meta")


MADE_OF_NUMBERS = (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)
"""Each copies a list to the device and waits for it."""


class Copies(TorchDispatchMode):
    """Counts copies from the processor to the device, and those of them that wait."""

    def __init__(self):
        super().__init__()
        self.all, self.waiting = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.name()
        if name in ("aten::_to_copy", "aten::copy_"):
            target = kwargs.get("device") or args[0].device
            origin = args[0] if name == "aten::_to_copy" else args[1]
            if torch.device(target).type == "meta" and origin.device.type == "cpu" and origin.ndim:
                self.all += 1
                asynchronous = kwargs.get("non_blocking") or (name == "aten::copy_" and len(args) > 2 and args[2])
                if not asynchronous:
                    self.waiting.append(tuple(origin.shape))
        return function(*args, **kwargs)


class Constants(TorchFunctionMode):
    """Notes tensors that are made on the device of Python's numbers."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if function in MADE_OF_NUMBERS and made.device == META:
            self.shapes.append(tuple(made.shape))
        return made


@contextmanager
def uploads() -> Iterator[Copies]:
    """What goes to the device meanwhile; `waiting` is whole at the end."""
    with Constants() as constants, Copies() as copies:
        yield copies
    copies.waiting += constants.shapes


@pytest.fixture
def trained_on(packed, params, monkeypatch):
    """Builds a trainer whose device is `meta`, after one step that makes the optimizer's state."""
    monkeypatch.setattr(Accelerator, "device", property(lambda self: META))
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": generator())  # there is none for meta

    def make(name="soft_attention", *, on_device=False, **changes):
        AcceleratorState._reset_state(reset_partial_state=True)
        path, labels = packed
        metadata = np.zeros((8, 3), dtype=np.float32)
        data = TrainingData(path, labels, np.arange(8), np.arange(8), list("abcd"), list("ABCDEFGH"), metadata)
        knobs = {"multimodal": {"sexes": 2, "localizations": 3}}.get(name, {})
        network = build_model(name, {"backbone": "test_resnet"} | knobs, 4)
        settings = params.train.model_copy(update={"batch_size": 4, **changes})
        setup = Setup(META, augment_on_device=on_device)
        trainer = Trainer(network, data, settings, setup, None, StopRequest(), print)
        trainer.runner = trainer.network.train()
        trainer.step(1, [next(iter(trainer.loader))])
        return trainer

    return make


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mixup": 0.4, "cutmix": 1.0, "ema": 0.9, "class_weights": "balanced", "label_smoothing": 0.1},
        {"loss": "focal", "optimizer": "sgd", "layer_decay": None, "freeze_norm": True},
        {"name": "multimodal", "mixup": 0.4},
    ],
    ids=str,
)
def test_a_step_never_waits_for_the_device(trained_on, changes, on_device):
    trainer = trained_on(on_device=on_device, **changes)
    batches = list(trainer.loader)[:2]
    with uploads() as seen:
        trainer.step(1, batches[:1])
    assert seen.waiting == []
    assert seen.all >= (1 if on_device else 2)


def test_the_images_of_an_epoch_come_from_the_device(trained_on):
    trainer = trained_on(on_device=True)
    with uploads() as seen:
        assert [batch.images.device for batch in trainer.loader] == [META, META]
    assert seen.waiting == []


def test_a_value_that_is_read_back_is_noticed():
    with pytest.raises(RuntimeError):
        float(torch.zeros((), device=META))
    with uploads() as seen:
        torch.zeros(3).to(META)
        torch.zeros(4).to(META, non_blocking=True)
        torch.zeros(2, device=META).new_tensor([1, 2, 3, 4, 5])
    assert (seen.all, seen.waiting) == (2, [(3,), (5,)])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("on_device", [False, True])
def test_a_gpu_is_never_waited_for(packed, params, on_device):
    path, labels = packed
    AcceleratorState._reset_state(reset_partial_state=True)
    data = TrainingData(path, labels, np.arange(8), np.arange(8), list("abcd"), list("ABCDEFGH"))
    settings = params.train.model_copy(update={"batch_size": 4, "precision": "bf16"})
    setup = Setup(torch.device("cuda"), "bf16", augment_on_device=on_device)
    network = build_model("soft_attention", {"backbone": "test_resnet"}, 4)
    trainer = Trainer(network, data, settings, setup, None, StopRequest(), print)
    trainer.runner = trainer.network.train()
    for batch in trainer.loader:  # plans, buffers, the optimizer's state
        trainer.step(1, [batch])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in trainer.loader:
            trainer.step(2, [batch])
    finally:
        torch.cuda.set_sync_debug_mode("default")
