"""Decoding as a plain user writes it, in a module that other processes load in no time."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 224


def decode_with_pillow(files: list[Path]) -> None:
    """Decode and resize to squares of SIZE pixels; the result is dropped."""
    for file in files:
        with Image.open(file) as image:
            np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))
