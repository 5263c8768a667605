"""What a model loses when its images are disturbed: each kind and severity against the clean images, paired."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from exp_tools.data.images.preprocess import Preprocessing, apply_filters
from exp_tools.evaluation.compare.paired import Difference, paired_differences, remembered
from exp_tools.evaluation.metrics.classification import confusion_metrics
from exp_tools.evaluation.metrics.weighted import RankingSums, Scorer, confusion_sums, matrices
from exp_tools.evaluation.predictions import as_arrays, decisions
from exp_tools.evaluation.robustness.disturb import SEVERITIES, disturb
from exp_tools.evaluation.validation import divide, mean_defined
from exp_tools.io import scratch_folder
from exp_tools.taxonomy import MELANOMA

LEVEL = 0.95
MIDDLE = 3
"""The severity at which the kinds are compared."""

Predict = Callable[[Path, NDArray[np.int64]], pd.DataFrame]
"""From an images.npy and the place that each of its images has in the original one to a prediction table, in order."""


def robustness_report(
    table: pd.DataFrame,
    images: NDArray[np.uint8],
    classes: Sequence[str],
    predict: Predict,
    *,
    preprocessing: Preprocessing,
    kinds: Sequence[str],
    lesions: int,
    threshold: float | None,
    resamples: int,
    seed: int,
) -> dict[str, Any] | None:
    """Disturb the images of some lesions, predict them again and compare with their clean predictions.

    Parameters
    ----------
    table : predictions of the clean set, with `row`, the place of each image in `images`
    images : uint8 [M, S, S, 3], RGB; may be memory-mapped
    classes : the C classes, in the order of the model
    predict : see Predict; it runs once per kind and severity
    preprocessing : how the images were made: hair is painted over again, and colours evened out, where they were. Not
        so the contrast, which would be evened out twice
    kinds : of robustness.disturb.KINDS; without any there is nothing to do
    lesions : at most so many lesion groups, see `chosen_lesions`
    threshold : of the probability of melanoma; None: a melanoma is found where it is decided for
    resamples : of the bootstrap over lesion groups
    seed : of the choice, of what is drawn and of the bootstrap

    Returns
    -------
    None without kinds, else as `disturbed_scores`, with `seed`

    Raises
    ------
    UserError : as `predict`, and as `predictions.as_arrays`
    """
    if not kinds:
        return None
    labels = table["dx"].map({name: place for place, name in enumerate(classes)}).to_numpy()
    chosen = table[chosen_lesions(table["group_id"], labels, lesions, seed)].reset_index(drop=True)
    places = chosen["row"].to_numpy(dtype=np.int64)
    again = preprocessing._replace(clahe=False)

    def predictions(path: Path) -> Iterator[tuple[str, int, pd.DataFrame]]:
        packed = np.lib.format.open_memmap(path, "w+", np.uint8, (len(chosen), *images.shape[1:]))
        for kind, severity in itertools.product(kinds, SEVERITIES):
            for place, (row, name) in enumerate(zip(places, chosen["image_id"], strict=True)):
                image = disturb(images[row], kind, severity, seed=seed, image_id=name)
                packed[place] = apply_filters(image, again)
            packed.flush()
            yield kind, severity, predict(path, places)

    with scratch_folder() as folder:
        found = disturbed_scores(
            chosen, predictions(folder / "images.npy"), classes, threshold, resamples=resamples, seed=seed
        )
    return found | {"seed": seed}


def disturbed_scores(
    clean: pd.DataFrame,
    disturbed: Iterable[tuple[str, int, pd.DataFrame]],
    classes: Sequence[str],
    threshold: float | None,
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Compare predictions of disturbed images with those of the same images clean.

    Parameters
    ----------
    clean : a prediction table
    disturbed : kind, severity and the prediction table of the same images in the same order
    classes, threshold, resamples, seed : as `robustness_report`

    Returns
    -------
    dict with
    images, lesions, counts (class -> lesion groups) : of `clean`
    clean : its balanced_accuracy, macro_auc and, where melanoma is a class, melanoma_sensitivity
    rows : one per kind and severity, with kind, severity, those scores, and `differences` from clean: score ->
        {"difference", "low", "high"}, 95 % of each
    worst : of severity 3 the kind that costs most balanced accuracy: {"kind", "severity", "kinds", "difference", "low",
        "high"}, in an interval that holds for all of the `kinds` kinds together (Bonferroni), since it is the largest
        of several; None where undefined
    """
    groups, images = clean["group_id"], len(clean)
    per_class = clean.groupby("dx")["group_id"].nunique()
    rarest = max(int(per_class.min()), 2)  # a mean over classes is as sure as its rarest class
    units = {"balanced_accuracy": rarest, "macro_auc": rarest, "melanoma_sensitivity": int(per_class.get(MELANOMA, 0))}
    draws = {"resamples": resamples, "seed": seed, "units": units}
    baseline = remembered(_scorer(clean, classes, threshold))
    rows: list[dict[str, Any]] = []
    middle: dict[str, Difference] = {}
    for kind, severity, table in disturbed:
        scorer = _scorer(table, classes, threshold)
        found = paired_differences(scorer, baseline, groups, images, **draws)
        differences = {name: _bounds(difference, LEVEL) for name, difference in found.items()}
        rows.append({"kind": kind, "severity": severity, **_values(scorer, images), "differences": differences})
        if severity == MIDDLE:
            middle[kind] = found["balanced_accuracy"]
    return {
        "images": images,
        "lesions": groups.nunique(),
        "counts": {code: int(per_class.get(code, 0)) for code in classes},
        "clean": _values(baseline, images),
        "rows": rows,
        "worst": _worst(middle),
    }


def chosen_lesions(groups: ArrayLike, labels: NDArray[np.int64], limit: int, seed: int) -> NDArray[np.bool_]:
    """Choose whole lesions, of each class as many; classes that have fewer leave their share to the others.

    Parameters
    ----------
    groups : [N], the lesion group of each image
    labels : class of each image [N]; a group of several counts for that of its first image
    limit : groups in all; each class keeps one at least
    seed : same seed, same choice, whatever the order of the images; a smaller limit is a part of a larger one

    Returns
    -------
    bool [N]
    """
    names, first, place = np.unique(np.asarray(groups, dtype=str), return_index=True, return_inverse=True)
    kinds, sizes = np.unique(labels[first], return_counts=True)
    kept = np.zeros(len(names), dtype=bool)
    left = limit
    for done, number in enumerate(np.argsort(sizes, kind="stable")):
        share = max(1, left // (len(kinds) - done))
        of_class = np.flatnonzero(labels[first] == kinds[number])
        drawn = np.random.default_rng([seed, 0xD157, int(kinds[number])]).permutation(of_class)[:share]
        kept[drawn] = True
        left -= len(drawn)
    return kept[place]


def _scorer(table: pd.DataFrame, classes: Sequence[str], threshold: float | None) -> Scorer:
    """A function from weights [N, R] to the scores, [R] each."""
    probabilities, labels, _ = as_arrays(table, classes)
    predicted = decisions(table, classes)
    cells = confusion_sums(predicted, labels, len(classes))
    rankings = [RankingSums(probabilities[:, c], labels == c) for c in range(len(classes))]
    is_mel = found = np.zeros(len(table), dtype=bool)
    if MELANOMA in classes:
        place = list(classes).index(MELANOMA)
        is_mel = labels == place
        found = predicted == place if threshold is None else probabilities[:, place] >= threshold

    def score(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        scores = {
            "balanced_accuracy": confusion_metrics(matrices(cells, weights))["balanced_accuracy"],
            "macro_auc": mean_defined(np.stack([sums.area(weights) for sums in rankings], axis=-1)),
        }
        if MELANOMA in classes:
            hits, melanomas = weights[is_mel & found].sum(axis=0), weights[is_mel].sum(axis=0)
            scores["melanoma_sensitivity"] = divide(hits, melanomas)
        return scores

    return score


def _values(scorer: Scorer, images: int) -> dict[str, float]:
    return {name: float(value[0]) for name, value in scorer(np.ones((images, 1))).items()}


def _bounds(difference: Difference, level: float) -> dict[str, float]:
    low, high = difference.interval(level)
    return {"difference": difference.value, "low": low, "high": high}


def _worst(found: Mapping[str, Difference]) -> dict[str, Any] | None:
    if not found:
        return None
    kind = min(found, key=lambda name: found[name].value)
    bounds = _bounds(found[kind], 1 - (1 - LEVEL) / len(found))
    return None if math.isnan(bounds["low"]) else {"kind": kind, "severity": MIDDLE, "kinds": len(found), **bounds}
