"""The report of one set of predictions, as one nested dictionary: a set of `metrics/report.json`."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from exp_tools.data.labels.table import EXTRA
from exp_tools.errors import UserError, did_you_mean
from exp_tools.evaluation.metrics.bootstrap import bootstrap_intervals, class_intervals
from exp_tools.evaluation.metrics.calibration import calibration_report
from exp_tools.evaluation.metrics.class_calibration import class_calibration
from exp_tools.evaluation.metrics.classification import class_metrics, headline_metrics, top_k_accuracy
from exp_tools.evaluation.metrics.costs import cost_report
from exp_tools.evaluation.metrics.melanoma import caught_melanomas, melanoma_report
from exp_tools.evaluation.metrics.prevalence import prevalence_report
from exp_tools.evaluation.metrics.selective import coverage_report
from exp_tools.evaluation.metrics.subgroup_scores import ATTRIBUTES
from exp_tools.evaluation.metrics.subgroups import subgroup_gaps, subgroup_report
from exp_tools.evaluation.predictions import as_arrays, decisions, lesion_view
from exp_tools.evaluation.probabilities import Calibration
from exp_tools.evaluation.report.original_labels import original_labels
from exp_tools.evaluation.report.set_scores import set_report
from exp_tools.evaluation.unlike import unlike_report
from exp_tools.evaluation.validation import confusion
from exp_tools.system import beside
from exp_tools.taxonomy import MELANOMA

METADATA = ["dx_type", "age", "sex", "localization"]


def score_set(
    table: pd.DataFrame,
    classes: Sequence[str],
    *,
    calibration: Calibration,
    thresholds: Mapping[str, float | None],
    costs: Mapping[str, Mapping[str, float]] | None,
    prevalence: Mapping[str, float] | None = None,
    subgroups: Sequence[str] = ATTRIBUTES,
    set_coverage: float | None = None,
    resamples: int,
    seed: int,
    dropped: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Compute all scores of one set of predictions.

    Parameters
    ----------
    table : rows of a prediction table, one set, with the columns METADATA (see `with_metadata`)
    classes : the C classes, in the order of the model
    calibration : of the model
    thresholds : as in the model file; `melanoma` and `abstain` may be missing or None
    costs : of mistakes, see `evaluate.costs`; None: not asked for
    prevalence : class -> its share where the model would be used, see `evaluate.prevalence`
    subgroups : attributes to score apart, see `evaluate.subgroups`
    set_coverage : what the prediction sets were fitted for, where the table has them and it is known
    resamples, seed : of the bootstrap
    dropped : predictions of the images that verdicts on labels took out of this set

    Returns
    -------
    dict with images, lesions, counts, metrics, intervals, confusion (true class -> decided class -> images),
    lesion_level, per_class, melanoma (None without the class), prevalence, calibration (with `by_class`), coverage,
    prediction_sets and ood (None where the predictions have none), subgroups, gaps, costs (None where not asked for)
    and original_labels (None where no label was changed); see docs/evaluation.md

    Raises
    ------
    UserError : no image, or what the scores themselves refuse
    """
    if table.empty:
        raise UserError("there is no prediction to score: the set is empty")
    draws = {"resamples": resamples, "seed": seed}
    apart: dict[str, Any] = draws | {"attributes": subgroups, "melanoma_threshold": thresholds.get("melanoma")}
    # In processes of their own: together they take longer than all else.
    rows = beside(partial(subgroup_report, table, classes, **apart))
    gaps = beside(partial(subgroup_gaps, table, classes, **apart))
    lesions = beside(partial(_lesion_level, table, classes, thresholds, **draws))
    probabilities, labels, logits = as_arrays(table, classes)
    groups, predicted = table["group_id"].to_numpy(), decisions(table, classes)
    matrix = confusion(labels, predicted, len(classes))
    by_class = class_calibration(probabilities, labels, groups, classes, **draws)
    return {
        "images": len(table),
        "lesions": table["lesion_id"].nunique(),
        "counts": dict(zip(classes, np.bincount(labels, minlength=len(classes)).tolist(), strict=True)),
        "metrics": headline_metrics(probabilities, labels, classes, predicted)
        | {"top_k": top_k_accuracy(probabilities, labels, classes)},
        "intervals": _bounds(bootstrap_intervals(probabilities, labels, groups, classes, predicted, **draws)),
        "confusion": {code: dict(zip(classes, matrix[t].tolist(), strict=True)) for t, code in enumerate(classes)},
        "lesion_level": lesions(),
        "per_class": _per_class(table, probabilities, labels, classes, predicted, **draws),
        "melanoma": _melanoma(probabilities, labels, predicted, groups, classes, thresholds, **draws),
        "prevalence": _prevalence(probabilities, labels, predicted, groups, classes, thresholds, prevalence, **draws),
        "calibration": calibration_report(logits, labels, calibration) | {"by_class": by_class},
        "coverage": coverage_report(probabilities, labels, predicted, threshold=thresholds.get("abstain")),
        "prediction_sets": set_report(table, classes, labels, predicted, asked=set_coverage, **draws),
        "subgroups": rows(),
        "gaps": gaps(),
        "ood": unlike_report(table, classes),
        "original_labels": original_labels(table, dropped, classes, **draws),
        "costs": None
        if costs is None
        else cost_report(probabilities, labels, groups, classes, costs, predicted, **draws),
    }


def _prevalence(
    probabilities: np.ndarray,
    labels: np.ndarray,
    predicted: np.ndarray,
    groups: np.ndarray,
    classes: Sequence[str],
    thresholds: Mapping[str, float | None],
    stated: Mapping[str, float] | None,
    **draws: int,
) -> dict[str, dict[str, Any]]:
    """Predictive values and net benefit of melanoma, and of the classes whose prevalence is stated."""
    stated = stated or {}
    for code in stated:
        if code not in classes:
            hint = did_you_mean(code, classes)
            raise UserError(f"evaluate.prevalence names {code!r}; the classes are {', '.join(classes)}{hint}")
    table = {}
    for place, code in enumerate(classes):
        if code not in stated and code != MELANOMA:
            continue
        threshold = thresholds.get("melanoma") if code == MELANOMA else None
        flagged = predicted == place if threshold is None else probabilities[:, place] >= threshold
        table[code] = prevalence_report(
            probabilities[:, place], labels == place, flagged, groups, stated=stated.get(code), **draws
        )
    return table


def with_metadata(table: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """Join the METADATA and the further attributes (extra_<name>) of the label table to predictions, by image.

    Raises
    ------
    UserError : an image of the predictions has no label
    """
    known = labels.set_index("image_id")
    lost = table.loc[~table["image_id"].isin(known.index), "image_id"]
    if len(lost):
        raise UserError(f"{len(lost):,} predicted images are in no label table, the first is {lost.iloc[0]}")
    return table.join(known[[*METADATA, *(column for column in known if column.startswith(EXTRA))]], on="image_id")


def _melanoma(
    probabilities: np.ndarray,
    labels: np.ndarray,
    predicted: np.ndarray,
    groups: np.ndarray,
    classes: Sequence[str],
    thresholds: Mapping[str, float | None],
    **draws: int,
) -> dict[str, Any] | None:
    """Melanoma against the rest; None where it is no class."""
    if MELANOMA not in classes:
        return None
    place, threshold, abstain = list(classes).index(MELANOMA), thresholds.get("melanoma"), thresholds.get("abstain")
    caught = caught_melanomas(probabilities, predicted, place, threshold=threshold, abstain=abstain)
    return melanoma_report(
        probabilities[:, place], labels == place, groups, threshold=threshold, caught=caught, **draws
    )


def _lesion_level(
    table: pd.DataFrame, classes: Sequence[str], thresholds: Mapping[str, float | None], **draws: int
) -> dict[str, Any]:
    probabilities, labels, groups, predicted = lesion_view(table, classes)
    return {
        "lesions": len(labels),
        "metrics": headline_metrics(probabilities, labels, classes, predicted),
        "intervals": _bounds(bootstrap_intervals(probabilities, labels, groups, classes, predicted, **draws)),
        "melanoma": _melanoma(probabilities, labels, predicted, groups, classes, thresholds, **draws),
    }


def _per_class(
    table: pd.DataFrame,
    probabilities: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    predicted: np.ndarray,
    **draws: int,
) -> dict[str, dict[str, Any]]:
    groups = table["group_id"].to_numpy()
    intervals = class_intervals(probabilities, labels, groups, classes, predicted, **draws)
    lesions = table.groupby("dx")["lesion_id"].nunique()
    return {
        code: row | {"lesions": int(lesions.get(code, 0)), "intervals": intervals[code]}
        for code, row in class_metrics(probabilities, labels, classes, predicted).items()
    }


def _bounds(intervals: Mapping[str, tuple[float, float]]) -> dict[str, dict[str, float]]:
    return {name: {"low": low, "high": high} for name, (low, high) in intervals.items()}
