"""A share of the training lesions, to see how a score grows with the number of labels."""

import math
from collections.abc import Sequence

import numpy as np


def part_of_lesions(groups: Sequence[str], labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Choose whole lesions of each class; a smaller fraction is a part of every larger one of the same seed.

    Parameters
    ----------
    groups : what must stay together, of each image [N]
    labels : class of each image [N]; a group of several counts for that of its first image
    fraction : share of each class's groups, 0 < fraction <= 1, rounded up: every class keeps one at least
    seed : same seed, same choice; the order of the images has no part in it

    Returns
    -------
    bool [N]; all True for 1
    """
    names, first, place = np.unique(np.asarray(groups, dtype=str), return_index=True, return_inverse=True)
    kinds = np.asarray(labels)[first]
    kept = np.zeros(len(names), dtype=bool)
    for kind in np.unique(kinds):
        of_class = np.flatnonzero(kinds == kind)
        drawn = np.random.default_rng([seed, 0xF4AC, int(kind)]).permutation(of_class)
        kept[drawn[: math.ceil(round(fraction * len(drawn), 9))]] = True
    return kept[place]
