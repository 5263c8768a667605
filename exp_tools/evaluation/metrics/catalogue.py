"""Every metric and its properties: label, range, better direction, and the scale of its interval.

The bootstrap, `exp-tools compare`, the model card, the report, the plots and the web app read it from here. To add one
that follows from the confusion matrix, write a function in `confusion.py` and an entry in HEADLINE.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from exp_tools.evaluation.metrics import confusion


class Scale(NamedTuple):
    """How an interval is computed: on the log-odds of a value's place between `low` and `high` ("share"), on its
    logarithm ("loss", 0 or more), or as it is ("difference")."""

    kind: Literal["share", "loss", "difference"]
    low: float = 0.0
    high: float = 1.0


SHARE = Scale("share")
CORRELATION = Scale("share", -1.0, 1.0)
LOSS = Scale("loss", 0.0, math.inf)
DIFFERENCE = Scale("difference", -math.inf, math.inf)


@dataclass(frozen=True)
class Metric:
    """One metric of a set of predictions, or of one class in it.

    key : its name in files and on the command line
    label : its name for people
    of_counts : computes it from confusion matrices; None for one that needs the probabilities
    low, high : the values it can have
    lower_is_better : a loss
    scale : of its interval
    over_all : it rests on all lesions; False: on the rarest class, as a mean over classes does
    in_summary : part of metrics/evaluate.json, which `dvc metrics show` and `dvc exp show` print
    in_tables : part of the tables that people read
    holds_from : lesions (of the rarer side) from which its interval holds the truth as often as it says, found by
        `benchmarks.statistics`; infinite: never
    """

    key: str
    label: str
    of_counts: Callable[[confusion.Counts], confusion.Values] | None = None
    low: float = 0.0
    high: float = 1.0
    lower_is_better: bool = False
    scale: Scale = SHARE
    over_all: bool = False
    in_summary: bool = True
    in_tables: bool = True
    holds_from: float = 0


def _by_key(*metrics: Metric) -> dict[str, Metric]:
    return {metric.key: metric for metric in metrics}


HEADLINE = _by_key(
    Metric("balanced_accuracy", "balanced accuracy", confusion.balanced_accuracy),
    Metric("accuracy", "accuracy", confusion.accuracy, over_all=True),
    Metric("macro_f1", "macro F1", confusion.macro_f1),
    Metric("macro_auc", "macro AUC"),
    Metric("mcc", "Matthews correlation", confusion.matthews_correlation, low=-1, scale=CORRELATION, over_all=True),
    Metric("average_precision", "average precision"),
    Metric("brier", "Brier score", high=2, lower_is_better=True, scale=LOSS, over_all=True),
    Metric("ece", "calibration error", lower_is_better=True, over_all=True, holds_from=math.inf),
    Metric("log_loss", "log-loss", high=math.inf, lower_is_better=True, scale=LOSS, over_all=True),
    Metric(
        "aurc",
        "area under the risk-coverage curve",
        lower_is_better=True,
        over_all=True,
        in_summary=False,
        in_tables=False,
    ),
    Metric("weighted_f1", "weighted F1", confusion.weighted_f1, over_all=True, in_tables=False),
    Metric("macro_precision", "macro precision", confusion.macro_precision, in_tables=False),
    Metric("macro_specificity", "macro specificity", confusion.macro_specificity, in_tables=False),
    Metric(
        "cohen_kappa",
        "Cohen's kappa",
        confusion.cohen_kappa,
        low=-1,
        scale=CORRELATION,
        over_all=True,
        in_summary=False,
        in_tables=False,
    ),
)
"""Metrics of a whole set, in the order of tables; a page shows the first four in large type."""

OF_A_CLASS = _by_key(
    Metric("sensitivity", "sensitivity"),
    Metric("specificity", "specificity"),
    Metric("precision", "precision"),
    Metric("f1", "F1"),
    Metric("auc", "AUC", holds_from=20),
    Metric("average_precision", "average precision"),
)
"""Metrics of one class against the rest."""

PARTIAL_AREAS = _by_key(
    Metric("partial_auc", "partial AUC (specificity from 80 %)"),
    Metric(
        "isic_2024_partial_auc",
        "partial AUC (sensitivity from 80 %)",
        high=0.2,
        scale=Scale("share", 0.0, 0.2),
        holds_from=80,
    ),
)
"""Parts of the area under the ROC curve of one class against the rest."""

COST = Metric("cost", "mean cost", high=math.inf, lower_is_better=True, scale=LOSS, over_all=True)
"""Mean cost of a decision under `evaluate.costs`."""

POINTS = {
    "threshold": "the model's threshold",
    "specificity_90": "90 % specificity on validation",
    "specificity_95": "95 % specificity on validation",
}
"""Operating points of one class against the rest, all chosen on validation: `sensitivity@threshold:mel`."""


def metric_of(name: str) -> Metric:
    """The metric that a name means: `balanced_accuracy`, `sensitivity:mel` of one class, or
    `sensitivity@threshold:mel` at one of POINTS. KeyError for no metric."""
    key, _, code = name.partition(":")
    if code:
        return (OF_A_CLASS | PARTIAL_AREAS)[key.partition("@")[0]]
    return COST if key == COST.key else HEADLINE[key]


def label_of(name: str) -> str:
    """A metric's name for people: `balanced accuracy`, `sensitivity of mel`."""
    key, _, code = name.partition(":")
    point = POINTS.get(key.partition("@")[2])
    words = f"{metric_of(name).label} of {code}" if code else metric_of(name).label
    return f"{words} at {point}" if point else words


def in_tables() -> dict[str, str]:
    """Key and label of each metric that tables for people show, in their order."""
    return {key: metric.label for key, metric in HEADLINE.items() if metric.in_tables}
