"""Train the architecture `model.name` and keep the weights that are best on validation.

Reads   data/prepared/{labels.csv, images.npy}, data/splits.csv
Writes  models/model.safetensors, metrics/train/

By hand: `python -m stages.train`. The GPU is used when there is one.
"""

import hashlib
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from exp_tools.data.labels import read_labels
from exp_tools.data.splits import read_splits
from exp_tools.errors import run_main
from exp_tools.models.artifact import ModelFacts, save_model
from exp_tools.models.registry import build_model
from exp_tools.models.weights import load_weights
from exp_tools.params import Params, load_params
from exp_tools.taxonomy import task_classes, task_label
from exp_tools.training.loop import Fitted, TrainingData, fit
from exp_tools.training.machine import loader_workers, prepare_machine, resolve_precision
from exp_tools.training.tracking import log_epoch, track
from stages.paths import IMAGES, LABELS, MODEL, SPLITS, TRAIN_METRICS

LIBRARIES = ("torch", "timm", "accelerate", "numpy", "opencv-python-headless", "pillow")


def main() -> None:
    params = load_params()
    device = prepare_machine(params.machine)
    precision = resolve_precision(params.train.precision, device)
    data = training_data(params.task)
    torch.manual_seed(params.train.seed)
    model = make_model(params, len(data.classes))
    print(
        f"training {params.model.name} on {device.type} in {precision}, {torch.get_num_threads()} threads", flush=True
    )
    with track(TRAIN_METRICS) as live:
        fitted = fit(
            model,
            data,
            params.train,
            device=device,
            precision=precision,
            workers=loader_workers(params.machine, device),
            on_epoch=lambda epoch, scores: log_epoch(live, epoch, scores),
        )
    save_model(MODEL, model, describe(params, model, data, fitted, device, precision))
    score = fitted.best_scores[params.train.select_on]
    print(f"{MODEL}: best of {fitted.epochs_run} epochs is {fitted.best_epoch}, {params.train.select_on} {score:.3f}")


def training_data(task: str) -> TrainingData:
    """The packed images with the task's classes; test rows are left out."""
    dx = read_labels(LABELS)["dx"]
    split = read_splits(SPLITS)["split"]
    classes = task_classes(task, dx)
    labels = dx.map(lambda code: classes.index(task_label(task, code))).to_numpy()
    return TrainingData(IMAGES, labels, np.flatnonzero(split == "train"), np.flatnonzero(split == "val"), classes)


def make_model(params: Params, num_classes: int) -> torch.nn.Module:
    """The architecture with random, ImageNet or own weights, as `model.weights` says."""
    weights = params.model.weights
    knobs = params.model.architecture
    model = build_model(params.model.name, knobs, num_classes, pretrained=weights == "imagenet")
    if weights not in ("none", "imagenet"):
        new = load_weights(model, Path(weights))
        print(f"weights from {weights}; not in it, so random: {', '.join(new) or 'nothing'}")
    return model


def describe(params: Params, model, data: TrainingData, fitted: Fitted, device, precision: str) -> ModelFacts:
    """Everything a user of the model file must know."""
    return ModelFacts(
        architecture=params.model.name,
        knobs=params.model.architecture,
        task=params.task,
        classes=data.classes,
        image_size=params.prepare.image_size,
        resize=params.prepare.resize,
        touch_up={
            "hair_removal": params.prepare.hair_removal,
            "colour_constancy": params.prepare.colour_constancy,
            "clahe": params.prepare.clahe,
        },
        pixel_mean=list(model.pixel_mean),
        pixel_std=list(model.pixel_std),
        temperature=round(fitted.temperature, 6),
        source=params.data.source,
        training={
            "best_epoch": fitted.best_epoch,
            "epochs_run": fitted.epochs_run,
            "validation": {name: round(float(value), 6) for name, value in fitted.best_scores.items()},
            "images": len(data.train),
            "parameters": params.train.model_dump(),
            "weights": params.model.weights,
            "precision": precision,
            "device": device.type,
            "threads": torch.get_num_threads(),
            "md5_labels": hashlib.md5(LABELS.read_bytes()).hexdigest(),
            "md5_splits": hashlib.md5(SPLITS.read_bytes()).hexdigest(),
        },
        versions={name: version(name) for name in LIBRARIES},
    )


if __name__ == "__main__":
    run_main(main)
