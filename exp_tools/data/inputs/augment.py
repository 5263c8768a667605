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
LUMA = np.array([0.299, 0.587, 0.114])
_TO_CHROMA = np.array([LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_FROM_CHROMA = np.linalg.inv(_TO_CHROMA)
_GREY, _KEEP, _TURN = (
    _FROM_CHROMA @ np.array(part) @ _TO_CHROMA
    for part in (
        [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0, 0, 0], [0, 0, -1], [0, 1, 0]],
    )
)
"""A colour map is the first, and cosine and sine of the angle times the others."""


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

    @property
    def colours(self) -> bool:
        """Whether colours change."""
        return bool(self.brightness or self.contrast or self.saturation or self.hue)


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
    """Map from the augmented to the original picture, float [3, 3], in pixels of a `size` x `size` image."""
    return warp_matrices(limits, draw_warp_numbers(generator), size)


def draw_warp_numbers(generator: np.random.Generator) -> np.ndarray:
    """The nine numbers that a warp is made of, float [9]: two in 0..1 for the mirrors, seven in -1..1."""
    return np.concatenate([generator.random(2), generator.uniform(-1, 1, 7)])


def warp_matrices(limits: Magnitudes, numbers: np.ndarray, size: int) -> np.ndarray:
    """The maps [..., 3, 3] of drawn numbers [..., 9]; limits are numbers, or arrays [...] of one for each image.

    The picture is turned, zoomed, sheared, mirrored, shifted, and then tilted about the middle of the frame; without
    perspective the last row is (0, 0, 1). All is done number by number, so that an image gets the same bytes alone and
    in a batch.
    """
    flip_x, flip_y, rotation, scale, shear, shift_x, shift_y, tilt_x, tilt_y = numbers.T
    angle = np.deg2rad(limits.rotation * rotation)
    zoom = 1 + limits.scale * scale
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    slant = np.tan(np.deg2rad(limits.shear * shear))
    mirror_x, mirror_y = (1.0 - 2.0 * ((limits.flip > 0) & (flip >= 0.5)) for flip in (flip_x, flip_y))
    left, right = (cos * mirror_x, (cos * slant - sin) * mirror_y), (sin * mirror_x, (sin * slant + cos) * mirror_y)
    centre = (size - 1) / 2
    x, y = (centre + limits.shift * size * shift for shift in (shift_x, shift_y))
    warps = np.zeros((*numbers.shape[:-1], 3, 3))
    for row, (along, across) in enumerate((left, right)):
        warps[..., row, 0], warps[..., row, 1] = along, across
        warps[..., row, 2] = centre - (along * x + across * y)
    warps[..., 2, 2] = 1
    if np.any(limits.perspective):
        warps = _tilted(warps, limits.perspective * tilt_x, limits.perspective * tilt_y, centre)
    return warps


def _tilted(warps: np.ndarray, tilt_x: np.ndarray, tilt_y: np.ndarray, centre: float) -> np.ndarray:
    """Maps [..., 3, 3] from what the tilted picture shows; the centre stays.

    A tilt of s makes the far side (the right or lower one; the other where s is negative) 1 - |s| times as long as the
    near one: with u from -1 to 1 across the picture, u becomes u / (1 + k u) with k = s / (2 - |s|).
    """
    k_x, k_y = (tilt / (2 - abs(tilt)) for tilt in (tilt_x, tilt_y))
    middle = warps[..., 0] * centre + warps[..., 1] * centre + warps[..., 2]
    row = np.stack([-k_x / centre, -k_y / centre, k_x + k_y], axis=-1)
    return warps + middle[..., :, None] * row[..., None, :]


def draw_colour(limits: Magnitudes, mean: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Colour map as a float [3, 4] matrix on (R, G, B, 1), for values 0..255; `mean` is the picture's, float [3]."""
    matrix, pull = colour_matrices(limits, draw_colour_numbers(generator))
    return np.column_stack([matrix, np.full(3, pull * float(LUMA @ mean))])


def draw_colour_numbers(generator: np.random.Generator) -> np.ndarray:
    """The four numbers in -1..1 that a change of colours is made of, float [4]."""
    return generator.uniform(-1, 1, 4)


def colour_matrices(limits: Magnitudes, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matrices on colours [..., 3, 3] of drawn numbers [..., 4], and what to add to each channel for every unit of the
    picture's mean luma [...]; limits as in `warp_matrices`.

    Brightness multiplies, contrast stretches about the picture's mean luma, saturation and hue scale and turn the
    chroma plane.
    """
    brightness, contrast, saturation, hue = numbers.T
    angle, vivid = np.deg2rad(limits.hue * hue), 1 + limits.saturation * saturation
    gain, stretch = 1 + limits.brightness * brightness, 1 + limits.contrast * contrast
    cos, sin, both = (part[..., None, None] for part in (vivid * np.cos(angle), vivid * np.sin(angle), gain * stretch))
    return both * (_GREY + cos * _KEEP + sin * _TURN), gain * (1 - stretch)


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
    if limits.colours:
        colour = draw_colour(limits, mean_colour(result), generator)
        result = cv2.transform(result, colour, dst=out)
    if limits.erase and generator.random() < limits.erase:
        erase(result, generator)
    return result


def erase(image: np.ndarray, generator: np.random.Generator) -> None:
    """Fill a box of a uint8 image [S, S, 3] with noise, in place."""
    box = draw_box(image.shape[0], generator)
    image[box] = draw_noise(box, generator)


def draw_box(size: int, generator: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns to erase: 2 % to a third of the area, sides 0.3 to 3.3 times each other, cut off where one is
    longer than the picture.

    Zhong et al., Random Erasing Data Augmentation, AAAI 2020; ranges as in timm.
    """
    side = size * np.sqrt(generator.uniform(*ERASED))
    stretch = np.exp(0.5 * np.log(LEAST_ASPECT) * generator.uniform(-1, 1))
    height, width = (min(size, max(1, round(side * factor))) for factor in (stretch, 1 / stretch))
    top, left = map(int, generator.integers(0, (size - height + 1, size - width + 1)))
    return slice(top, top + height), slice(left, left + width)


def draw_noise(box: tuple[slice, slice], generator: np.random.Generator) -> np.ndarray:
    """Noise for a box, uint8 [height, width, 3]."""
    rows, columns = box
    return generator.integers(0, 256, (rows.stop - rows.start, columns.stop - columns.start, 3), dtype=np.uint8)


def mean_colour(image: np.ndarray) -> np.ndarray:
    """Mean of each channel of a uint8 image [H, W, 3], float [3]; a quarter of the time of cv2.mean."""
    columns = cv2.reduce(image, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
    return columns.sum(axis=(0, 1)) / (image.shape[0] * image.shape[1])
