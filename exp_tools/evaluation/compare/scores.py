"""The scores of one result of a comparison, under any weights of its lesions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from exp_tools.errors import UserError, did_you_mean
from exp_tools.evaluation.compare.groups import Group
from exp_tools.evaluation.metrics.bootstrap import SMALL_GROUPS, weighted_intervals
from exp_tools.evaluation.metrics.catalogue import HEADLINE, OF_A_CLASS, metric_of
from exp_tools.evaluation.metrics.classification import confusion_metrics
from exp_tools.evaluation.metrics.paired import SeedSpread, mean_scorer, remembered
from exp_tools.evaluation.metrics.weighted import RankingSums, Scorer, confusion_sums, headline_scorer, matrices
from exp_tools.evaluation.predictions import as_arrays, decisions
from exp_tools.evaluation.validation import class_rates
from exp_tools.taxonomy import MELANOMA

LEVEL = 0.95
DEFAULT = ("balanced_accuracy", "macro_f1", "macro_auc")


def check_metrics(wanted: Sequence[str] | None, groups: Sequence[Group]) -> list[str]:
    """The metrics to compare: a headline metric, or `METRIC:CLASS` of OF_A_CLASS for one class against the rest.

    None: balanced accuracy, macro F1, macro AUC, and the sensitivity for melanoma where that is a class.

    Raises
    ------
    UserError : there is no such metric or class
    """
    classes = list(dict.fromkeys(code for group in groups for code in group.classes))
    if not wanted:
        return [*DEFAULT, *([f"sensitivity:{MELANOMA}"] if MELANOMA in classes else [])]
    known = [*HEADLINE, *(f"{name}:{code}" for name in OF_A_CLASS for code in classes)]
    for name in wanted:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UserError(
                f"no metric {name!r}{hint}; choose of {', '.join(HEADLINE)}, or METRIC:CLASS with "
                f"{', '.join(OF_A_CLASS)} and {', '.join(classes)}"
            )
    return list(dict.fromkeys(wanted))


class Scored:
    """A group's scores, and the same scores under any weights of its images."""

    def __init__(self, group: Group, metrics: Sequence[str]):
        self.group = group
        self.metrics = [name for name in metrics if ":" not in name or name.split(":")[1] in group.classes]
        self.lesions = group.repeats[0]["group_id"].to_numpy()
        self.scorer = remembered(mean_scorer([_scorer(table, group.classes, self.metrics) for table in group.repeats]))
        self.units = {name: _units(group, name) for name in self.metrics}
        self.of_seeds = self._of_each(group.repeats)
        """The score of each seed, by metric."""
        self.of_folds = self._of_each([run.table for run in group.runs]) if group.folds > 1 else {}
        """The score of each run, by metric, where the runs are folds."""

    def scores(self, spreads: Mapping[str, SeedSpread], **draws: int) -> dict[str, dict[str, Any]]:
        """Mean, spread and 95 % interval of each metric, see `compare.compare_groups`."""
        scales = {name: metric_of(name).scale for name in self.metrics}
        intervals = weighted_intervals(
            self.scorer, self.lesions, len(self.lesions), level=LEVEL, scales=scales, units=self.units, **draws
        )
        table = {}
        for name in self.metrics:
            mean = float(np.mean(self.of_seeds[name]))
            margin = spreads[name].margin([self.group.trainings], LEVEL)
            low, high = widened(mean, *intervals[name], margin)
            each = self.of_seeds[name] if len(self.of_seeds[name]) > 1 else self.of_folds.get(name, [mean])
            table[name] = {
                "mean": mean,
                "sd": float(np.std(each, ddof=1)) if len(each) > 1 else float("nan"),
                "low": max(low, metric_of(name).low) if low == low else low,
                "high": min(high, metric_of(name).high) if high == high else high,
                "small": self.units[name] < SMALL_GROUPS,
            }
        return table

    def _of_each(self, tables: Sequence[pd.DataFrame]) -> dict[str, list[float]]:
        answers = [_scorer(table, self.group.classes, self.metrics)(np.ones((len(table), 1))) for table in tables]
        return {name: [float(answer[name][0]) for answer in answers] for name in self.metrics}


def widened(centre: float, low: float, high: float, margin: float) -> tuple[float, float]:
    """An interval with one more source of uncertainty, independent of the first: margins add up as squares."""
    return centre - math.hypot(centre - low, margin), centre + math.hypot(high - centre, margin)


def _scorer(table: pd.DataFrame, classes: Sequence[str], metrics: Sequence[str]) -> Scorer:
    probabilities, labels, _ = as_arrays(table, classes)
    predicted = decisions(table, classes)
    cells = confusion_sums(predicted, labels, len(classes))
    ranked = any(":" not in name and not metric_of(name).of_counts for name in metrics)
    headline = headline_scorer(probabilities, labels, predicted) if ranked else None
    rankings = {
        name: RankingSums(probabilities[:, place], labels == place)
        for name in metrics
        if name.startswith(("auc:", "average_precision:"))
        for place in [list(classes).index(name.split(":")[1])]
    }

    def score(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        matrix = matrices(cells, weights)
        rates, whole = class_rates(matrix), headline(weights) if headline else confusion_metrics(matrix)
        found = {}
        for name in metrics:
            metric, _, code = name.partition(":")
            if name in rankings:
                area, precision = rankings[name].steps(weights).ranking_scores()
                found[name] = area if metric == "auc" else precision
            else:
                found[name] = rates[metric][:, list(classes).index(code)] if code else whole[name]
        return found

    return score


def _units(group: Group, metric: str) -> int:
    """On how many lesion groups a score rests, as in `intervals`."""
    table = group.repeats[0]
    name, _, code = metric.partition(":")
    if not code:
        rarest = int(table.groupby("dx")["group_id"].nunique().min())
        return group.lesions if metric_of(name).over_all else min(max(rarest, 2), group.lesions)
    positives, negatives = (
        table.loc[side, "group_id"].nunique() for side in (table["dx"] == code, table["dx"] != code)
    )
    if name == "precision":
        return min(each.loc[each["predicted"] == code, "group_id"].nunique() for each in group.repeats)
    return {"sensitivity": positives, "f1": positives, "specificity": negatives}.get(name, min(positives, negatives))
