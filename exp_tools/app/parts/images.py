"""Pictures of the Predict page: PNG files and synthetic examples."""

from io import BytesIO

from PIL import Image

from exp_tools.data.synthetic.generate import draw_sample_image
from exp_tools.taxonomy import DIAGNOSES

DRAWING_SEED = 2**31
"""Far from the seeds that people choose for the sample set, so that no model has trained on an example."""


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
