"""Scores by sex, age, site, source, confirmation of the label and further attributes, and the gaps between them.

Small groups are marked and never compared. What is compared keeps its promise although many pairs are looked at: within
an attribute and metric by Tukey and Kramer's procedure (Hayter, Annals of Statistics 12:61, 1984), over all of those by
Holm's (Scandinavian Journal of Statistics 6:65, 1979), so that a set without any gap has a clear one at most once in 20
times. The interval of a gap comes from those of its two sides, so that a side without a mistake is as uncertain as it
should be (Zou and Donner, Statistics in Medicine 27:1693, 2008; for two proportions Newcombe, ibid. 17:873, 1998).

Groups with other diagnoses have other scores by construction, so what depends on them is standardised: the accuracy of
each class, and the specificity and AUC of melanoma against each other class, are averaged with the shares that the
classes have in the whole set (direct standardisation). What differs within a class, such as nevi under observation and
nevi that were excised, stays.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from exp_tools.evaluation.metrics.bootstrap import SMALL_GROUPS, Spread, weighted_spreads
from exp_tools.evaluation.metrics.subgroup_scores import (
    AT_THRESHOLD,
    ATTRIBUTES,
    LEVEL,
    PREFIX,
    UNKNOWN,
    Measure,
    Subgroup,
    find_subgroups,
    point_scores,
    score_intervals,
)
from exp_tools.evaluation.validation import corrected, divide
from exp_tools.taxonomy import MELANOMA

NOT_COMPARED = "dx_type"
"""The attribute whose values are shown and not compared: how a label was confirmed, which chooses the diagnoses."""
SENSITIVITY = f"{PREFIX}sensitivity"
FEWEST_OF_CLASS = 5
"""Lesions of a class that every compared value must have for the class to count in a standardised score."""


def subgroup_report(
    table: pd.DataFrame,
    classes: Sequence[str],
    *,
    attributes: Sequence[str] = ATTRIBUTES,
    resamples: int = 2000,
    seed: int = 0,
    melanoma_threshold: float | None = None,
) -> list[dict[str, Any]]:
    """Scores of all images, then of each value of each attribute.

    Accuracy depends on which diagnoses a subgroup has, as some are easier: read it with the sensitivities.

    Parameters
    ----------
    table : rows of a prediction table with sex, age (years, NaN: unknown), localization, source and dx_type, and
        extra_<name> of further attributes
    classes : the C classes, in the order of the model
    attributes : what to score apart, in this order; a further one that the table lacks has no rows
    resamples, seed : of the bootstrap, by lesion group within each subgroup
    melanoma_threshold : flag an image as melanoma if its probability is at least this; None: the most probable class

    Returns
    -------
    list of dicts, the first with attribute "all" and value "all". Ages are in bands of 20 years; other values come with
    the most frequent first, `unknown` last; of further attributes as `attribute_groups` says. Each dict has
        attribute, value, images, lesions
        small : fewer than 10 lesion groups
        accuracy, balanced_accuracy, macro_auc : NaN where undefined; means over classes are where a class is missing
            that the whole set has, since over fewer classes they are another score
        intervals : dict metric -> {"low", "high", "small"}, 95 %. `small`: fewer than 10 lesion groups of the rarest
            thing that the metric needs (all; of a class that occurs; of melanomas, of the others, of both)
        melanoma : None if it is not a class, else dict with images, lesions (of melanoma), sensitivity, specificity of
            the most probable class, with a threshold also sensitivity_at_threshold and specificity_at_threshold, auc,
            and intervals of these

    Raises
    ------
    UserError : as `classification.headline_metrics`; a diagnosis that is not a class
    """
    subgroups = find_subgroups(table, classes, melanoma_threshold, attributes)
    return [_row(subgroup, table, classes, resamples=resamples, seed=seed) for subgroup in subgroups]


def subgroup_gaps(
    table: pd.DataFrame,
    classes: Sequence[str],
    *,
    attributes: Sequence[str] = ATTRIBUTES,
    resamples: int = 2000,
    seed: int = 0,
    melanoma_threshold: float | None = None,
) -> list[dict[str, Any]]:
    """The surest gap of each attribute and metric with at least two values that are not small.

    `unknown` is no group of people and is not compared; neither is how a label was confirmed (`dx_type`), which chooses
    the diagnoses. The metrics are the accuracy, and of melanoma sensitivity and specificity (at the threshold where
    there is one) and AUC; all but sensitivity standardised by class.

    Parameters
    ----------
    as `subgroup_report`

    Returns
    -------
    list of dicts with
        attribute, metric (standardised_accuracy, melanoma_sensitivity, melanoma_standardised_specificity, both with
            _at_threshold where there is one, melanoma_standardised_auc)
        over : the classes that a standardised metric is the mean over: those of which every compared value has at
            least FEWEST_OF_CLASS lesions; empty for sensitivity
        best, worst : the two values
        gap : score of the best less that of the worst, >= 0
        shrunken : the gap of the two after their scores were drawn to the mean of all values as far as chance explains
            their spread (DerSimonian and Laird, Controlled Clinical Trials 7:177, 1986); the largest of many gaps is
            too large on average, this one is not
        interval : {"low", "high"}; those of all pairs of values of an attribute in a metric hold at once with 95 %
        p : of the attribute and metric, corrected for all of them (Holm)
        clear : p < 0.05
        compared : number of values that are not small

    Raises
    ------
    UserError : as `subgroup_report`
    """
    every = find_subgroups(table, classes, melanoma_threshold, attributes)
    whole = every[0]
    rows = []
    for attribute in [name for name in attributes if name != NOT_COMPARED]:
        members = [subgroup for subgroup in every if subgroup.attribute == attribute and subgroup.value != UNKNOWN]
        found = _families(members, whole, classes, resamples=resamples, seed=seed)
        rows += [{"attribute": attribute} | row for row in found]
    for place, p in corrected({place: row["p"] for place, row in enumerate(rows)}).items():
        rows[place] |= {"p": p, "clear": p < 1 - LEVEL}
    return rows


def subgroup_points(report: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """`subgroup_report` as a long table: DataFrame [attribute, value, metric, score, low, high, images, small].

    `images` are those that the row of the subgroup has; what is undefined has no row. Six decimals.
    """
    rows = []
    for row in report:
        for metric, score, interval in row_scores(row):
            about = row["attribute"], row["value"], metric
            rows.append((*about, score, interval["low"], interval["high"], row["images"], interval["small"]))
    columns = ["attribute", "value", "metric", "score", "low", "high", "images", "small"]
    return pd.DataFrame(rows, columns=columns).dropna(subset="score", ignore_index=True).round(6)


def row_scores(row: Mapping[str, Any]) -> list[tuple[str, float, Mapping[str, Any]]]:
    """(metric, score, interval) of a row of `subgroup_report`; those of melanoma begin with melanoma_."""
    scores = [(metric, row[metric], interval) for metric, interval in row["intervals"].items()]
    if melanoma := row["melanoma"]:
        scores += [(PREFIX + metric, melanoma[metric], bounds) for metric, bounds in melanoma["intervals"].items()]
    return scores


def _row(subgroup: Subgroup, table: pd.DataFrame, classes: Sequence[str], **draws: int) -> dict[str, Any]:
    part, measures = table.iloc[subgroup.places], subgroup.measures
    scores = point_scores(subgroup)
    intervals = {
        metric: {"low": low, "high": high, "small": measures[metric].units < SMALL_GROUPS}
        for metric, (low, high) in score_intervals(subgroup, measures, **draws).items()
    }
    row = {
        "attribute": subgroup.attribute,
        "value": subgroup.value,
        "images": len(part),
        "lesions": part["lesion_id"].nunique(),
        "small": measures["accuracy"].units < SMALL_GROUPS,
        **_plain(scores),
        "intervals": _plain(intervals),
        "melanoma": None,
    }
    if MELANOMA in classes:
        cases = part[part["dx"] == MELANOMA]
        about = {"images": len(cases), "lesions": cases["lesion_id"].nunique()}
        row["melanoma"] = about | _of_melanoma(scores) | {"intervals": _of_melanoma(intervals)}
    return row


def _families(
    members: Sequence[Subgroup], whole: Subgroup, classes: Sequence[str], **draws: int
) -> list[dict[str, Any]]:
    """The surest gap of each metric, p for this metric alone."""
    big = [subgroup for subgroup in members if np.unique(subgroup.groups).size >= SMALL_GROUPS]
    enough = np.min([subgroup.lesions for subgroup in big], axis=0, initial=FEWEST_OF_CLASS) >= FEWEST_OF_CLASS
    common = {name: enough & by_class.of for name, by_class in whole.by_class.items()}
    measured = {subgroup.value: _comparable(subgroup, common, whole) for subgroup in big}
    spreads = {
        subgroup.value: weighted_spreads(
            lambda weights, of=measured[subgroup.value]: {name: measure.score(weights) for name, measure in of.items()},
            subgroup.groups,
            subgroup.places.size,
            units={name: measure.units for name, measure in measured[subgroup.value].items()},
            **draws,
        )
        for subgroup in big
        if measured[subgroup.value]
    }
    rows = []
    for metric in dict.fromkeys(name for of in measured.values() for name in of):
        found = {value: spreads[value][metric] for value, of in measured.items() if metric in of}
        found = {value: one for value, one in found.items() if not math.isnan(one.deviation)}
        if len(found) >= 2:
            over = [code for code, counts in zip(classes, common.get(metric, ()), strict=False) if counts]
            rows.append({"metric": metric, "over": over, "compared": len(found)} | _surest(found))
    return rows


def _comparable(subgroup: Subgroup, common: Mapping[str, NDArray[np.bool_]], whole: Subgroup) -> dict[str, Measure]:
    """The metrics in which the subgroup may be compared: those that rest on enough lesions."""
    measures = {}
    for name in (SENSITIVITY + AT_THRESHOLD, SENSITIVITY):
        if name in subgroup.measures:
            measures[name] = subgroup.measures[name]
            break
    for name, (scores, _, bound) in subgroup.by_class.items():
        if (of := common[name]).any():
            shares = whole.lesions[of] / whole.lesions[of].sum()
            lesions = int(subgroup.lesions[of].sum())
            units = lesions if bound is None else min(lesions, bound)
            measures[name] = Measure(partial(_standardised, scores, of, shares), units)
    return {name: measure for name, measure in measures.items() if measure.units >= SMALL_GROUPS}


def _standardised(scores: Callable, common: NDArray, shares: NDArray, weights: NDArray) -> NDArray[np.float64]:
    """The mean over the common classes with these shares, [R]; over those that a resample has."""
    found = scores(weights, np.flatnonzero(common))
    known = np.where(np.isnan(found), 0.0, shares)
    return divide((np.nan_to_num(found) * known).sum(axis=1), known.sum(axis=1))


def _surest(spreads: Mapping[str, Spread]) -> dict[str, Any]:
    """The pair of values whose gap is farthest from chance."""
    from scipy.stats import studentized_range

    reaches = {}
    for pair in combinations(spreads, 2):
        best, worst = sorted(pair, key=lambda value: -spreads[value].estimate)
        reaches[best, worst] = _reach(spreads[best], spreads[worst])
    best, worst = max(reaches, key=lambda pair: (reaches[pair], spreads[pair[0]].estimate - spreads[pair[1]].estimate))
    high, low = spreads[best].estimate, spreads[worst].estimate
    level = _level_of_each(len(spreads))
    bounds = _difference(high, spreads[best].interval(level), low, spreads[worst].interval(level))
    shrunken = _shrunken(spreads)
    return {
        "best": best,
        "worst": worst,
        "gap": high - low,
        "shrunken": max(0.0, shrunken[best] - shrunken[worst]),
        "interval": bounds,
        "p": float(studentized_range.sf(reaches[best, worst] * math.sqrt(2), len(spreads), np.inf)),
    }


def _reach(high: Spread, low: Spread) -> float:
    """By how many standard errors the interval of a gap may be widened until it reaches 0; 0..8, by bisection."""
    from scipy.special import ndtr

    inside, outside = 0.0, 8.0
    for _ in range(30):
        middle = (inside + outside) / 2
        level = float(1 - 2 * ndtr(-middle))
        bounds = _difference(high.estimate, high.interval(level), low.estimate, low.interval(level))
        inside, outside = (middle, outside) if bounds["low"] > 0 else (inside, middle)
    return inside


def _shrunken(spreads: Mapping[str, Spread]) -> dict[str, float]:
    """Each estimate, drawn to the mean as far as chance explains the spread of all (DerSimonian and Laird)."""
    from scipy.special import ndtri

    width = 2 * float(ndtri((1 + LEVEL) / 2))
    values = np.array([spread.estimate for spread in spreads.values()])
    errors = np.array([np.subtract(*spread.interval(LEVEL)[::-1]) / width for spread in spreads.values()])
    weights = 1 / np.maximum(errors, 1e-9) ** 2
    mean = (weights @ values) / weights.sum()
    heterogeneity = weights @ (values - mean) ** 2 - (len(values) - 1)
    between = max(0.0, heterogeneity / (weights.sum() - (weights @ weights) / weights.sum()))
    kept = between / (between + errors**2) if between else np.zeros(len(values))
    return dict(zip(spreads, (mean + kept * (values - mean)).tolist(), strict=True))


def _level_of_each(values: int) -> float:
    """The level of one score's interval at which the gaps of all pairs of so many values hold simultaneously."""
    from scipy.special import ndtr
    from scipy.stats import studentized_range

    reach = studentized_range.ppf(LEVEL, values, np.inf) / math.sqrt(2)
    return float(1 - 2 * ndtr(-reach))


def _difference(high: float, of_high: tuple[float, float], low: float, of_low: tuple[float, float]) -> dict[str, float]:
    return {
        "low": high - low - math.hypot(high - of_high[0], of_low[1] - low),
        "high": high - low + math.hypot(of_high[1] - high, low - of_low[0]),
    }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {metric: value for metric, value in values.items() if not metric.startswith(PREFIX)}


def _of_melanoma(values: Mapping[str, Any]) -> dict[str, Any]:
    return {metric.removeprefix(PREFIX): value for metric, value in values.items() if metric.startswith(PREFIX)}
