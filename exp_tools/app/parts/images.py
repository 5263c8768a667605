"""Pictures of the Predict page: the upload in its own shape, heat maps over it, synthetic examples."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from exp_tools.data.images.decode import load_image, upright_size
from exp_tools.data.images.preprocess import Preprocessing
from exp_tools.data.synthetic.generate import draw_sample_image
from exp_tools.explain.overlay import overlay
from exp_tools.taxonomy import DIAGNOSES

SIDE = 512
DRAWING_SEED = 2**31
"""Far from the seeds that people choose for the sample set, so that no model has trained on an example."""


def shown(data: bytes, resize: str, heat: NDArray[np.float32] | None = None, strength: float = 0.0) -> Image.Image:
    """The picture in screen size, with the part and the shape that the model is given, and a map over it.

    Parameters
    ----------
    data : bytes of the image file
    resize : as in the model file; what is squashed for the model is shown in its own shape
    heat : [S, S], 0..1, of the square that the model sees; None: no map
    strength : opacity of the map's strongest place, 0..1
    """
    square = load_image(data, Preprocessing(SIDE, resize))
    picture = Image.fromarray(square if heat is None else overlay(square, heat, strength))
    if resize != "squash":
        return picture
    width, height = upright_size(data)
    scale = SIDE / max(width, height)
    return picture.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.LANCZOS)


def png(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def draw_example(number: int) -> tuple[str, bytes]:
    """A drawn lesion that no model has seen: file name, which tells its class, and bytes of a PNG."""
    codes = list(DIAGNOSES)
    dx = codes[number % len(codes)]
    pixels, _ = draw_sample_image(f"SYN_{number}", f"SYN_{number}", dx, DRAWING_SEED)
    return f"drawn_{number + 1}_{dx}.png", png(Image.fromarray(pixels))
