"""Cheap checks of a picture, without a network: what a dermoscopic image has and another picture may lack.

A picture of few pixels needs no check of its own: enlarged to the square that the network sees, it is blurred.
"""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

TOLERATED = 0.001
"""Share of the training lesions that each limit leaves on the wrong side."""
REASONS = {
    "contrast": "it is nearly of one colour",
    "sharpness": "it is blurred or empty: no detail is as sharp as in the training images",
    "skin": "hardly anything in it has the colours of skin",
    "features": "the network's features of it are far from those of the training images",
}
"""What a check that fails says, the network's own score among them."""
MEASURED = ("contrast", "sharpness", "skin")


def measure(squares: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """Contrast, sharpness and share of skin colours of prepared squares.

    Parameters
    ----------
    squares : uint8 [N, S, S, 3], as the network sees them

    Returns
    -------
    float [N, 3], in the order of MEASURED: the deviation of the luma (0 to 127.5), the mean absolute Laplacian of the
    luma (0 to 1,020), and the share of every 16th pixel that is redder than blue and not greener than red (0 to 1)
    """
    return np.array([_measure(square) for square in squares], dtype=np.float64).reshape(-1, len(MEASURED))


def _measure(square: NDArray[np.uint8]) -> tuple[float, float, float]:
    luma = cv2.cvtColor(square, cv2.COLOR_RGB2GRAY)
    edges = cv2.Laplacian(luma, cv2.CV_16S)
    some = square[::4, ::4].astype(np.int16)  # every 16th pixel says it as well
    red, green, blue = some[..., 0], some[..., 1], some[..., 2]
    skin = np.count_nonzero((red - blue >= 10) & (red >= green))
    return float(cv2.meanStdDev(luma)[1][0, 0]), cv2.norm(edges, cv2.NORM_L1) / luma.size, skin / red.size


def fit_limits(measured: NDArray[np.float64], weights: NDArray[np.float64]) -> dict[str, float]:
    """The lowest values that count as usual: TOLERATED of the training lesions lie below each.

    Parameters
    ----------
    measured : of `measure` [N, 3], of the training images
    weights : of each image [N]; one over the images of its lesion

    Returns
    -------
    dict with a limit for each of MEASURED
    """
    return {
        name: float(f"{weighted_quantile(measured[:, place], weights, TOLERATED):.4g}")
        for place, name in enumerate(MEASURED)
    }


def failed(measured: NDArray[np.float64], limits: Mapping[str, float]) -> list[list[str]]:
    """Of each row of `measure` [N, 3] the names of the limits that it falls below."""
    wrong = measured < np.array([limits[name] for name in MEASURED])
    return [[name for name, one in zip(MEASURED, row, strict=True) if one] for row in wrong]


def weighted_quantile(values: NDArray[np.float64], weights: NDArray[np.float64], share: float) -> float:
    """The smallest value with at least `share` of the weight at or below it. Raises ValueError without a value."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    place = np.searchsorted(reached, share * reached[-1] * (1 - 1e-12))
    return float(values[order][min(place, len(order) - 1)])


def lesion_weights(lesions: Sequence[str]) -> NDArray[np.float64]:
    """For each image one over the images of its lesion [N], so that a lesion counts once."""
    _, place, count = np.unique(np.asarray(lesions), return_inverse=True, return_counts=True)
    return 1 / count[place]
