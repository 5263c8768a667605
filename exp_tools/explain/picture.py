"""The picture that people see: the image at its own size under its heat map, with a legend."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from exp_tools.data.images.decode import Source, load_image, square
from exp_tools.data.images.preprocess import Preprocessing
from exp_tools.explain.overlay import NAMES, STRENGTH, is_flat, overlay

SIDE = 1024
"""Longest side in pixels of a picture; a smaller image keeps its own size."""
NARROWEST = 320
BACKGROUND = 200
LONGEST_NAME = 40


def flat_note(kind: str) -> str:
    """The sentence about a map that shows no place."""
    return f"{NAMES[kind]} is the same everywhere in this image, so it shows no place"


def own_size(source: Source, resize: str) -> Image.Image:
    """The part of an image that the model is given, upright, in its own proportions and without filters.

    Parameters
    ----------
    source : as `load_image` takes it
    resize : as in the model file; what is squashed for the model keeps its own shape here
    """
    image = Image.fromarray(load_image(source, Preprocessing(SIDE, "keep")))
    side = max(image.size) if resize == "pad" else min(image.size)
    return image if resize == "squash" else square(image, side, resize)


def explained(
    source: Source, resize: str, heat: NDArray[np.float32], kind: str, name: str, strength: float = STRENGTH
) -> Image.Image:
    """The image under its heat map, and below it a legend: what the map is of, and its colours from low to high.

    Parameters
    ----------
    source, resize : as `own_size` takes them
    heat : [S, S], of the square that the model sees; one that `is_flat` leaves the image alone, and the legend says so
    kind : a key of NAMES
    name : of the class that Grad-CAM is for
    strength : opacity of the map's strongest place, 0..1
    """
    picture = overlay(np.asarray(own_size(source, resize)), heat, strength)
    height, width = picture.shape[:2]
    legend = _legend(max(width, NARROWEST), heat, kind, name, strength)
    whole = Image.new("RGB", (legend.width, height + legend.height), "white")
    whole.paste(Image.fromarray(picture))
    whole.paste(legend, (0, height))
    return whole


def _legend(width: int, heat: NDArray[np.float32], kind: str, name: str, strength: float) -> Image.Image:
    size = min(22, max(13, width // 40))
    font, line = ImageFont.load_default(size), round(1.5 * size)
    strip = Image.new("RGB", (width, 2 * line + size // 2), "white")
    draw = ImageDraw.Draw(strip)
    named = name if len(name) <= LONGEST_NAME else name[:LONGEST_NAME] + "…"
    title = f"{NAMES[kind]} for {named}" if kind == "gradcam" else NAMES[kind].capitalize()
    flat = bool(is_flat(heat[None])[0])
    draw.text((size // 2, size // 4), title, fill="black", font=font)
    if flat:
        draw.text((size // 2, line), "the same everywhere: it shows no place", fill="black", font=font)
        return strip
    left, right = (round(draw.textlength(word, font)) + size for word in ("low", "high"))
    draw.text((size // 2, line), "low", fill="black", font=font)
    draw.text((width - right + size // 2, line), "high", fill="black", font=font)
    ramp = np.linspace(0, 1, width - left - right, dtype=np.float32)[None].repeat(size, axis=0)
    bar = overlay(np.full((*ramp.shape, 3), BACKGROUND, np.uint8), ramp, strength)
    strip.paste(Image.fromarray(bar), (left, line + size // 4))
    return strip
