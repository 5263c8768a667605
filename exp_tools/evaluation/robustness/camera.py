"""What the camera does to a picture: focus, motion, compression, noise, exposure, white balance, framing.

Lengths are shares of the image's side, and random numbers do not depend on its size, so that a small and a large square
are disturbed alike. A higher severity takes the same draw further.
"""

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

GRID = 224
"""Side of the pictures that noise and compression are given for."""
BLUR = (0.004, 0.008, 0.012, 0.018, 0.026)  # standard deviation, of the side
MOTION = (0.02, 0.04, 0.065, 0.1, 0.15)  # length, of the side
QUALITY = (50, 30, 18, 12, 8)  # of JPEG
NOISE = (6, 11, 18, 27, 38)  # standard deviation of a bright pixel, of 255
STOPS = (0.3, 0.6, 0.9, 1.25, 1.6)  # of exposure
CAST = (0.04, 0.08, 0.13, 0.19, 0.26)  # logarithm of a channel's gain
KEPT = (0.92, 0.84, 0.76, 0.68, 0.6)  # of the side
GAMMA = 2.2


def blur(image: NDArray[np.uint8], severity: int, rng: Generator) -> NDArray[np.uint8]:
    """Out of focus: a Gaussian of 0.4 to 2.6 % of the side."""
    sigma = BLUR[severity - 1] * image.shape[0]
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)


def motion(image: NDArray[np.uint8], severity: int, rng: Generator) -> NDArray[np.uint8]:
    """Moved while the shutter was open: a straight line of 2 to 15 % of the side, in any direction."""
    angle = rng.uniform(0, np.pi)
    length = MOTION[severity - 1] * image.shape[0]
    reach = int(np.ceil(length / 2)) + 1
    steps = np.linspace(-length / 2, length / 2, 4 * reach + 1)
    points = reach + steps[:, None] * np.array([np.sin(angle), np.cos(angle)])
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    low = np.floor(points).astype(int)
    part = points - low
    for row, of_row in ((0, 1 - part[:, 0]), (1, part[:, 0])):
        for column, of_column in ((0, 1 - part[:, 1]), (1, part[:, 1])):
            np.add.at(kernel, (low[:, 0] + row, low[:, 1] + column), of_row * of_column)
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101)


def jpeg(image: NDArray[np.uint8], severity: int, rng: Generator) -> NDArray[np.uint8]:
    """Compressed by JPEG to a quality of 50 to 8, a small square enlarged so that its blocks are as small a share."""
    size = image.shape[0]
    factor = max(1, round(GRID / size))
    large = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC) if factor > 1 else image
    large = cv2.cvtColor(large, cv2.COLOR_RGB2BGR)
    _, coded = cv2.imencode(".jpg", large, [cv2.IMWRITE_JPEG_QUALITY, QUALITY[severity - 1]])
    decoded = cv2.cvtColor(cv2.imdecode(coded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return cv2.resize(decoded, (size, size), interpolation=cv2.INTER_AREA) if factor > 1 else decoded


def noise(image: NDArray[np.uint8], severity: int, rng: Generator) -> NDArray[np.uint8]:
    """Noise of the sensor: Gaussian, more of it where there is more light, of a picture of 224 pixels."""
    size = image.shape[0]
    grain = rng.standard_normal((GRID, GRID, 3), dtype=np.float32)
    if size != GRID:
        how = cv2.INTER_AREA if size < GRID else cv2.INTER_LINEAR
        grain = cv2.resize(grain, (size, size), interpolation=how)
    deviation = NOISE[severity - 1] * np.sqrt(0.3 + 0.7 / 255 * image.astype(np.float32))
    return np.clip(np.rint(image + deviation * grain), 0, 255).astype(np.uint8)


def brightness(image: NDArray[np.uint8], severity: int, rng: Generator) -> NDArray[np.uint8]:
    """Exposed too long or too short, by 0.3 to 1.6 stops."""
    gain = 2.0 ** (STOPS[severity - 1] * rng.choice([-1, 1]))
    return cv2.LUT(image, _exposed(np.full(3, gain)))


def colour_cast(image: NDArray[np.uint8], severity: int, rng: Generator) -> NDArray[np.uint8]:
    """Another white balance: the channels' gains move apart in a random direction of colour, their product is 1."""
    angle = rng.uniform(0, 2 * np.pi)
    apart = np.cos(angle + np.array([0, 2, 4]) * np.pi / 3)
    return cv2.LUT(image, _exposed(np.exp(CAST[severity - 1] * GAMMA * apart)))


def crop(image: NDArray[np.uint8], severity: int, rng: Generator) -> NDArray[np.uint8]:
    """Framed closer and off centre: 92 to 60 % of each side, enlarged, so that the lesion is cut."""
    middle = rng.uniform(-1, 1, 2)
    middle /= np.abs(middle).max()  # one side is reached
    size, kept = image.shape[0], KEPT[severity - 1]
    start = (1 - kept) / 2 * (1 + middle) * size
    matrix = np.array([[kept, 0, start[0] + (kept - 1) / 2], [0, kept, start[1] + (kept - 1) / 2]])
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, (size, size), flags=how, borderMode=cv2.BORDER_REPLICATE)


def _exposed(gains: NDArray[np.float64]) -> NDArray[np.uint8]:
    """A table [256, 1, 3] for cv2.LUT: gains of the light of each channel, on values that are its 2.2th root."""
    light = (np.arange(256)[:, None] / 255) ** GAMMA * gains
    values = 255 * np.clip(light, 0, 1) ** (1 / GAMMA)
    return np.rint(values).astype(np.uint8)[:, None, :]
