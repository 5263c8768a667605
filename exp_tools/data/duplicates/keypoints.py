"""Key points of an image, and whether two sets of them show the same spot of skin.

RootSIFT (Arandjelović and Zisserman, CVPR 2012) on the contrast-equalised grey picture; a similarity transform found by
RANSAC decides. Descriptors are whole numbers, so that their products are exact in float32 and no result depends on
the linear algebra library or its threads.
"""

from typing import NamedTuple

import cv2
import numpy as np

AREA, FINE_AREA = 300 * 225, 600 * 450
"""Pixels of the picture that key points are looked for in, and at most at the fine look; its sides keep their ratio."""
MAX_POINTS, FINE_POINTS = 400, 1000
RATIO = 0.9
TOLERANCE = 5.0
"""Largest distance of a key point from its transformed position, in pixels of a picture of AREA."""
MIN_MATCHES = 6
SCALES = (0.25, 4.0)
MIN_SPREAD = 5.0
"""Least standard deviation of the agreeing key points across their main direction, in the same pixels: the marks of a
ruler lie on a line, a hair or a label on a narrow strip."""

_BLACK = 25
_BORDER_MARGIN = 12
_MIRROR = np.arange(128).reshape(4, 4, 8)[::-1][:, :, -np.arange(8)].ravel()
"""Where a SIFT descriptor's numbers are in that of the mirrored picture: its 4x4 cells upside down (it is turned to its
point's own direction) and its 8 directions in the other sense."""


class KeyPoints(NamedTuple):
    """Places float32 [K, 2] (x, y), the strongest first, and their descriptors uint8 [K, 128]."""

    places: np.ndarray
    descriptors: np.ndarray


class Agreement(NamedTuple):
    """How two pictures fit: key points at different places that agree, the least spread of those places in pixels, and
    the transform from the first picture to the second: mirrored left to right (or not), then turned by `rotation`
    degrees clockwise and enlarged by `scale`."""

    inliers: int
    spread: float
    rotation: float
    scale: float
    mirrored: bool


def find_keypoints(picture: np.ndarray, *, fine: bool = False) -> KeyPoints:
    """Find the strongest key points of a picture, uint8 [H, W, 3], RGB; none on the edge of a black surround.

    The picture is brought to AREA; for a fine look to its own size, from AREA to FINE_AREA. Places are in pixels of a
    picture of AREA either way.
    """
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    area = min(FINE_AREA, max(AREA, height * width)) if fine else AREA
    wanted = FINE_POINTS if fine else MAX_POINTS
    factor = (area / (height * width)) ** 0.5
    size = max(8, round(width * factor)), max(8, round(height * factor))
    grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    even = cv2.createCLAHE(clipLimit=3.0, tileGridSize=(8, 8)).apply(grey)
    points, descriptors = cv2.SIFT_create(nfeatures=wanted, contrastThreshold=0.01).detectAndCompute(
        even, _inside(grey)
    )
    if descriptors is None:
        return KeyPoints(np.empty((0, 2), np.float32), np.empty((0, 128), np.uint8))
    strongest = np.argsort([-point.response for point in points], kind="stable")[:wanted]
    places = np.array([points[place].pt for place in strongest], np.float32) * np.float32((AREA / area) ** 0.5)
    root = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1))[strongest]
    return KeyPoints(places, np.minimum(root * 512, 255).round().astype(np.uint8))


def _inside(grey: np.ndarray) -> np.ndarray:
    """Mask that leaves out black corners (the rim of the dermatoscope's field) and what is next to them."""
    _, parts = cv2.connectedComponents((cv2.blur(grey, (3, 3)) < _BLACK).astype(np.uint8))
    corners = np.unique(parts[[0, 0, -1, -1], [0, -1, 0, -1]])
    black = np.isin(parts, corners[corners > 0]).astype(np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * _BORDER_MARGIN + 1,) * 2)
    return 1 - cv2.dilate(black, kernel)


def mirrored(points: KeyPoints) -> KeyPoints:
    """The key points of the picture mirrored left to right, about the line x = 0, without looking at the picture."""
    return KeyPoints(points.places * np.float32([-1, 1]), points.descriptors[:, _MIRROR])


def compare(first: KeyPoints, second: KeyPoints, *, mirror: bool = False) -> Agreement | None:
    """Fit the first picture, mirrored if `mirror`, onto the second; None when too few key points agree.

    Descriptors match when they are each other's nearest and the second nearest is clearly farther (Lowe's ratio).
    """
    if mirror:
        first = mirrored(first)
    if min(len(first.places), len(second.places)) < MIN_MATCHES:
        return None
    at, to = _matches(first.descriptors.astype(np.float32), second.descriptors.astype(np.float32))
    if len(at) < MIN_MATCHES:
        return None
    source, target = first.places[at], second.places[to]
    matrix, agrees = cv2.estimateAffinePartial2D(
        source, target, method=cv2.RANSAC, ransacReprojThreshold=TOLERANCE, maxIters=1000, confidence=0.995
    )
    if matrix is None:
        return None
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if not SCALES[0] <= scale <= SCALES[1]:
        return None
    source, target = source[agrees[:, 0] > 0], target[agrees[:, 0] > 0]
    inliers = min(_different(source), _different(target))
    spread = min(_spread(source), _spread(target))
    return Agreement(inliers, spread, float(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0]))), scale, mirror)


def _matches(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    distance = first @ second.T  # squared, without the part that is a row's own
    distance *= -2
    distance += (second * second).sum(axis=1)
    own = (first * first).sum(axis=1)
    rows = np.arange(len(first))
    nearest = distance.argmin(axis=1)
    best = distance[rows, nearest]
    distance[rows, nearest] = np.inf
    at = np.flatnonzero(best + own < RATIO**2 * (distance.min(axis=1) + own))
    distance[rows, nearest] = best
    to = nearest[at]
    mutual = (distance[:, to] + own[:, None]).argmin(axis=0) == at
    return at[mutual], to[mutual]


def _different(places: np.ndarray) -> int:
    """Count places, those of one pixel once: SIFT gives a place with several directions several descriptors."""
    return len(np.unique(places.round().astype(np.int64) @ (1, 1 << 20)))


def _spread(places: np.ndarray) -> float:
    """Least standard deviation of the places in any direction, in pixels."""
    if len(places) < 2:
        return 0.0
    x, y = (places - places.mean(axis=0, dtype=np.float64)).T
    across, along, both = (float(one @ other) / (len(places) - 1) for one, other in ((x, x), (y, y), (x, y)))
    least = (across + along - np.hypot(across - along, 2 * both)) / 2  # the smaller eigenvalue of the covariance
    return float(np.sqrt(max(0.0, least)))
