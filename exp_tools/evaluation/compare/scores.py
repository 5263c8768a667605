"""The scores of one result of a comparison, under any weights of its lesions."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from exp_tools.errors import UserError, did_you_mean
from exp_tools.evaluation.compare.groups import Group
from exp_tools.evaluation.compare.paired import SeedSpread, mean_scorer, remembered, widened
from exp_tools.evaluation.metrics.bootstrap import SMALL_GROUPS, weighted_intervals
from exp_tools.evaluation.metrics.catalogue import COST, HEADLINE, OF_A_CLASS, PARTIAL_AREAS, POINTS, metric_of
from exp_tools.evaluation.metrics.classification import confusion_metrics
from exp_tools.evaluation.metrics.melanoma import isic_2024_partial_auc, partial_auc
from exp_tools.evaluation.metrics.weighted import (
    RankingSums,
    RocSteps,
    Scorer,
    confusion_sums,
    headline_scorer,
    matrices,
)
from exp_tools.evaluation.predictions import as_arrays, decisions
from exp_tools.evaluation.probabilities import cost_matrix
from exp_tools.evaluation.validation import class_rates, divide, mean_defined
from exp_tools.taxonomy import MELANOMA

LEVEL = 0.95
PRIMARY = "macro_auc"
OTHERS = ("balanced_accuracy", "macro_f1")
BOTH_RATES = {"sensitivity": "specificity", "specificity": "sensitivity"}
"""Moving a threshold raises one and lowers the other, so that neither is judged alone."""
RANKED = ("macro_auc", "average_precision", "auc", "partial_auc", "isic_2024_partial_auc", "aurc")
"""Scores that compare images with each other, which is fair only among those of one model."""


def check_metrics(
    wanted: Sequence[str] | None, groups: Sequence[Group], primary: str = PRIMARY, split: str = "test"
) -> list[str]:
    """The metrics to compare, the primary one first, a sensitivity and its specificity always together.

    A metric is one of HEADLINE, `cost`, `METRIC:CLASS` of OF_A_CLASS or PARTIAL_AREAS for one class against the rest,
    or `sensitivity@POINT:CLASS` (and specificity) at an operating point of POINTS. None: balanced accuracy, macro F1,
    and where melanoma is a class its sensitivity and specificity at the model's threshold; on validation, which chose
    that, its partial AUC.

    Raises
    ------
    UserError : there is no such metric or class; an operating point on validation; nothing to choose it on
    """
    classes = list(dict.fromkeys(code for group in groups for code in group.classes))
    choosable = any(_choosable(group) for group in groups)
    if not wanted:
        wanted = list(OTHERS)
        if MELANOMA in classes:
            wanted.append(f"sensitivity@threshold:{MELANOMA}" if choosable else f"partial_auc:{MELANOMA}")
    of_a_class = [*OF_A_CLASS, *PARTIAL_AREAS, *(f"{name}@{point}" for name in BOTH_RATES for point in POINTS)]
    known = [*HEADLINE, COST.key, *(f"{name}:{code}" for name in of_a_class for code in classes)]
    metrics: list[str] = []
    for name in [primary, *wanted]:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UserError(
                f"no metric {name!r}{hint}; choose of {', '.join(HEADLINE)}, {COST.key}, METRIC:CLASS with "
                f"{', '.join([*OF_A_CLASS, *PARTIAL_AREAS])}, or sensitivity@POINT:CLASS with {', '.join(POINTS)}; "
                f"classes: {', '.join(classes)}"
            )
        if "@" in name and split == "val":
            raise UserError(f"{name}: validation chose this operating point, so it says nothing there; `--split test`")
        if "@" in name and not choosable:
            raise UserError(f"{name}: no prediction table has rows of validation, on which the threshold is chosen")
        if "@threshold:" in name and not name.endswith(f":{MELANOMA}"):
            raise UserError(f"{name}: a model has a threshold for {MELANOMA} only; name specificity_90 or _95")
        metrics += [name, partner] if (partner := partner_of(name)) else [name]
    return list(dict.fromkeys(metrics))


def partner_of(metric: str) -> str:
    """The specificity of a sensitivity and the other way round; empty for other metrics."""
    found = re.match("(sensitivity|specificity)(?=[@:])", metric)
    return BOTH_RATES[found[0]] + metric[found.end() :] if found else ""


def _choosable(group: Group) -> bool:
    return all(run.validation is not None for run in group.predictors)


class Scored:
    """A group's scores, and the same scores under any weights of its images."""

    def __init__(self, group: Group, metrics: Sequence[str], costs: Mapping[str, Mapping[str, float]] | None = None):
        self.group, self.costs = group, costs
        self.metrics = [
            name
            for name in metrics
            if (":" not in name or name.split(":")[1] in group.classes) and ("@" not in name or _choosable(group))
        ]
        self.lesions = group.repeats[0]["group_id"].to_numpy()
        self.scorer = remembered(mean_scorer([self._scorer(table) for table in group.repeats]))
        self.units = {name: _units(group, name) for name in self.metrics}
        self.of_seeds = self._of_each(group.repeats)
        """The score of each seed, by metric."""
        self.of_folds: dict[str, list[float]] = {}
        if group.folds > 1:
            self.of_folds = self._of_each([run.table.assign(run=n) for n, run in enumerate(group.runs)])
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
        answers = [self._scorer(table)(np.ones((len(table), 1))) for table in tables]
        return {name: [float(answer[name][0]) for answer in answers] for name in self.metrics}

    def _scorer(self, table: pd.DataFrame) -> Scorer:
        """Scores of one table; those that compare images with each other are means over the folds (their models)."""
        pooled = [name for name in self.metrics if name.partition(":")[0] not in RANKED]
        ranked = [name for name in self.metrics if name not in pooled]
        whole = self._of_one(table, pooled)
        folds = [np.flatnonzero(table["run"] == run) for run in table["run"].unique()] if ranked else []
        parts = [(rows, self._of_one(table.iloc[rows], ranked)) for rows in folds]

        def score(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
            answers = [scorer(weights[rows]) for rows, scorer in parts]
            means = {name: mean_defined(np.stack([answer[name] for answer in answers], axis=-1)) for name in ranked}
            found = whole(weights) | means
            return {name: found[name] for name in self.metrics}

        return score

    def _of_one(self, table: pd.DataFrame, metrics: Sequence[str]) -> Scorer:
        """Scores of one table as if one model had predicted it."""
        classes = list(self.group.classes)
        probabilities, labels, _ = as_arrays(table, classes)
        predicted = decisions(table, classes)
        cells = confusion_sums(predicted, labels, len(classes))
        ranked = any(":" not in name and name != COST.key and not metric_of(name).of_counts for name in metrics)
        headline = headline_scorer(probabilities, labels, predicted) if ranked else None
        parts = {name: name.partition(":")[::2] for name in metrics}
        places = {name: classes.index(code) for name, (_, code) in parts.items() if code}
        rankings = {
            name: RankingSums(probabilities[:, places[name]], labels == places[name])
            for name, (key, code) in parts.items()
            if code and (key in RANKED)
        }
        flagged = {name: self._flagged(table, name) for name in metrics if "@" in name}
        paid = cost_matrix(self.costs, classes)[labels, predicted] if COST.key in metrics else None

        def score(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
            matrix = matrices(cells, weights)
            rates, whole = class_rates(matrix), headline(weights) if headline else confusion_metrics(matrix)
            found = {}
            for name, (key, code) in parts.items():
                if name in rankings:
                    found[name] = RANKING[key](rankings[name].steps(weights))
                elif name in flagged:
                    among = (labels == places[name]) == key.startswith("sensitivity")
                    right = among & (flagged[name] == key.startswith("sensitivity"))
                    found[name] = divide(weights[right].sum(axis=0), weights[among].sum(axis=0))
                elif name == COST.key:
                    found[name] = np.einsum("n,nr->r", paid, weights) / weights.sum(axis=0)
                else:
                    found[name] = rates[key][:, places[name]] if code else whole[name]
            return found

        return score

    def _flagged(self, table: pd.DataFrame, metric: str) -> NDArray[np.bool_]:
        """The images at or above the threshold of an operating point, which each run chose on its own validation."""
        key, _, code = metric.partition(":")
        thresholds = [run.threshold(key.partition("@")[2], code) for run in self.group.predictors]
        return table[f"p_{code}"].to_numpy() >= np.array(thresholds)[table["run"].to_numpy(dtype=int)]


RANKING: dict[str, Callable[[RocSteps], NDArray[np.float64]]] = {
    "auc": lambda steps: steps.ranking_scores()[0],
    "average_precision": lambda steps: steps.ranking_scores()[1],
    "partial_auc": partial_auc,
    "isic_2024_partial_auc": isic_2024_partial_auc,
}


def _units(group: Group, metric: str) -> int:
    """On how many lesion groups a score rests, as in `intervals`."""
    table = group.repeats[0]
    key, _, code = metric.partition(":")
    name = key.partition("@")[0]
    if not code:
        rarest = int(table.groupby("dx")["group_id"].nunique().min())
        return group.lesions if metric_of(name).over_all else min(max(rarest, 2), group.lesions)
    positives, negatives = (
        table.loc[side, "group_id"].nunique() for side in (table["dx"] == code, table["dx"] != code)
    )
    if name == "precision":
        return min(each.loc[each["predicted"] == code, "group_id"].nunique() for each in group.repeats)
    return {"sensitivity": positives, "f1": positives, "specificity": negatives}.get(name, min(positives, negatives))
