"""Scores of confusion matrices, of one or of those of many bootstrap resamples at once."""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from exp_tools.evaluation.validation import class_rates, divide, mean_defined

Values = NDArray[np.float64]


def decided(probabilities: NDArray[np.float64], predicted: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """The decisions int [N] that are scored: those given, or the most probable classes of probabilities [N, C]."""
    return probabilities.argmax(axis=1) if predicted is None else predicted


class Counts:
    """Confusion matrices [..., C, C], true class in rows, counts or weights; sums are computed once.

    support, predicted : images of each class, and predictions of it, [..., C]
    total, hits : all images, and those predicted right, [...]
    absent : which classes do not occur, [..., C]
    """

    def __init__(self, matrix: NDArray) -> None:
        self.matrix = matrix
        self.support, self.predicted = matrix.sum(axis=-1), matrix.sum(axis=-2)
        self.total = self.support.sum(axis=-1)
        self.hits = matrix.diagonal(axis1=-2, axis2=-1).sum(axis=-1)
        self.absent = self.support == 0

    @cached_property
    def rates(self) -> dict[str, Values]:
        """Sensitivity, specificity, precision and F1 of each class, [..., C]."""
        return class_rates(self.matrix)


def accuracy(counts: Counts) -> Values:
    """Share of images whose predicted class is right."""
    return divide(counts.hits, counts.total)


def balanced_accuracy(counts: Counts) -> Values:
    """Mean sensitivity over the classes that occur; the score of the ISIC 2018 and 2019 challenges."""
    return mean_defined(counts.rates["sensitivity"])


def macro_f1(counts: Counts) -> Values:
    """Mean F1 over the classes that occur."""
    return mean_defined(counts.rates["f1"])


def weighted_f1(counts: Counts) -> Values:
    """Mean F1 weighted by the number of images of each class."""
    return divide((counts.support * np.where(counts.absent, 0.0, counts.rates["f1"])).sum(axis=-1), counts.total)


def macro_precision(counts: Counts) -> Values:
    """Mean precision over the classes that occur."""
    return mean_defined(np.where(counts.absent, np.nan, counts.rates["precision"]))


def macro_specificity(counts: Counts) -> Values:
    """Mean specificity over the classes that occur."""
    return mean_defined(np.where(counts.absent, np.nan, counts.rates["specificity"]))


def matthews_correlation(counts: Counts) -> Values:
    """Correlation of true and predicted classes, -1 to 1: 0 when every image is given to one class.

    NaN when only one class occurs. Gorodkin, Comput Biol Chem 28:367, 2004, equation 8.
    """
    total = np.asarray(counts.total, dtype=np.float64)
    covariance = counts.hits * total - (counts.support * counts.predicted).sum(axis=-1)
    of_labels = total**2 - (counts.support.astype(np.float64) ** 2).sum(axis=-1)
    of_predictions = total**2 - (counts.predicted.astype(np.float64) ** 2).sum(axis=-1)
    constant = (of_predictions <= 0) & (of_labels > 0)
    return np.where(constant, 0.0, divide(covariance, np.sqrt(np.clip(of_labels * of_predictions, 0, None))))


def cohen_kappa(counts: Counts) -> Values:
    """Agreement of true and predicted classes beyond chance, -1 to 1; NaN when only one class occurs and is predicted.

    Cohen, Educ Psychol Meas 20:37, 1960.
    """
    total = np.asarray(counts.total, dtype=np.float64)
    by_chance = (counts.support * counts.predicted).sum(axis=-1)
    return divide(counts.hits * total - by_chance, total**2 - by_chance)
