"""The baseline that a model must beat: logistic regression on mean colours, blind to shape and structure.

It shows how much of a score is the colour of the lesion and its skin alone. Evaluated on the same split as the model.
"""

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from exp_tools.errors import UserError

GRID = 3


def colour_features(images: NDArray[np.uint8], index: ArrayLike | None = None) -> NDArray[np.float64]:
    """Mean colour of each cell of a 3x3 grid over the image.

    Parameters
    ----------
    images : uint8 [N, S, S, 3] RGB with S >= 3; may be memory-mapped, one image is in memory at a time
    index : int [M], the images wanted, in this order; all of them by default

    Returns
    -------
    float [M, 27] in 0..255: cells by row, then column; red, green, blue within a cell

    Raises
    ------
    UserError : images of another type or shape
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or min(images.shape[1:3]) < GRID:
        raise UserError(
            f"The images are {images.dtype} of shape {list(images.shape)}; "
            f"expected uint8 [N, S, S, 3] with S at least {GRID}."
        )
    index = np.arange(len(images)) if index is None else np.asarray(index, dtype=np.int64)
    bounds = [np.linspace(0, size, GRID + 1).round().astype(int) for size in images.shape[1:3]]
    cells = [
        (slice(top, bottom), slice(left, right))
        for top, bottom in zip(bounds[0][:-1], bounds[0][1:], strict=True)
        for left, right in zip(bounds[1][:-1], bounds[1][1:], strict=True)
    ]
    features = np.empty((index.size, len(cells), 3))
    for row, number in enumerate(index):
        image = np.asarray(images[number])  # a plain array: each slice of a memory map costs as much as its mean
        for column, cell in enumerate(cells):
            features[row, column] = cv2.mean(image[cell])[:3]  # 14 times as fast as numpy's mean of bytes
    return features.reshape(index.size, len(cells) * 3)


def colour_baseline(
    images: NDArray[np.uint8], labels: ArrayLike, train_index: ArrayLike, test_index: ArrayLike, num_classes: int
) -> NDArray[np.float64]:
    """Class probabilities of the test images by class-balanced logistic regression on `colour_features`.

    Parameters
    ----------
    images : uint8 [N, S, S, 3] RGB, may be memory-mapped
    labels : int [N], values in 0..C-1; those of the test images are not looked at
    train_index, test_index : int [...], rows of `images`
    num_classes : C

    Returns
    -------
    float [len(test_index), C], rows sum to 1; a class without a training image has probability 0

    Raises
    ------
    UserError : no training image, or images of another type or shape
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    train_index, test_index = np.asarray(train_index, dtype=np.int64), np.asarray(test_index, dtype=np.int64)
    if train_index.size == 0:
        raise UserError("The colour baseline has no training image: the train split is empty. Check split.fractions.")
    probabilities = np.zeros((test_index.size, num_classes))
    train_labels = np.asarray(labels)[train_index]
    present = np.unique(train_labels)
    if present.size == 1:
        probabilities[:, present] = 1.0
    elif test_index.size:
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000))
        with threadpool_limits(1):  # so few numbers are slower on several threads, which wait for each other
            model.fit(colour_features(images, train_index), train_labels)
            probabilities[:, present] = model.predict_proba(colour_features(images, test_index))
    return probabilities
