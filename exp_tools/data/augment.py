"""Augmentation as one warp and one colour matrix an image, drawn anew for every place in every epoch.

A draw depends on (seed, epoch, position in the epoch's order) and on nothing else: it is the same whatever the number
of loader workers, and an image that a balanced sampler draws thirteen times is augmented thirteen ways.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from exp_tools.params import AugmentParams

PRESETS: dict[str, dict[str, float]] = {
    "none": {},
    "light": {"flip": 1, "rotation": 15, "scale": 0.05, "shift": 0.03, "brightness": 0.05, "contrast": 0.05},
    "medium": {
        "flip": 1,
        "rotation": 90,
        "scale": 0.1,
        "shift": 0.05,
        "shear": 5,
        "brightness": 0.15,
        "contrast": 0.15,
        "saturation": 0.15,
        "hue": 7,
    },
    "heavy": {
        "flip": 1,
        "rotation": 180,
        "scale": 0.25,
        "shift": 0.1,
        "shear": 10,
        "brightness": 0.3,
        "contrast": 0.3,
        "saturation": 0.3,
        "hue": 18,
    },
}

# RGB to luma and two chroma axes of equal length (ITU-R BT.601 luma): a hue shift turns the chroma plane.
_LUMA = np.array([0.299, 0.587, 0.114])
_TO_CHROMA = np.array([_LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_FROM_CHROMA = np.linalg.inv(_TO_CHROMA)


@dataclass(frozen=True)
class Magnitudes:
    """How far each change may go; units as in params.yaml."""

    flip: float = 0
    rotation: float = 0
    scale: float = 0
    shift: float = 0
    shear: float = 0
    brightness: float = 0
    contrast: float = 0
    saturation: float = 0
    hue: float = 0


def magnitudes(params: AugmentParams) -> Magnitudes:
    """The preset's magnitudes, each replaced by the one given by hand."""
    by_hand = {name: float(value) for name, value in params.model_dump(exclude={"preset"}).items() if value is not None}
    return Magnitudes(**{**PRESETS[params.preset], **by_hand})


def generator_for(seed: int, epoch: int, position: int) -> np.random.Generator:
    """The random generator of one place in one epoch: counter-based, so that it costs microseconds to make."""
    return np.random.Generator(np.random.Philox(key=(seed << 32) | epoch, counter=position << 64))


def draw_warp(limits: Magnitudes, size: int, generator: np.random.Generator) -> np.ndarray:
    """Affine map from the augmented to the original picture, float [2, 3], in pixels of a `size` x `size` image."""
    flip_x, flip_y = generator.random(2)
    rotation, scale, shear, shift_x, shift_y = generator.uniform(-1, 1, 5)
    angle = np.deg2rad(limits.rotation * rotation)
    zoom = 1 + limits.scale * scale
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    turn = np.array([[cos, -sin], [sin, cos]])
    turn = turn @ np.array([[1.0, np.tan(np.deg2rad(limits.shear * shear))], [0.0, 1.0]])
    if limits.flip:
        turn = turn @ np.diag([1.0 if flip_x < 0.5 else -1.0, 1.0 if flip_y < 0.5 else -1.0])
    centre = np.full(2, (size - 1) / 2)
    move = limits.shift * size * np.array([shift_x, shift_y])
    return np.column_stack([turn, centre - turn @ (centre + move)])


def draw_colour(limits: Magnitudes, mean: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Colour map as a float [3, 4] matrix on (R, G, B, 1), for values 0..255.

    Brightness multiplies, contrast stretches about the picture's mean luma, saturation and hue scale and turn the
    chroma plane; `mean` is the picture's mean colour [3].
    """
    brightness, contrast, saturation, hue = generator.uniform(-1, 1, 4)
    angle, vivid = np.deg2rad(limits.hue * hue), 1 + limits.saturation * saturation
    cos, sin = vivid * np.cos(angle), vivid * np.sin(angle)
    chroma = _FROM_CHROMA @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _TO_CHROMA
    gain, stretch = 1 + limits.brightness * brightness, 1 + limits.contrast * contrast
    offset = gain * (1 - stretch) * float(_LUMA @ mean)
    return np.column_stack([gain * stretch * chroma, np.full(3, offset)])


def augment(
    image: np.ndarray, limits: Magnitudes, generator: np.random.Generator, out: np.ndarray | None = None
) -> np.ndarray:
    """Augment one image.

    Parameters
    ----------
    image : uint8 [S, S, 3], RGB
    limits : see Magnitudes; all zero gives the image back
    generator : see generator_for
    out : where to put the result, uint8 [S, S, 3]

    Returns
    -------
    uint8 [S, S, 3]; what the warp brings in from outside is the mirrored picture
    """
    size = image.shape[0]
    warp = draw_warp(limits, size, generator)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    result = cv2.warpAffine(image, warp, (size, size), dst=out, flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    if limits.brightness or limits.contrast or limits.saturation or limits.hue:
        colour = draw_colour(limits, np.array(cv2.mean(result)[:3]), generator)
        result = cv2.transform(result, colour, dst=out)
    return result
