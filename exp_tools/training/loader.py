"""Batches for training: the loader, the order it follows, and a batch size that fits."""

import copy
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn
from torch.utils.data import DataLoader

from exp_tools.data.inputs.augment import magnitudes
from exp_tools.data.inputs.dataset import Batch, EpochOrder, PackedImages
from exp_tools.errors import UserError
from exp_tools.models.device_images import DeviceImages
from exp_tools.models.normalize import network_inputs
from exp_tools.params import TrainParams
from exp_tools.training.distributed import ProcessGroup
from exp_tools.training.losses import class_counts, class_weights


@dataclass(frozen=True)
class TrainingData:
    """The data that training may use.

    images : images.npy
    labels : class index of every row, int [N]
    train, val : rows of the two splits
    classes : names, in the order of the logits
    image_ids : name of every row, for messages
    metadata : float32 [N, 3], see metadata.encode, for a network that uses it
    """

    images: Path
    labels: np.ndarray
    train: np.ndarray
    val: np.ndarray
    classes: list[str]
    image_ids: Sequence[str]
    metadata: np.ndarray | None = None


@dataclass(frozen=True)
class Setup:
    """Where and how to compute: device, "fp32", "bf16" or "fp16", loader processes, steps between two saved states, and
    whether images lie on the device and are augmented there, without loader processes."""

    device: torch.device
    precision: str = "fp32"
    workers: int = 0
    checkpoint_steps: int | None = None
    augment_on_device: bool = False


LARGEST_BATCH, LEAST_BATCH = 1024, 8
LEAST_STEPS = 50
"""Steps of an epoch that `train.batch_size: auto` leaves, where that takes no batch below LEAST_BATCH."""
PROCESSOR_BATCH = 32
"""On a processor a larger batch is not faster, and memory that is out cannot be caught there."""


def make_loader(
    data: TrainingData,
    params: TrainParams,
    setup: Setup,
    images: torch.Tensor | None = None,
    *,
    rank: int = 0,
    world: int = 1,
) -> tuple[DataLoader | DeviceImages, EpochOrder]:
    """The training loader and the order it follows; call `order.set_epoch` before each pass.

    `images` are those that `device_images.upload` has sent to the device, where they are augmented then.

    Raises UserError when a class has no image in train, or a batch of one image is to be mixed.
    """
    if (params.mixup or params.cutmix) and params.batch_size < 2 * world:
        name = "train.mixup" if params.mixup else "train.cutmix"
        raise UserError(
            f"{name} mixes the images of a batch, and a process gets a single one at train.batch_size "
            f"{params.batch_size}: raise train.batch_size, or set {name} to 0"
        )
    labels = data.labels[data.train]
    class_counts(labels, data.classes)
    weights = None
    if params.sampler != "none":
        weights = class_weights(labels, data.classes, params.sampler)[labels]
    order = EpochOrder(data.train, params.batch_size, seed=params.seed, weights=weights, rank=rank, world=world)
    limits = magnitudes(params.augment)
    if images is not None:
        return DeviceImages(images, order, data.labels, limits, params.seed, data.metadata), order
    loader = DataLoader(
        PackedImages(data.images, data.labels, limits, params.seed, data.metadata),
        batch_sampler=order,
        collate_fn=to_tensors,
        num_workers=setup.workers,
        persistent_workers=setup.workers > 0,
        pin_memory=setup.device.type == "cuda",
        worker_init_fn=start_worker,
        generator=torch.Generator().manual_seed(params.seed),
    )
    return loader, order


def to_tensors(batch: Batch) -> Batch:
    """The arrays of a batch as tensors that share their memory."""
    return Batch(*(torch.from_numpy(array) for array in batch))


def start_worker(worker: int) -> None:
    """Leave a loader process one thread, since there is one for each core, and signals to the main process.

    A worker that dies of Ctrl-C, or of a SIGTERM to all processes, would break the step that the main process is
    about to finish. A SIGTERM from that process itself still ends it."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_main_process_says_so, daemon=True).start()


def _end_when_the_main_process_says_so() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != multiprocessing.parent_process().pid:
        pass
    os._exit(0)


def groups(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Batches in lists of `size`, the last one perhaps shorter."""
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group


def resolve_batch_size(network: nn.Module, data: TrainingData, setup: Setup, team: ProcessGroup) -> int:
    """The largest power of two that survives a training step on the GPU, up to LARGEST_BATCH, and leaves LEAST_STEPS an
    epoch; a processor takes 32 at most.

    Over several processes the size is that of the whole batch.
    """
    most = max(1, PROCESSOR_BATCH // team.world) if setup.device.type == "cpu" else LARGEST_BATCH
    share = len(data.train) // (LEAST_STEPS * team.world)
    size = min(most, max(LEAST_BATCH, 1 << (share.bit_length() - 1) if share else 1))
    if setup.device.type == "cpu":
        return size * team.world
    while size > 1:
        try:
            try_step(network, data, setup, size)
            break
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            size //= 2
        finally:
            clear_device_cache(garbage_collection=True)
    return min(team.gather(size)) * team.world


def try_step(network: nn.Module, data: TrainingData, setup: Setup, size: int) -> None:
    """Forward, backward and an AdamW step of a copy on `size` images; raises the device's own error."""
    trial = copy.deepcopy(network).train()
    optimizer = torch.optim.AdamW(trial.parameters())
    images = np.load(data.images, mmap_mode="r")
    pixels = torch.zeros((size, *images.shape[1:]), dtype=torch.uint8)
    inputs = network_inputs(trial, pixels, torch.zeros(size, 3), setup.device)
    lower = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(setup.precision)
    with torch.autocast(setup.device.type, dtype=lower, enabled=lower is not None):
        loss = trial(*inputs).float().square().mean()
    loss.backward()
    optimizer.step()
