"""Prediction tables with as many mistakes as a test wants."""

from dataclasses import replace

import numpy as np
import pandas as pd

from exp_tools.evaluation.predictions import prediction_table
from exp_tools.evaluation.probabilities import Calibration

CLASSES = ("bkl", "mel", "nv")


def predictions(seed: int = 0, *, images: int = 120, skill: float = 1.0, first: int = 0, per_lesion: int = 1):
    """A prediction table whose labels depend on the images alone and whose mistakes depend on the seed."""
    number = np.arange(first, first + images)
    dx = np.array(CLASSES)[(number // per_lesion) % 3]
    labels = pd.DataFrame(
        {
            "image_id": [f"IMG_{n:05}" for n in number],
            "lesion_id": [f"LES_{n // per_lesion:05}" for n in number],
            "group_id": [f"LES_{n // per_lesion:05}" for n in number],
            "source": "ham10000",
            "dx": dx,
        }
    )
    noise = np.random.default_rng([seed, first]).normal(0, 1, (images, 3))
    logits = noise + skill * (dx[:, None] == np.array(CLASSES))
    return prediction_table(labels, "test", logits, CLASSES, scaled(len(CLASSES)))


def scaled(num_classes: int, temperature: float = 1.0) -> Calibration:
    """A calibration of a temperature alone; the most probable class is decided for."""
    return replace(Calibration.none(num_classes), temperature=temperature)
