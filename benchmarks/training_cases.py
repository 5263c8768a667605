"""Training and evaluation against the bare arithmetic, and an epoch against a plain user's."""

import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision.io import decode_image
from torchvision.transforms import v2

from benchmarks.case import Case, compare, seconds
from benchmarks.data_cases import plain_augmentation
from exp_tools.data.images.pack import pack_images
from exp_tools.data.images.preprocess import Preprocessing
from exp_tools.devices import augments_on_device, loader_workers, prepare_machine, resolve_precision
from exp_tools.evaluation.predict import predict_logits
from exp_tools.models.normalize import normalise
from exp_tools.models.registry import build_model, depthwise_share, metadata_knobs
from exp_tools.param_types import EncoderParams
from exp_tools.params import PARAMS_FILE, TrainParams, load_params
from exp_tools.probing.encoders import compute_features, make_encoder
from exp_tools.recipes import find_recipe, merged
from exp_tools.system import cores
from exp_tools.training.distributed import wrap
from exp_tools.training.freezing import apply_phase, train_mode
from exp_tools.training.interrupts import StopRequest
from exp_tools.training.loader import Setup, TrainingData, groups
from exp_tools.training.losses import make_loss, one_hot, weighted_targets
from exp_tools.training.optim import make_optimizer
from exp_tools.training.step_speed import PATIENTS
from exp_tools.training.trainer import Trainer, fit

CLASSES = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
LOWER = {"bf16": torch.bfloat16, "fp16": torch.float16}
TRAINING_SECONDS = 60
"""Of a training case; the largest networks are measured less often."""
BEST_OF = (16, 32, 64, 128)
"""Batch sizes of which evaluation is held against the fastest."""


@dataclass(frozen=True)
class Bench:
    """What is trained on what: the packed images, a batch of `batch`, and where to compute."""

    images: Path
    count: int
    size: int
    batch: int
    setup: Setup

    @property
    def device(self) -> torch.device:
        return self.setup.device

    def data(self) -> TrainingData:
        """All images for training, with labels in turn and made-up metadata; a quarter of them for validation too."""
        rows = np.arange(self.count)
        metadata = np.stack([rows % 3 - 1.0, rows % 3, rows % 2], axis=1).astype(np.float32)
        names = [str(row) for row in rows]
        return TrainingData(self.images, rows % 7, rows, rows[: self.count // 4], CLASSES, names, metadata)

    def wait(self) -> None:
        """Let a GPU finish what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def setup_of(self, training: "Training") -> Setup:
        """The setup with the precision that `train.precision: auto` takes for a network."""
        depthwise = partial(depthwise_share, training.name, training.knobs, self.size)
        return replace(self.setup, precision=resolve_precision("auto", self.device, depthwise))

    def autocast(self, precision: str) -> torch.autocast:
        """A context that computes in a precision."""
        lower = LOWER.get(precision)
        return torch.autocast(self.device.type, dtype=lower, enabled=lower is not None)


def make_bench(
    files: list[Path],
    scratch: Path,
    *,
    size: int,
    count: int,
    batch: int,
    device: torch.device,
    deterministic: bool = True,
) -> Bench:
    """Pack `count` images, some of the files several times where there are fewer."""
    machine = load_params().machine
    prepare_machine(
        machine, deterministic=deterministic
    )  # as the stages do: threads, memory, deterministic algorithms, for both sides
    path = scratch / f"train-{size}-{count}.npy"
    if not path.exists():
        pack_images([files[place % len(files)] for place in range(count)], path, Preprocessing(size), processes=cores())
    on_device = augments_on_device(machine.augment_on, device, path.stat().st_size)
    setup = Setup(device, workers=loader_workers(machine, device), augment_on_device=on_device)
    return Bench(path, count, size, batch, setup)


@dataclass(frozen=True)
class Training:
    """What is trained and how: an architecture, its knobs, and the section `train` at a constant learning rate."""

    name: str
    knobs: dict
    params: TrainParams

    def network(self) -> nn.Module:
        """The architecture with the same random weights every time; what the recipe has rest at the end rests."""
        torch.manual_seed(0)
        model = build_model(self.name, self.knobs, len(CLASSES))
        apply_phase(model, self.params.epochs, self.params)
        return model


def constant(params: TrainParams, batch: int, epochs: int = 10**6) -> TrainParams:
    """The section `train` with a constant learning rate, each image once an epoch, and no end."""
    changes = {"batch_size": batch, "epochs": epochs, "schedule": "constant", "sampler": "none", "patience": None}
    return params.model_copy(update=changes)


def default_training(batch: int, name: str, knobs: dict, epochs: int = 10**6, **changes: Any) -> Training:
    """The section `train` of params.yaml, with changes, for an architecture."""
    return Training(name, knobs, constant(load_params().train, batch, epochs).model_copy(update=changes))


def recipe_training(root: Path, name: str, batch: int) -> Training:
    """A recipe as it stands, but with random weights, `batch` images a step and a constant learning rate."""
    params = merged(find_recipe(root, name), load_params(root / PARAMS_FILE))
    architecture = params.model.name
    knobs = params.model.architecture | metadata_knobs(architecture, PATIENTS)
    return Training(architecture, knobs, constant(params.train, batch))


def training_pass(bench: Bench, training: Training) -> Callable[[], None]:
    """An epoch's steps of our loop, loader and augmentation included, as something to call."""
    model, params = training.network(), training.params
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps the precision of the case before
    trainer = Trainer(model, bench.data(), params, bench.setup_of(training), None, StopRequest(), print)
    compiled = {"compiled": params.compile, "size": trainer.image_size}
    trainer.runner = wrap(trainer.network, trainer.team, trainer.device, **compiled)
    train_mode(trainer.network, params)
    epoch = 0

    def work() -> None:
        nonlocal epoch
        epoch += 1
        trainer.order.set_epoch(epoch)
        trainer.progress.step = 0
        for group in groups(trainer.loader, params.accumulate):
            trainer.step(1, group)
            if bench.device.type == "cpu":
                trainer.look(1)
        bench.wait()

    return work


def bare_pass(bench: Bench, training: Training, precision: str) -> Callable[[], None]:
    """The same network, batches, loss and optimizer on tensors that lie on the device already; no mixing, no average
    of the weights, no scores."""
    model, params, data = training.network(), training.params, bench.data()
    model = model.to(bench.device, memory_format=torch.channels_last)
    train_mode(model, params)
    optimizer, loss_of = make_optimizer(model, params), make_loss(params)
    run = torch.compile(model) if params.compile else model
    bounds = range(0, bench.count, bench.batch)
    batches = [
        (inputs(bench, model, rows), targets_of(bench, data, rows, params)) for rows in slices(bounds, bench.batch)
    ]

    def work() -> None:
        for place, (arguments, targets) in enumerate(batches, start=1):
            with bench.autocast(precision):
                logits = run(*arguments)
            loss_of(logits, targets).mean().backward()
            if place % params.accumulate and place < len(batches):
                continue
            if params.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), params.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
        bench.wait()

    return work


def fastest_bare_pass(bench: Bench, training: Training) -> tuple[Callable[[], None], str, str]:
    """The bare loop in the faster of fp32 and a lower precision, which that is, and which `auto` takes.

    Whether `train.precision: auto` chose well is a part of what is measured.
    """
    used = bench.setup_of(training).precision
    lower = used if used in LOWER else "bf16"
    works = {precision: bare_pass(bench, training, precision) for precision in ("fp32", lower)}
    for work in works.values():
        work()
    times = [{precision: seconds(work) for precision, work in works.items()} for _ in range(3)]
    best = min(works, key=lambda precision: statistics.median(time[precision] for time in times))
    return works[best], best, used


def slices(starts: range, length: int) -> list[slice]:
    """Consecutive slices."""
    return [slice(start, min(start + length, starts.stop)) for start in starts]


def inputs(bench: Bench, model: nn.Module, rows: slice) -> tuple[Tensor, ...]:
    """Normalised images, and metadata for a network that takes it, on the device."""
    pixels = torch.from_numpy(np.load(bench.images, mmap_mode="r")[rows].copy()).to(bench.device)
    images = normalise(pixels, model.pixel_mean, model.pixel_std)
    metadata = torch.from_numpy(bench.data().metadata[rows]).to(bench.device)
    return (images, metadata) if model.uses_metadata else (images,)


def targets_of(bench: Bench, data: TrainingData, rows: slice, params: TrainParams) -> Tensor:
    """What the loss is held against, on the device: one-hot, smoothed where the recipe asks for it."""
    targets = one_hot(torch.from_numpy(data.labels[rows]), len(CLASSES)).to(bench.device)
    return weighted_targets(targets, torch.ones(len(CLASSES), device=bench.device), params.label_smoothing)


def train_case(bench: Bench, training: Training, repeats: int, case: str) -> Case:
    """The steps of our training loop, in the precision of `auto`, against a bare loop in the faster one."""
    bare, precision, used = fastest_bare_pass(bench, training)
    where = f"batch {bench.batch}, {bench.size} px, tensors in memory"
    return compare(
        case,
        "images/s",
        bench.count,
        training_pass(bench, training),
        bare,
        against=f"bare loop, {precision} (the faster), ours {used}, {where}",
        target=0.95,
        repeats=repeats,
        most_seconds=TRAINING_SECONDS,
    )


class Jpegs(Dataset):
    """What a plain user would write: decode, resize and transform each image each time."""

    def __init__(self, files: list[Path], size: int, *, augmented: bool):
        transforms = [v2.Resize((size, size)), *([plain_augmentation()] if augmented else [])]
        normal = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        self.files, self.transforms = files, v2.Compose([*transforms, v2.ToDtype(torch.float32, scale=True), normal])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return self.transforms(decode_image(str(self.files[place]))), place % len(CLASSES)


def epoch_case(files: list[Path], bench: Bench, name: str, knobs: dict, *, repeats: int, target: float = 1) -> Case:
    """A whole epoch with validation, against a plain user's: JPEG to tensor each time, fp32, contiguous memory."""
    some = [files[place % len(files)] for place in range(bench.count)]
    workers = max(1, cores() - 1)
    loading = {"batch_size": bench.batch, "num_workers": workers, "persistent_workers": True}
    train = DataLoader(Jpegs(some, bench.size, augmented=True), shuffle=True, **loading)
    val = DataLoader(Jpegs(some[: bench.count // 4], bench.size, augmented=False), **loading)
    training = default_training(bench.batch, name, knobs, epochs=1)
    plain = training.network().to(bench.device)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3)

    def rival() -> None:
        plain.train()
        for images, labels in train:
            loss = cross_entropy(plain(images.to(bench.device)), labels.to(bench.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        plain.eval()
        with torch.no_grad():
            torch.cat([plain(images.to(bench.device)).cpu() for images, _ in val])

    setup = bench.setup_of(training)

    def ours() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        fit(training.network(), bench.data(), training.params, setup)

    return compare(
        f"epoch_{name}",
        "images/s",
        bench.count + bench.count // 4,
        ours,
        rival,
        against=f"a plain loop from JPEG, torchvision v2, {workers} worker(s), fp32, contiguous, {bench.size} px",
        target=target,
        repeats=repeats,
    )


def fastest_forward(bench: Bench, model: nn.Module) -> tuple[Callable[[], None], str]:
    """Bare forward passes over all images, in memory, at the batch size that is fastest, and that limit in words."""
    everything = inputs(bench, model, slice(None))

    def bare(batch: int) -> Callable[[], None]:
        def work() -> None:
            with torch.inference_mode():
                for start in range(0, bench.count, batch):
                    model(*(argument[start : start + batch] for argument in everything))
            bench.wait()

        return work

    times = {}
    for batch in BEST_OF:
        bare(batch)()
        times[batch] = statistics.median(seconds(bare(batch)) for _ in range(2))
    best = min(times, key=times.__getitem__)
    sizes = ", ".join(map(str, BEST_OF))
    return bare(best), f"bare forward, fp32, {bench.size} px, batch {best} (the fastest of {sizes})"


def evaluate_case(bench: Bench, name: str, knobs: dict, repeats: int) -> Case:
    """Logits of packed images as `evaluate` computes them, against bare forward passes at the batch that is fastest."""
    model = default_training(bench.batch, name, knobs).network()
    model = model.to(bench.device, memory_format=torch.channels_last).eval()
    bare, against = fastest_forward(bench, model)
    run = {"batch_size": load_params().evaluate.batch_size, "device": bench.device, "metadata": bench.data().metadata}
    rows = np.arange(bench.count)
    work = partial(predict_logits, model, bench.images, rows, **run)
    return compare("evaluate", "images/s", bench.count, work, bare, against=against, target=0.9, repeats=repeats)


def features_case(bench: Bench, backbone: str, repeats: int) -> Case:
    """The stage `features` from packed images to its file, against bare forward passes of the same encoder."""
    encoder = EncoderParams(backbone=backbone, weights="none")
    model = make_encoder(encoder).to(bench.device, memory_format=torch.channels_last)
    bare, against = fastest_forward(bench, model)
    folder = bench.images.with_name("features")

    def ours() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        compute_features([encoder], bench.images, folder, device=bench.device)

    return compare("features", "images/s", bench.count, ours, bare, against=against, target=0.95, repeats=repeats)
