"""Train the architecture `model.name` and keep the weights that are best on validation.

Reads   data/prepared/{labels.csv, images.npy, preprocessing.json}, data/splits.csv, data/features/ (a probe)
Writes  models/network.safetensors, data/validation.csv (its logits of the validation split), metrics/train/

By hand            python -m stages.train
N processes here   torchrun --standalone --nproc-per-node N -m stages.train, or machine.processes: N under `dvc repro`
several hosts      on each: torchrun --nnodes H --node-rank R --nproc-per-node N --master-addr FIRST -m stages.train

The GPU is used when there is one. A run that was stopped or killed resumes when the same command is given again: its
state is in runs/, and is removed when the run has finished.
"""

import contextlib
import json
import sys
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from exp_tools.data.inputs.fraction import part_of_lesions
from exp_tools.data.inputs.metadata import Vocabulary, encode, fit_vocabulary
from exp_tools.data.labels.table import read_labels, read_splits
from exp_tools.devices import augments_on_device, loader_workers, prepare_machine, resolve_precision
from exp_tools.errors import UserError, run_main
from exp_tools.evaluation.predict import predict_logits
from exp_tools.io import file_digest, write_csv
from exp_tools.models.model_file import ModelFacts, save_model
from exp_tools.models.pretrained import check_start, load_weights, resolved, summarise_names, weights_source
from exp_tools.models.registry import build_model, depthwise_share, metadata_knobs
from exp_tools.models.weight_files import weights_path
from exp_tools.params import Params, TrainParams, load_params
from exp_tools.probing.cache import read_features
from exp_tools.probing.encoders import make_encoder
from exp_tools.probing.fit import check_settings, fit_probe
from exp_tools.project import (
    FEATURES,
    IMAGES,
    LABELS,
    NETWORK,
    PREPROCESSING,
    RUNS,
    SPLITS,
    TRAIN_METRICS,
    VALIDATION,
)
from exp_tools.taxonomy import task_classes, task_label
from exp_tools.training.checkpoints import RunStore, fingerprint
from exp_tools.training.distributed import start_processes, world_of
from exp_tools.training.interrupts import StopRequest
from exp_tools.training.loader import Setup, TrainingData
from exp_tools.training.losses import class_counts, seen_shares
from exp_tools.training.tracking import log_epoch, track
from exp_tools.training.trainer import Fitted, fit

LIBRARIES = ("torch", "timm", "accelerate", "numpy", "opencv-python-headless", "pillow")


def main() -> None:
    params = load_params()
    if params.model.name == "probe":
        train_probe(params)
        return
    start_processes(params.machine.processes, "stages.train")
    device = prepare_machine(params.machine, deterministic=params.train.deterministic)
    rank, world = world_of()
    preprocessing = json.loads(PREPROCESSING.read_text())
    weights = weights_source(params.model.weights, params.model.architecture)
    make = partial(build_model, params.model.name, params.model.architecture, 2)
    check_start(make, weights, preprocessing["image_size"])
    data, vocabulary = training_data(params.task, params.train)
    knobs = resolved(params.model.architecture) | metadata_knobs(params.model.name, vocabulary)
    depthwise = partial(depthwise_share, params.model.name, knobs, preprocessing["image_size"])
    setup = Setup(
        device,
        resolve_precision(params.train.precision, device, depthwise),
        loader_workers(params.machine, device),
        params.machine.checkpoint_steps,
        augments_on_device(params.machine.augment_on, device, IMAGES.stat().st_size),
    )
    if rank == 0:
        inputs = inputs_of(params, setup, world)
        warn(params)
        print(
            f"training {params.model.name} on {world} x {device.type} in {setup.precision}, "
            f"{torch.get_num_threads()} threads each",
            flush=True,
        )
    with contextlib.ExitStack() as stack:
        store = live = None
        if rank == 0:
            summary = {
                "model": params.model.name,
                "source": params.data.source,
                "epochs": params.train.epochs,
                "select_on": params.train.select_on,
            }
            store = stack.enter_context(RunStore(RUNS, fingerprint(inputs), summary))
            live = stack.enter_context(track(TRAIN_METRICS))
        stop = stack.enter_context(StopRequest())
        torch.manual_seed(params.train.seed)
        model = make_model(params.model.name, knobs, len(data.classes), weights)
        fitted = fit(
            model,
            data,
            params.train,
            setup,
            store=store,
            stop=stop,
            on_epoch=lambda epoch, scores: log_epoch(live, epoch, scores),
        )
        if rank == 0:
            facts = describe(params, preprocessing, knobs, model, data, vocabulary, fitted, inputs)
            logits = fitted.logits
            if setup.precision != "fp32":  # calibration is for the numbers that evaluation and serving compute
                run = {"batch_size": fitted.batch_size, "device": device, "metadata": data.metadata}
                logits = predict_logits(model, IMAGES, data.val, **run)
            write_validation(data, logits)
            save_model(NETWORK, model, facts)
            store.finish()
            score = fitted.best_scores[params.train.select_on]
            print(
                f"{NETWORK}: best of {fitted.epochs_run} epochs is {fitted.best_epoch}, "
                f"{params.train.select_on} {score:.3f}"
            )


def train_probe(params: Params) -> None:
    """Fit the head of a probe on the features that the stage `features` left: seconds, in one process."""
    setup = Setup(prepare_machine(params.machine))
    if world_of()[1] > 1:
        raise UserError("a probe trains in one process, in seconds: run `python -m stages.train` without torchrun")
    if params.model.weights != "none":
        raise UserError(
            f"model.weights is {params.model.weights}, which a probe does not read: set it to none, and the weights of "
            "each encoder in model.probe.encoders"
        )
    check_settings(params.train, params.model.probe.head)
    preprocessing = json.loads(PREPROCESSING.read_text())
    data, vocabulary = training_data(params.task, params.train)
    inputs = inputs_of(params, setup, 1)
    encoders = [make_encoder(encoder).backbone for encoder in params.model.probe.encoders]
    features = read_features(FEATURES, encoders, inputs["md5_images"], np.concatenate([data.train, data.val]))
    if features is None:
        raise UserError(
            f"{FEATURES} does not hold the features of these images by these encoders: `dvc repro features`"
        )
    knobs = resolved(params.model.architecture) | metadata_knobs("probe", vocabulary)
    if params.model.probe.head == "knn":
        knobs["references"] = len(data.train)
    torch.manual_seed(params.train.seed)
    model = build_model("probe", knobs | {"encoders": encoders}, len(data.classes))
    with track(TRAIN_METRICS) as live:
        on_step = partial(log_epoch, live)
        fitted, decided = fit_probe(model, features, data, params.train, on_step=on_step)
    if params.model.probe.head == "knn":
        knobs["neighbours"] = model.head.neighbours
    facts = describe(params, preprocessing, knobs, model, data, vocabulary, fitted, inputs)
    facts.training["decided"] = decided
    write_validation(data, fitted.logits)
    save_model(NETWORK, model, facts)
    score = fitted.best_scores[params.train.select_on]
    chosen = "".join(f", {name} {value:g}" for name, value in decided.items())
    print(
        f"{NETWORK}: {params.model.probe.head} head on {features.shape[1]:,} features of {len(data.train):,} images; "
        f"best of {fitted.epochs_run} settings is {fitted.best_epoch}{chosen}, {params.train.select_on} {score:.3f}"
    )


def training_data(task: str, params: TrainParams) -> tuple[TrainingData, Vocabulary]:
    """The packed images with the task's classes, test rows left out, and the vocabulary of the train rows' metadata.

    Of the train rows those of `train.fraction`.
    """
    labels = read_labels(LABELS)
    split = read_splits(SPLITS)["split"]
    classes = task_classes(task, labels["dx"])
    numbers = labels["dx"].map(lambda code: classes.index(task_label(task, code))).to_numpy()
    train, val = np.flatnonzero(split == "train"), np.flatnonzero(split == "val")
    if params.fraction < 1:
        used = part_of_lesions(labels["group_id"].iloc[train], numbers[train], params.fraction, params.seed)
        if world_of()[0] == 0:
            print(f"train.fraction {params.fraction:g}: {used.sum():,} of {len(train):,} training images")
        train = train[used]
    vocabulary = fit_vocabulary(labels.iloc[train])
    metadata = encode(labels, vocabulary)
    return TrainingData(IMAGES, numbers, train, val, classes, labels["image_id"], metadata), vocabulary


def make_model(name: str, knobs: dict[str, Any], num_classes: int, weights: str) -> torch.nn.Module:
    """The architecture with random, ImageNet or own weights."""
    model = build_model(name, knobs, num_classes, pretrained=weights == "imagenet")
    if weights not in ("none", "imagenet"):
        match = load_weights(model, weights)
        if world_of()[0] == 0:
            new = ", ".join(summarise_names(match.new)) or "nothing"
            more = f"; resampled: {', '.join(match.resampled)}" if match.resampled else ""
            print(f"weights from {weights}; not in it, so random: {new}{more}")
    return model


def inputs_of(params: Params, setup: Setup, world: int) -> dict[str, Any]:
    """Everything that the result depends on besides the code, for the model file and for resuming."""
    weights, files = params.model.weights, [params.model.weights]
    if params.model.name == "probe":
        files = [encoder.weights for encoder in params.model.probe.encoders]
        weights = ", ".join(f"{encoder.backbone}: {encoder.weights}" for encoder in params.model.probe.encoders)
    parameters = params.train.model_dump()
    if params.train.fraction == 1:  # a run on all images is the one that it was before there was a choice
        del parameters["fraction"]
    return {
        "task": params.task,
        "model": params.model.name,
        "knobs": params.model.architecture,
        "weights": weights,
        "md5_weights": [file_digest(path) if (path := weights_path(file)) else None for file in files],
        "parameters": parameters,
        "precision": setup.precision,
        "device": setup.device.type,
        "augment_on": setup.device.type if setup.augment_on_device else "cpu",
        "threads": torch.get_num_threads(),
        "processes": world,
        "md5_labels": file_digest(LABELS),
        "md5_splits": file_digest(SPLITS),
        "md5_images": file_digest(IMAGES),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def warn(params: Params) -> None:
    """Warn of settings that are allowed but rarely wanted."""
    train = params.train
    if train.sampler != "none" and train.class_weights in ("balanced", "sqrt"):
        print(
            f"warning: train.sampler {train.sampler} and train.class_weights {train.class_weights} both favour rare "
            "classes: together they do it twice. Set one of them to none",
            file=sys.stderr,
        )
    if train.freeze_norm and params.model.weights == "none":
        print(
            "warning: train.freeze_norm keeps BatchNorm as it is before training, and with model.weights none that is "
            "nothing learned. Give pretrained weights, or set it to false",
            file=sys.stderr,
        )


def write_validation(data: TrainingData, logits: np.ndarray) -> None:
    """Write the logits [N, C] of the kept weights on validation, for `calibrate`."""
    table = read_labels(LABELS).iloc[data.val][["image_id", "lesion_id", "group_id"]]
    columns = {f"logit_{code}": logits[:, place] for place, code in enumerate(data.classes)}
    write_csv(VALIDATION, table.assign(dx=np.array(data.classes)[data.labels[data.val]], **columns))


def describe(
    params: Params,
    preprocessing: dict[str, Any],
    knobs: dict[str, Any],
    model: torch.nn.Module,
    data: TrainingData,
    vocabulary: Vocabulary,
    fitted: Fitted,
    inputs: dict[str, Any],
) -> ModelFacts:
    """The metadata of the model file."""
    labels = data.labels[data.train]
    recorded = ("parameters", "weights", "md5_weights", "precision", "device", "augment_on", "threads", "processes")
    return ModelFacts(
        architecture=params.model.name,
        knobs=knobs,
        task=params.task,
        classes=data.classes,
        preprocessing=preprocessing,
        pixel_mean=list(model.pixel_mean),
        pixel_std=list(model.pixel_std),
        source=params.data.source,
        vocabulary=vocabulary.as_dict() if model.uses_metadata else None,
        training={
            **{name: inputs[name] for name in (*recorded, "md5_labels", "md5_splits")},
            "best_epoch": fitted.best_epoch,
            "epochs_run": fitted.epochs_run,
            "batch_size": fitted.batch_size,
            "validation": {name: round(float(value), 6) for name, value in fitted.best_scores.items()},
            "select_on": params.train.select_on,
            "images": len(data.train),
            "class_shares": (class_counts(labels, data.classes) / len(labels)).tolist(),
            "seen_shares": seen_shares(labels, data.classes, params.train).tolist(),
        },
        versions=inputs["versions"],
    )


if __name__ == "__main__":
    run_main(main)
