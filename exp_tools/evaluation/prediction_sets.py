"""Prediction sets: the diagnoses that a picture does not exclude, by class-conditional conformal prediction.

Every class has a threshold of its own, fitted on the validation lesions of that class (Mondrian taxonomy by class), so
that the promise holds for each class and not only on average over a mix in which one class is two thirds.

Promise, for a new lesion of class c from the population of validation: a picture of it, chosen at random among those of
the lesion, has c in its set with probability `coverage` at least, on average over validation sets. The exchangeable
unit is the lesion, so each counts once: an image of a lesion with m images has weight 1 / m, and a further lesion with
a score above all others stands for the new one (hierarchical conformal prediction). Nothing is promised for all
pictures of a lesion at once, for one validation set, or for pictures of another camera, clinic or kind.

References
----------
Mondrian: Vovk et al., Algorithmic Learning in a Random World, 2005, section 4.5. By lesion: Lee, Barber and Willett,
Distribution-free inference with hierarchical data, arXiv:2306.06342, 2023. LAC: Sadinle, Lei and Wasserman, Least
Ambiguous Set-Valued Classifiers with Bounded Error Levels, JASA 114:223, 2019. APS: Romano, Sesia and Candes,
Classification with Valid and Adaptive Coverage, NeurIPS 2020. RAPS: Angelopoulos et al., Uncertainty Sets for Image
Classifiers using Conformal Prediction, ICLR 2021.
"""

import math
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, Decimal
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exp_tools.errors import UserError

PENALTY = 0.1
FREE_RANKS = 2
"""Of RAPS: what each rank beyond the free ones adds to a score. Fixed, since fitting them too would need data apart."""


def conformity_scores(probabilities: ArrayLike, score: str) -> NDArray[np.float64]:
    """How badly each class fits: a class is in the set where its score is at most the class's threshold.

    lac: 1 - p. aps: the probability of all classes that are more probable, and half of its own (the half stands for the
    uniform number of Romano et al., so that the same picture has the same set). raps: aps, and PENALTY for each rank
    beyond FREE_RANKS. Of equal probabilities the first class is taken for the more probable.

    Parameters
    ----------
    probabilities : float [N, C], calibrated
    score : lac, aps or raps

    Returns
    -------
    float [N, C], 0..1 (raps: up to 1 + PENALTY * C)
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if score == "lac":
        return 1 - probabilities
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities, order, axis=1)
    values = ranked.cumsum(axis=1) - ranked / 2
    if score == "raps":
        values = values + PENALTY * np.maximum(np.arange(1, ranked.shape[1] + 1) - FREE_RANKS, 0)
    scores = np.empty_like(values)
    np.put_along_axis(scores, order, values, axis=1)
    return scores


def conformal_threshold(scores: ArrayLike, lesions: ArrayLike, coverage: float) -> float | None:
    """The lowest score below or at which lies `coverage` of the lesions and one more, whose score is above all.

    Parameters
    ----------
    scores, lesions : float and lesion id [N], of the images of one class
    coverage : above 0 and below 1

    Returns
    -------
    float, rounded up to six decimals; None where it takes more lesions than there are, see `lesions_needed`
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not scores.size:
        return None
    lesion = np.unique(np.asarray(lesions), return_inverse=True)[1]
    order = np.argsort(scores, kind="stable")
    reached = (1 / np.bincount(lesion))[lesion][order].cumsum()
    enough = np.flatnonzero(reached >= coverage * (lesion.max() + 2) - 1e-9)
    if not enough.size:
        return None
    return float(Decimal(repr(float(scores[order][enough[0]]))).quantize(Decimal("1e-6"), ROUND_CEILING))


def lesions_needed(coverage: float) -> int:
    """The fewest lesions n of a class with which a threshold can promise the coverage: n / (n + 1) >= coverage."""
    return math.ceil(coverage / (1 - coverage) - 1e-9)


def fit_sets(
    score: str,
    coverage: float,
    classes: Sequence[str],
    probabilities: NDArray[np.float64],
    labels: NDArray[np.int64],
    lesions: ArrayLike,
) -> dict[str, Any]:
    """The prediction sets of a model file.

    Parameters
    ----------
    score, coverage : `calibration.sets` and `calibration.coverage`
    classes : the C classes
    probabilities, labels, lesions : calibrated float [N, C], int [N] and lesion ids [N], of validation

    Returns
    -------
    {} for the score none, else dict with score, coverage, needed (see `lesions_needed`), and by class `lesions` (of
    validation) and `thresholds` (None: the class is in every set, since validation has fewer lesions than are needed)

    Raises
    ------
    UserError : two classes whose codes differ by a blank and an underscore only, see `set_column`
    """
    if score == "none":
        return {}
    written = _written(classes)
    if len(set(written)) < len(written):
        twice = [code for code, word in zip(classes, written, strict=True) if written.count(word) > 1]
        raise UserError(
            f"the classes {' and '.join(map(repr, twice))} would be the same word in a prediction set: rename one "
            "(data.classes), or set calibration.sets: none"
        )
    scores, lesions = conformity_scores(probabilities, score), np.asarray(lesions)
    thresholds, counts = {}, {}
    for place, code in enumerate(classes):
        of_class = labels == place
        thresholds[code] = conformal_threshold(scores[of_class, place], lesions[of_class], coverage)
        counts[code] = int(np.unique(lesions[of_class]).size)
    needed = lesions_needed(coverage)
    return {"score": score, "coverage": coverage, "needed": needed, "lesions": counts, "thresholds": thresholds}


def set_members(
    sets: Mapping[str, Any], classes: Sequence[str], probabilities: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Which classes are in the set of each picture, bool [N, C]; a set may be empty.

    Parameters
    ----------
    sets : as `fit_sets` gives them, not {}
    classes, probabilities : the C classes, and calibrated float [N, C]
    """
    limits = [sets["thresholds"][code] for code in classes]
    bounds = np.array([math.inf if limit is None else limit for limit in limits])
    return conformity_scores(probabilities, sets["score"]) <= bounds


def always_held(sets: Mapping[str, Any]) -> dict[str, int]:
    """The classes that are in every set, as they have too few validation lesions, and how many these are."""
    return {code: sets["lesions"][code] for code, limit in sets.get("thresholds", {}).items() if limit is None}


def set_column(members: NDArray[np.bool_], classes: Sequence[str]) -> list[str]:
    """Sets as cells of a table: the codes in the order of the model with a blank between, `_` for one in a code."""
    words = _written(classes)
    return [" ".join(word for word, held in zip(words, row, strict=True) if held) for row in members.tolist()]


def read_set_column(cells: Sequence[str], classes: Sequence[str]) -> NDArray[np.bool_]:
    """Which classes a table's sets hold, bool [N, C]. Raises UserError for a word that is no class."""
    places = {word: place for place, word in enumerate(_written(classes))}
    members = np.zeros((len(cells), len(classes)), dtype=bool)
    for row, cell in enumerate(cells):
        for word in str(cell).split():
            if word not in places:
                raise UserError(
                    f"the column prediction_set holds {word!r}, which is no class of the table ({', '.join(places)}); "
                    "make it again with `dvc repro evaluate`, or take the column out"
                )
            members[row, places[word]] = True
    return members


def _written(classes: Sequence[str]) -> list[str]:
    return [code.replace(" ", "_") for code in classes]
