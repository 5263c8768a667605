"""Augmentation as one warp, one colour matrix and perhaps one erased box per image, redrawn for every image and epoch.

A draw depends on (seed, epoch, position in the epoch's order) and on nothing else: it is the same whatever the number
of loader workers, and an image that a balanced sampler draws twelve times is augmented in twelve ways.
"""

from dataclasses import asdict, dataclass

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
        "perspective": 0.1,
        "brightness": 0.3,
        "contrast": 0.3,
        "saturation": 0.3,
        "hue": 18,
    },
    # TrivialAugment's wide ranges, for its operations that are a warp or a colour matrix: without sharpness, posterize,
    # solarize, autocontrast and equalize; a shift goes both ways at once. Müller, Hutter, ICCV 2021, arXiv:2103.10158.
    "trivial": {
        "flip": 1,
        "one": 1,
        "rotation": 135,
        "shift": 0.14,
        "shear": 45,
        "brightness": 0.99,
        "contrast": 0.99,
        "saturation": 0.99,
    },
}
ALWAYS = ("flip", "erase")
"""What an image may get besides the one change that is chosen for it."""
ERASED, LEAST_ASPECT = (0.02, 1 / 3), 0.3
"""Share of the area that erasing covers, and how much shorter one side of the box may be."""

# RGB to luma and two chroma axes of equal length (ITU-R BT.601 luma): a hue shift turns the chroma plane.
_LUMA = np.array([0.299, 0.587, 0.114])
_TO_CHROMA = np.array([_LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_FROM_CHROMA = np.linalg.inv(_TO_CHROMA)


@dataclass(frozen=True)
class Magnitudes:
    """The range of each change; units as in params.yaml. With `one`, an image gets one of them or none."""

    flip: float = 0
    rotation: float = 0
    scale: float = 0
    shift: float = 0
    shear: float = 0
    perspective: float = 0
    brightness: float = 0
    contrast: float = 0
    saturation: float = 0
    hue: float = 0
    erase: float = 0
    one: float = 0


def magnitudes(params: AugmentParams) -> Magnitudes:
    """The preset's magnitudes, each replaced by the one given by hand."""
    by_hand = {name: float(value) for name, value in params.model_dump(exclude={"preset"}).items() if value is not None}
    return Magnitudes(**{**PRESETS[params.preset], **by_hand})


def choose_one(limits: Magnitudes, generator: np.random.Generator) -> Magnitudes:
    """The limits of one change, each of those that are not zero as likely as none; what is in ALWAYS stays."""
    ranges = asdict(limits)
    choices = [name for name, limit in ranges.items() if limit and name not in (*ALWAYS, "one")]
    chosen = [None, *choices][generator.integers(len(choices) + 1)]
    return Magnitudes(**{name: ranges[name] for name in (*ALWAYS, chosen) if name})


def generator_for(seed: int, epoch: int, position: int) -> np.random.Generator:
    """The random generator of one place in one epoch: counter-based, so that it costs microseconds to make."""
    return np.random.Generator(np.random.Philox(key=(seed << 32) | epoch, counter=position << 64))


def draw_warp(limits: Magnitudes, size: int, generator: np.random.Generator) -> np.ndarray:
    """Map from the augmented to the original picture, float [3, 3], in pixels of a `size` x `size` image.

    The picture is turned, zoomed, sheared, mirrored, shifted, and then tilted about the middle of the frame; without
    perspective the last row is (0, 0, 1).
    """
    flip_x, flip_y = generator.random(2)
    rotation, scale, shear, shift_x, shift_y, tilt_x, tilt_y = generator.uniform(-1, 1, 7)
    angle = np.deg2rad(limits.rotation * rotation)
    zoom = 1 + limits.scale * scale
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    turn = np.array([[cos, -sin], [sin, cos]])
    turn = turn @ np.array([[1.0, np.tan(np.deg2rad(limits.shear * shear))], [0.0, 1.0]])
    if limits.flip:
        turn = turn @ np.diag([1.0 if flip_x < 0.5 else -1.0, 1.0 if flip_y < 0.5 else -1.0])
    centre = (size - 1) / 2
    warp = np.eye(3)
    warp[:2, :2] = turn
    warp[:2, 2] = centre - turn @ (centre + limits.shift * size * np.array([shift_x, shift_y]))
    return warp @ _untilt(limits.perspective * tilt_x, limits.perspective * tilt_y, centre)


def _untilt(tilt_x: float, tilt_y: float, centre: float) -> np.ndarray:
    """Map from a tilted picture to the straight one, float [3, 3], in pixels; the centre stays.

    A tilt of s makes the far side (the right or lower one; the other where s is negative) 1 - |s| times as long as the
    near one: with u from -1 to 1 across the picture, u becomes u / (1 + k u) with k = s / (2 - |s|).
    """
    k_x, k_y = (tilt / (2 - abs(tilt)) for tilt in (tilt_x, tilt_y))
    row = np.array([-k_x / centre, -k_y / centre, k_x + k_y])
    return np.eye(3) + np.outer([centre, centre, 1.0], row)


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
    if limits.one:
        limits = choose_one(limits, generator)
    warp = draw_warp(limits, size, generator)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    border = cv2.BORDER_REFLECT_101
    if limits.perspective:
        result = cv2.warpPerspective(image, warp, (size, size), dst=out, flags=flags, borderMode=border)
    else:  # warpAffine is the faster one
        result = cv2.warpAffine(image, warp[:2], (size, size), dst=out, flags=flags, borderMode=border)
    if limits.brightness or limits.contrast or limits.saturation or limits.hue:
        colour = draw_colour(limits, mean_colour(result), generator)
        result = cv2.transform(result, colour, dst=out)
    if limits.erase and generator.random() < limits.erase:
        erase(result, generator)
    return result


def erase(image: np.ndarray, generator: np.random.Generator) -> None:
    """Fill a box of a uint8 image [S, S, 3] with noise, in place: 2 % to a third of its area, sides 0.3 to 3.3 times
    each other, cut off where it is longer than the picture.

    Zhong et al., Random Erasing Data Augmentation, AAAI 2020; ranges as in timm.
    """
    size = image.shape[0]
    side = size * np.sqrt(generator.uniform(*ERASED))
    stretch = np.exp(0.5 * np.log(LEAST_ASPECT) * generator.uniform(-1, 1))
    height, width = (min(size, max(1, round(side * factor))) for factor in (stretch, 1 / stretch))
    top, left = generator.integers(0, (size - height + 1, size - width + 1))
    image[top : top + height, left : left + width] = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)


def mean_colour(image: np.ndarray) -> np.ndarray:
    """Mean of each channel of a uint8 image [H, W, 3], float [3]; a quarter of the time of cv2.mean."""
    columns = cv2.reduce(image, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
    return columns.sum(axis=(0, 1)) / (image.shape[0] * image.shape[1])
