"""How far features are from those of the training images: distances that are fitted on train and fit in 200 kB.

Features are standardised, and turned to the directions in which the training images vary most. `residual` is the
squared length of what lies outside these directions, by that of the training images (Wang et al., ViM:
Out-Of-Distribution with Virtual-Logit Matching, CVPR 2022, section 4.1). `mahalanobis` is the smallest squared distance
to the mean of a class within them, under the covariance within classes (Lee et al., A Simple Unified Framework for
Detecting Out-of-Distribution Samples, NeurIPS 2018, equation 2).
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

METHODS = ("residual", "mahalanobis")
MOST_BYTES = 190_000
"""Of all tensors of a fit; the model file's part is 200 kB at most."""
DIRECTIONS = 64
SHRINKAGE = 1e-3
"""Share of the mean variance that is added to each direction's: a class of few images has no singular covariance."""
Tensors = dict[str, NDArray[np.float16]]


def fit_score(
    method: str, features: NDArray[np.float32], labels: NDArray[np.int64], weights: NDArray[np.float64]
) -> Tensors:
    """Fit a score on the training images.

    Parameters
    ----------
    method : one of METHODS
    features, labels : float [N, D] and int [N] of the training images
    weights : of each image [N], as `checks.lesion_weights`

    Returns
    -------
    float16 arrays by name: `mean`, `scale` [D] (one over the deviation; 0 for a feature that never varies), `basis`
    [D, k] and, by method, `outside` [1] or `centres` [C, k]. k is DIRECTIONS, a quarter of the features or images at
    most, less where MOST_BYTES demands it
    """
    x, w = features.astype(np.float64), (weights / weights.sum())[:, None]
    mean = (w * x).sum(axis=0)
    scale = np.sqrt((w * (x - mean) ** 2).sum(axis=0))
    scale[scale < 1e-3 * max(scale.max(), 1e-12)] = np.inf  # a unit that never fires says nothing
    mean, scale = _stored(mean), _stored(1 / scale)
    z = (x - mean) * scale
    room = MOST_BYTES // 2 - 2 * len(mean)
    k = max(1, min(DIRECTIONS, len(mean) // 4, len(x) // 4, room // (len(mean) + len(np.unique(labels)))))
    directions = np.linalg.eigh((z * w).T @ z)[1][:, ::-1][:, :k]
    largest = directions[np.abs(directions).argmax(axis=0), np.arange(k)]
    directions = _stored(directions * np.where(largest < 0, -1.0, 1.0))  # the sign is the library's, not the data's
    t = z @ directions
    kept = {"mean": mean, "scale": scale, "basis": directions}
    if method == "residual":
        kept["outside"] = np.array([max(float(np.average(_outside(z, t), weights=weights)), 1e-3)])
    else:
        present, place = np.unique(labels, return_inverse=True)
        centres = np.stack(
            [np.average(t[place == c], axis=0, weights=weights[place == c]) for c in range(len(present))]
        )
        gaps = t - centres[place]
        covariance = (gaps * w).T @ gaps
        covariance += SHRINKAGE * np.trace(covariance) / k * np.eye(k)
        whiten = np.linalg.inv(np.linalg.cholesky(covariance)).T
        kept |= {"basis": directions @ whiten, "centres": centres @ whiten}
    return {name: _half(value) for name, value in kept.items()}


def score(
    method: str, tensors: Mapping[str, NDArray[np.float16]], features: NDArray[np.float32]
) -> NDArray[np.float64]:
    """How foreign features are, higher is more: float [N] of float [N, D], not yet by the threshold."""
    part = {name: value.astype(np.float32, copy=False) for name, value in tensors.items()}
    z = (features - part["mean"]) * part["scale"]
    t = z @ part["basis"]
    if method == "residual":
        found = _outside(z, t) / part["outside"]
    else:
        found = ((t[:, None] - part["centres"]) ** 2).sum(axis=2).min(axis=1) / t.shape[1]
    return found.astype(np.float64)


def _outside(z: NDArray, t: NDArray) -> NDArray:
    """Squared length of vectors [N, D] outside the directions in which their coordinates are t [N, k]."""
    return np.maximum((z**2).sum(axis=1) - (t**2).sum(axis=1), 0)


def _half(values: NDArray[np.float64]) -> NDArray[np.float16]:
    return np.clip(values, -65504, 65504).astype(np.float16)


def _stored(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values as they are when they are read again."""
    return _half(values).astype(np.float64)
