"""Tiny model files with random weights for tests of what uses a model, and photographs to send to them."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from exp_tools.data.images.preprocess import Preprocessing
from exp_tools.models.model_file import ModelFacts, copy_model, save_model
from exp_tools.models.normalize import network_inputs
from exp_tools.models.registry import build_model, load_model
from exp_tools.ood.features import FeatureTap
from exp_tools.ood.fit import OodFit, fit_ood
from exp_tools.taxonomy import DIAGNOSES
from helpers.predictions import scaled

CLASSES = ["bcc", "mel", "nv"]
VOCABULARY = {
    "age_mean": 50.0,
    "age_std": 15.0,
    "age_median": 50.0,
    "sex": ["female", "male"],
    "localization": ["back"],
}


KNOBS = {
    "timm": {"dropout": 0.0},
    "multimodal": {"enabled": True, "metadata_dropout": 0.0, "dropout": 0.0},
    "soft_attention": {
        "place": "last",
        "enabled": True,
        "heads": 2,
        "kernel_size": 3,
        "concat": True,
        "dropout": 0.0,
    },
    "probe": {"metadata": True, "head": "knn", "references": 40, "neighbours": 5},
}


def write_model(path: Path, name: str = "timm", *, trained: bool = True, source: str = "synthetic") -> None:
    """A network for 96 px whose thresholds flag and doubt everything.

    `name` is an architecture of KNOBS; multimodal knows the VOCABULARY. Without `trained` the header names no training.
    """
    torch.manual_seed(5)  # one with which no Grad-CAM map is empty
    backbone = {"backbone": "test_resnet"}
    knobs = {**({"encoders": [backbone, {"backbone": "test_vit"}]} if name == "probe" else backbone), **KNOBS[name]}
    facts = ModelFacts(
        architecture=name,
        knobs=knobs,
        task="diagnosis",
        classes=CLASSES,
        preprocessing=Preprocessing(96)._asdict(),
        pixel_mean=[0.485, 0.456, 0.406],
        pixel_std=[0.229, 0.224, 0.225],
        calibration=scaled(len(CLASSES)).as_dict(),
        source=source,
        thresholds={"melanoma": 0.0, "melanoma_sensitivity": 0.9, "abstain": 1.0, "abstain_share": 0.1},
        vocabulary=VOCABULARY if name in ("multimodal", "probe") else None,
        training={"best_epoch": 2} if trained else {},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(path, build_model(name, knobs, len(CLASSES)), facts)


SERVED_VOCABULARY = {
    "age_mean": 50.0,
    "age_std": 15.0,
    "age_median": 50.0,
    "sex": ["female", "male", "unknown"],
    "localization": ["back", "face", "unknown"],
}


def save_tiny_model(path: Path, *, metadata: bool = False, source: str = "ham10000") -> Path:
    """Write a model of 64 px for the seven classes, with both thresholds; `metadata`: it takes age, sex and site."""
    torch.manual_seed(3)
    knobs: dict = {"backbone": "test_resnet"}
    if metadata:
        knobs |= {"enabled": True, "sexes": 3, "localizations": 3}
    architecture = "multimodal" if metadata else "timm"
    model = build_model(architecture, knobs, len(DIAGNOSES))
    last = model.classifier[-1] if metadata else model.classifier
    with torch.no_grad():
        last.weight *= 150  # random features are small: without this every image looks alike
    facts = ModelFacts(
        architecture=architecture,
        knobs=knobs,
        task="diagnosis",
        classes=list(DIAGNOSES),
        preprocessing=Preprocessing(64)._asdict(),
        pixel_mean=list(model.pixel_mean),
        pixel_std=list(model.pixel_std),
        calibration=scaled(len(DIAGNOSES), 1.3).as_dict(),
        source=source,
        thresholds={"melanoma": 0.2, "abstain": 0.4},
        vocabulary=SERVED_VOCABULARY if metadata else None,
        training={"validation": {"accuracy": 0.5}, "weights": "/home/somebody/weights.pth"},
        versions={"torch": "2"},
    )
    save_model(path, model, facts)
    return path


def some_fit(size: int, model: nn.Module | None = None) -> OodFit:
    """A score of foreign pictures: of a network's features of 60 blots of colour, or of features of no network."""
    images = np.stack([np.asarray(Image.open(BytesIO(photograph(n))).resize((size, size))) for n in range(60)])
    if model is None:
        features = np.random.default_rng(0).normal(size=(60, 16)).astype(np.float32)
    else:
        tap = FeatureTap(model)
        with torch.inference_mode():
            metadata = torch.zeros(60, 3)
            model.eval()(*network_inputs(model, torch.from_numpy(images), metadata, torch.device("cpu")))
        features = tap.take().numpy()
        tap.remove()
    lesions = np.array([f"l{n}" for n in range(60)], dtype=object)
    return fit_ood("residual", features, np.arange(60) % 3, lesions, np.arange(60) < 40, images, np.arange(60))


def write_judging_model(path: Path, name: str = "timm") -> None:
    """A model of `write_model` that tells pictures unlike 60 blots of colour."""
    write_model(path, name)
    model, facts = load_model(path)
    fit = some_fit(facts.preprocessing["image_size"], model)
    copy_model(path, path, replace(facts, ood=fit.facts(0.95)), ood=fit.tensors)


def photograph(seed: int, kind: str = "JPEG", width: int = 120, height: int = 90, **options) -> bytes:
    """Coloured blots, different for every seed, as a file of Pillow's format `kind`."""
    generator = np.random.default_rng(seed)
    blots = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return encoded(blots.resize((width, height), Image.Resampling.BICUBIC), kind, **options)


def noise(kind: str, width: int, height: int, **options) -> bytes:
    """An image that does not compress."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), kind, **options)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
