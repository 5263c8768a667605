"""Pictures of the pages: PNG files and synthetic examples."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from exp_tools.data.synthetic.generate import draw_sample_image
from exp_tools.taxonomy import DIAGNOSES

DRAWING_SEED = 2**31
"""Far from the seeds that people choose for the sample set, so that no model has trained on an example."""


def png(picture: Image.Image | NDArray[np.uint8]) -> bytes:
    """The picture, or pixels uint8 [H, W, 3] in RGB, as a PNG file."""
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def draw_example(number: int) -> tuple[str, bytes]:
    """A synthetic lesion that no model has seen: file name, which tells its class, and bytes of a PNG."""
    codes = list(DIAGNOSES)
    dx = codes[number % len(codes)]
    pixels, _ = draw_sample_image(f"SYN_{number}", f"SYN_{number}", dx, DRAWING_SEED)
    return f"drawn_{number + 1}_{dx}.png", png(Image.fromarray(pixels))
