"""The images of each value of an attribute (sex, age band, ...) and their scores."""

from collections.abc import Callable, Collection, Sequence
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from exp_tools.data.labels.attributes import UNKNOWN, attribute_groups
from exp_tools.data.labels.table import EXTRA
from exp_tools.evaluation.metrics.bootstrap import weighted_intervals
from exp_tools.evaluation.metrics.classification import confusion_metrics
from exp_tools.evaluation.metrics.weighted import RankingSums, confusion_sums, matrices
from exp_tools.evaluation.predictions import as_arrays, decisions
from exp_tools.evaluation.validation import check_predictions, class_rates, mean_defined
from exp_tools.taxonomy import MELANOMA

ATTRIBUTES = ("sex", "age", "localization", "source", "dx_type")
"""Attributes that every label table has; any other is a column extra_<name> of a user's table."""
AGE_BANDS = {"0-19": 0, "20-39": 20, "40-59": 40, "60-79": 60, "80+": 80}
"""First year of life of each band."""
PREFIX = "melanoma_"
AT_THRESHOLD = "_at_threshold"
MEANS = ("balanced_accuracy", "macro_auc")
LEVEL = 0.95


class Measure(NamedTuple):
    """A metric of a subgroup: a function from weights [N, R] to values [R], and how many lesion groups it rests on.

    `units` is the number of groups of the rarest thing that the metric needs; 0 where it is undefined.
    """

    score: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    units: int


class ByClass(NamedTuple):
    """What is to be averaged over classes: a function from weights [N, R] and classes [K] to their scores [R, K].

    `of` [C] are the classes that it is defined for; it rests on `lesions` lesion groups at most, None: no bound.
    """

    scores: Callable[[NDArray[np.float64], NDArray[np.int64]], NDArray[np.float64]]
    of: NDArray[np.bool_]
    lesions: int | None = None


class Subgroup(NamedTuple):
    """The images of one value of an attribute, as positions in the table, and their scores."""

    attribute: str
    value: str
    places: NDArray[np.int64]
    groups: NDArray
    measures: dict[str, Measure]
    by_class: dict[str, ByClass]
    """Accuracy, and specificity and AUC of melanoma, of the images of each class alone; NaN where it does not occur."""
    lesions: NDArray[np.int64]
    """Lesion groups of each class, [C]."""


def find_subgroups(
    table: pd.DataFrame, classes: Sequence[str], threshold: float | None, attributes: Sequence[str]
) -> list[Subgroup]:
    """All images, then each value that occurs of each attribute; see `subgroups.subgroup_report`."""
    probabilities, labels, _ = as_arrays(table, classes)
    probabilities, labels = check_predictions(probabilities, labels, classes)
    groups, predicted = table["group_id"].to_numpy(), decisions(table, classes)
    values = {"all": pd.Series("all", index=table.index)} | attribute_values(table, attributes)
    melanoma = list(classes).index(MELANOMA) if MELANOMA in classes else None
    found = []
    for attribute, column in values.items():
        for value in ordered_values(attribute, column):
            places = np.flatnonzero(column == value)
            own = groups[places]
            measures = _measures(probabilities[places], labels[places], predicted[places], own, melanoma, threshold)
            if np.unique(labels[places]).size < np.unique(labels).size:
                measures |= {name: Measure(_undefined, 0) for name in MEANS}
            by_class = _by_class(probabilities[places], labels[places], predicted[places], own, melanoma, threshold)
            lesions = np.array([np.unique(own[labels[places] == c]).size for c in range(len(classes))])
            found.append(Subgroup(attribute, value, places, own, measures, by_class, lesions))
    return found


def point_scores(subgroup: Subgroup) -> dict[str, float]:
    """Each metric on the images as they are."""
    once = np.ones((subgroup.places.size, 1))
    return {metric: float(measure.score(once)[0]) for metric, measure in subgroup.measures.items()}


def score_intervals(
    subgroup: Subgroup, metrics: Collection[str], *, resamples: int, seed: int, level: float = LEVEL
) -> dict[str, tuple[float, float]]:
    """(low, high) of each of these metrics, by a bootstrap of the lesion groups of the subgroup."""
    measures = {metric: measure for metric, measure in subgroup.measures.items() if metric in metrics}
    # A mean over classes with a single lesion of one still has the spread of the others.
    units = {metric: max(measure.units, 2 if metric in MEANS else 0) for metric, measure in measures.items()}
    return weighted_intervals(
        lambda weights: {metric: measure.score(weights) for metric, measure in measures.items()},
        subgroup.groups,
        subgroup.places.size,
        resamples=resamples,
        seed=seed,
        level=level,
        units=units,
    )


def _sensitivities(cells, weights: NDArray[np.float64], classes: NDArray[np.int64]) -> NDArray[np.float64]:
    return class_rates(matrices(cells, weights))["sensitivity"][:, classes]


def _measures(
    probabilities: NDArray,
    labels: NDArray,
    predicted: NDArray,
    groups: NDArray,
    melanoma: int | None,
    threshold: float | None,
) -> dict[str, Measure]:
    num_classes = probabilities.shape[1]
    cells = confusion_sums(predicted, labels, num_classes)
    rankings = [RankingSums(probabilities[:, c], labels == c) for c in range(num_classes)]

    def balanced_accuracy(weights: NDArray) -> NDArray:
        return confusion_metrics(matrices(cells, weights))["balanced_accuracy"]

    def macro_auc(weights: NDArray) -> NDArray:
        return mean_defined(np.stack([_area(ranking, weights) for ranking in rankings], axis=-1))

    present = [np.unique(groups[labels == c]).size for c in np.unique(labels)]
    measures = {
        "accuracy": Measure(_share(predicted == labels, np.ones(labels.size, bool)), np.unique(groups).size),
        "balanced_accuracy": Measure(balanced_accuracy, min(present)),
        "macro_auc": Measure(macro_auc, min(present) if len(present) > 1 else 0),
    }
    if melanoma is None:
        return measures
    positive = labels == melanoma
    positives, negatives = (np.unique(groups[side]).size for side in (positive, ~positive))
    flags = {"": predicted == melanoma}
    if threshold is not None:
        flags[AT_THRESHOLD] = probabilities[:, melanoma] >= threshold
    for name, flagged in flags.items():
        measures[f"{PREFIX}sensitivity{name}"] = Measure(_share(flagged, positive), positives)
        measures[f"{PREFIX}specificity{name}"] = Measure(_share(~flagged, ~positive), negatives)
    ranking = rankings[melanoma]
    measures[f"{PREFIX}auc"] = Measure(lambda weights: _area(ranking, weights), min(positives, negatives))
    return measures


def _by_class(
    probabilities: NDArray,
    labels: NDArray,
    predicted: NDArray,
    groups: NDArray,
    melanoma: int | None,
    threshold: float | None,
) -> dict[str, ByClass]:
    num_classes = probabilities.shape[1]
    cells = confusion_sums(predicted, labels, num_classes)
    found = {"standardised_accuracy": ByClass(partial(_sensitivities, cells), np.ones(num_classes, bool))}
    if melanoma is None:
        return found
    others = np.arange(num_classes) != melanoma
    name, flagged = f"{PREFIX}standardised_specificity", predicted == melanoma
    if threshold is not None:
        name, flagged = name + AT_THRESHOLD, probabilities[:, melanoma] >= threshold
    positive = labels == melanoma

    def passed(weights: NDArray, classes: NDArray) -> NDArray:
        return np.stack([_share(~flagged, labels == c)(weights) for c in classes], axis=-1)

    @cache
    def against(c: int) -> tuple[RankingSums, NDArray]:
        pair = np.flatnonzero(positive | (labels == c))
        return RankingSums(probabilities[pair, melanoma], positive[pair]), pair

    def areas(weights: NDArray, classes: NDArray) -> NDArray:
        pairs = [against(int(c)) for c in classes]
        return np.stack([_area(ranking, weights[pair]) for ranking, pair in pairs], axis=-1)

    found[name] = ByClass(passed, others)
    found[f"{PREFIX}standardised_auc"] = ByClass(areas, others, np.unique(groups[positive]).size)
    return found


def _undefined(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.full(weights.shape[1], np.nan)


def _share(right: NDArray[np.bool_], among: NDArray[np.bool_]) -> Callable[[NDArray], NDArray]:
    """The weighted share of `among` that is `right`, [R]; NaN where there is none."""

    def score(weights: NDArray) -> NDArray:
        hits, total = weights[right & among].sum(axis=0), weights[among].sum(axis=0)
        return np.divide(hits, total, out=np.full(total.shape, np.nan), where=total > 0)

    return score


def _area(ranking: RankingSums, weights: NDArray) -> NDArray[np.float64]:
    return ranking.area(weights)


def attribute_values(table: pd.DataFrame, attributes: Sequence[str]) -> dict[str, pd.Series]:
    """Attribute -> its value in each row; without further attributes that the table lacks or knows of no image."""
    values = {}
    for name in attributes:
        if name in ATTRIBUTES:
            values[name] = _age_bands(table[name]) if name == "age" else _words(table[name])
        elif EXTRA + name in table and ((groups := attribute_groups(table[EXTRA + name])) != UNKNOWN).any():
            values[name] = groups
    return values


def _words(column: pd.Series) -> pd.Series:
    return column.fillna("").astype(str).str.strip().replace("", UNKNOWN)


def _age_bands(ages: pd.Series) -> pd.Series:
    starts = [*AGE_BANDS.values(), np.inf]
    bands = pd.cut(ages.astype(float), starts, right=False, labels=list(AGE_BANDS))
    return bands.astype(object).fillna(UNKNOWN)


def ordered_values(attribute: str, column: pd.Series) -> list[str]:
    """The values that occur: ages rise, others by the number of images and then by name; `unknown` is last."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return list(column.cat.categories)
    counts = column.value_counts()
    ages = list(AGE_BANDS) if attribute == "age" else []
    return sorted(
        counts.index,
        key=lambda value: (value == UNKNOWN, ages.index(value) if value in ages else 0, -counts[value], value),
    )
