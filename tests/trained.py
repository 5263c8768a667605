"""Tiny model files for tests of what uses a model: random weights, and a header that says they were trained."""

from pathlib import Path

import torch

from exp_tools.models.model_file import ModelFacts, save_model
from exp_tools.models.registry import build_model

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
}


def write_model(path: Path, name: str = "timm", *, trained: bool = True, source: str = "synthetic") -> None:
    """A network for 96 px whose thresholds flag and doubt everything.

    `name` is an architecture of KNOBS; multimodal knows the VOCABULARY. Without `trained` the header names no training.
    """
    torch.manual_seed(5)  # one with which no Grad-CAM map is empty
    knobs = {"backbone": "test_resnet", **KNOBS[name]}
    facts = ModelFacts(
        architecture=name,
        knobs=knobs,
        task="diagnosis",
        classes=CLASSES,
        image_size=96,
        resize="squash",
        touch_up={"hair_removal": False, "colour_constancy": False, "clahe": False},
        pixel_mean=[0.485, 0.456, 0.406],
        pixel_std=[0.229, 0.224, 0.225],
        temperature=1.0,
        source=source,
        thresholds={"melanoma": 0.0, "melanoma_sensitivity": 0.9, "abstain": 1.0, "abstain_share": 0.1},
        vocabulary=VOCABULARY if name == "multimodal" else None,
        training={"best_epoch": 2} if trained else {},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(path, build_model(name, knobs, len(CLASSES)), facts)
