"""Scores by sex, age, site, source and confirmation of the label, and the gaps between them.

Small groups are marked and never compared. What is compared keeps its promise although many pairs are looked at: the
intervals of all gaps of an attribute in a metric hold at once (Tukey and Kramer's procedure; Hayter, Annals of
Statistics 12:61, 1984). The interval of a gap comes from those of its two sides, so that a side without a mistake is as
uncertain as it should be (Zou and Donner, Statistics in Medicine 27:1693, 2008; for two proportions Newcombe, ibid.
17:873, 1998).
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from exp_tools.evaluation.metrics.bootstrap import SMALL_GROUPS
from exp_tools.evaluation.metrics.subgroup_scores import (
    ATTRIBUTES,
    LEVEL,
    PREFIX,
    UNKNOWN,
    Subgroup,
    find_subgroups,
    point_scores,
    score_intervals,
)
from exp_tools.taxonomy import MELANOMA


def subgroup_report(
    table: pd.DataFrame,
    classes: Sequence[str],
    *,
    resamples: int = 2000,
    seed: int = 0,
    melanoma_threshold: float | None = None,
) -> list[dict[str, Any]]:
    """Scores of all images, then of each value of each attribute.

    Accuracy depends on which diagnoses a subgroup has, as some are easier: read it with the sensitivities.

    Parameters
    ----------
    table : rows of a prediction table with sex, age (years, NaN: unknown), localization, source and dx_type
    classes : the C classes, in the order of the model
    resamples, seed : of the bootstrap, by lesion group within each subgroup
    melanoma_threshold : flag an image as melanoma if its probability is at least this; None: the most probable class

    Returns
    -------
    list of dicts, the first with attribute "all" and value "all". Ages are in bands of 20 years; other values come with
    the most frequent first, `unknown` last. Each dict has
        attribute, value, images, lesions
        small : fewer than 10 lesion groups
        accuracy, balanced_accuracy (over the classes that occur), macro_auc : NaN where undefined
        intervals : dict metric -> {"low", "high", "small"}, 95 %. `small`: fewer than 10 lesion groups of the rarest
            thing that the metric needs (all; of a class that occurs; of melanomas, of the others, of both)
        melanoma : None if it is not a class, else dict with images, lesions (of melanoma), sensitivity, specificity of
            the most probable class, with a threshold also sensitivity_at_threshold and specificity_at_threshold, auc,
            and intervals of these

    Raises
    ------
    UserError : as `classification.headline_metrics`; a diagnosis that is not a class
    """
    subgroups = find_subgroups(table, classes, melanoma_threshold)
    return [_row(subgroup, table, classes, resamples=resamples, seed=seed) for subgroup in subgroups]


def subgroup_gaps(
    table: pd.DataFrame,
    classes: Sequence[str],
    *,
    resamples: int = 2000,
    seed: int = 0,
    melanoma_threshold: float | None = None,
) -> list[dict[str, Any]]:
    """The gap that matters most, for each attribute and metric with at least two values that are not small.

    That is the largest among the gaps whose interval lies above 0, or the largest of all where none does. `unknown` is
    no group of people and is not compared.

    Parameters
    ----------
    as `subgroup_report`

    Returns
    -------
    list of dicts with
        attribute, metric (those of melanoma begin with melanoma_)
        best, worst : the two values
        gap : score of the best less that of the worst, >= 0
        interval : {"low", "high"}; those of all pairs of values of an attribute in a metric hold at once with 95 %
        clear : the interval lies above 0
        compared : number of values that are not small

    Raises
    ------
    UserError : as `subgroup_report`
    """
    rows = []
    every = find_subgroups(table, classes, melanoma_threshold)
    for attribute in ATTRIBUTES:
        members = [subgroup for subgroup in every if subgroup.attribute == attribute and subgroup.value != UNKNOWN]
        gaps = _gaps(members, resamples=resamples, seed=seed)
        for metric in {gap["metric"]: None for gap in gaps}:
            found = [gap for gap in gaps if gap["metric"] == metric]
            rows.append({"attribute": attribute} | max(found, key=lambda gap: (gap["clear"], gap["gap"])))
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


def _gaps(members: Sequence[Subgroup], **draws: int) -> list[dict[str, Any]]:
    """The gap of each pair of values in each metric in which neither is small."""
    comparable = {
        metric: [subgroup.value for subgroup in members if subgroup.measures[metric].units >= SMALL_GROUPS]
        for metric in dict.fromkeys(metric for subgroup in members for metric in subgroup.measures)
    }
    scores = {subgroup.value: point_scores(subgroup) for subgroup in members}
    gaps = []
    for metric, values in comparable.items():
        if len(values) < 2:
            continue
        level = _level_of_each(len(values))
        bounds = {
            subgroup.value: score_intervals(subgroup, [metric], level=level, **draws)[metric]
            for subgroup in members
            if subgroup.value in values
        }
        for pair in combinations(values, 2):
            best, worst = sorted(pair, key=lambda value: -scores[value][metric])
            gap = {"metric": metric, "best": best, "worst": worst, "compared": len(values)}
            gaps.append(gap | _difference(scores[best][metric], bounds[best], scores[worst][metric], bounds[worst]))
    return gaps


def _level_of_each(values: int) -> float:
    """The level of one score's interval at which the gaps of all pairs of so many values hold simultaneously."""
    from scipy.stats import norm, studentized_range

    reach = studentized_range.ppf(LEVEL, values, np.inf) / math.sqrt(2)
    return float(1 - 2 * norm.sf(reach))


def _difference(
    high: float, of_high: tuple[float, float], low: float, of_low: tuple[float, float]
) -> dict[str, float | bool | dict[str, float]]:
    bounds = {
        "low": high - low - math.hypot(high - of_high[0], of_low[1] - low),
        "high": high - low + math.hypot(of_high[1] - high, low - of_low[0]),
    }
    return {"gap": high - low, "interval": bounds, "clear": bounds["low"] > 0}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {metric: value for metric, value in values.items() if not metric.startswith(PREFIX)}


def _of_melanoma(values: Mapping[str, Any]) -> dict[str, Any]:
    return {metric.removeprefix(PREFIX): value for metric, value in values.items() if metric.startswith(PREFIX)}
