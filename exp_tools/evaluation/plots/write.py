"""Write the curves and figures of one scored set."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from exp_tools.evaluation.metrics.calibration import reliability_before_after
from exp_tools.evaluation.metrics.melanoma import caught_melanomas
from exp_tools.evaluation.metrics.prevalence import decision_curve
from exp_tools.evaluation.metrics.selective import risk_coverage
from exp_tools.evaluation.metrics.subgroups import subgroup_points
from exp_tools.evaluation.plots import classification, points
from exp_tools.evaluation.plots.calibration import (
    draw_class_calibration,
    draw_decision_curve,
    draw_reliability,
    draw_risk_coverage,
)
from exp_tools.evaluation.plots.contact_sheets import draw_missed, draw_mistakes
from exp_tools.evaluation.plots.robustness import draw_disturbed, draw_robustness
from exp_tools.evaluation.plots.subgroups import draw_subgroups
from exp_tools.evaluation.predictions import as_arrays, decisions
from exp_tools.evaluation.probabilities import Calibration
from exp_tools.evaluation.validation import confusion
from exp_tools.io import write_csv
from exp_tools.system import beside
from exp_tools.taxonomy import MELANOMA

PHOTOGRAPHS = ("mistakes", "missed_melanomas", "disturbed")
"""Figures of `draw_figures` that show images of the set."""


def write_curves(
    folder: Path, table: pd.DataFrame, classes: Sequence[str], calibration: Calibration, report: Mapping[str, Any]
) -> None:
    """Write the tables that `dvc plots` draws: roc, precision_recall, reliability, confusion, classes, risk_coverage,
    subgroups. Curves are the mean over the classes and melanoma's, so that several runs fit into one chart.

    Parameters
    ----------
    folder : where to
    table : predictions of the set
    classes, calibration : of the model
    report : of the set, see scoring.score_set
    """
    probabilities, labels, logits = as_arrays(table, classes)
    predicted = decisions(table, classes)
    for name, curves in (("roc", points.roc_points), ("precision_recall", points.precision_recall_points)):
        write_csv(folder / f"{name}.csv", points.averaged(curves(probabilities, labels, classes), MELANOMA))
    write_csv(folder / "reliability.csv", reliability_before_after(logits, labels, calibration))
    write_csv(folder / "confusion.csv", points.confusion_pairs(labels, predicted, classes))
    write_csv(folder / "classes.csv", points.class_bars(report["per_class"]))
    write_csv(folder / "risk_coverage.csv", risk_coverage(probabilities, labels, predicted))
    write_csv(folder / "subgroups.csv", subgroup_points(report["subgroups"]))


def draw_figures(
    folder: Path,
    table: pd.DataFrame,
    images: NDArray,
    classes: Sequence[str],
    calibration: Calibration,
    report: Mapping[str, Any],
    title: str,
    kind: str = "png",
) -> None:
    """Draw every picture of a set.

    Parameters
    ----------
    folder : where to
    table : predictions of the set with metadata and `row`, the place of each image in `images`
    images : uint8 [N, S, S, 3], RGB; may be memory-mapped
    classes, calibration : of the model
    report : of the set, see scoring.score_set
    title : names the set
    kind : png, svg or pdf; sheets of photographs are PNG always
    """
    probabilities, labels, logits = as_arrays(table, classes)
    predicted, per_class = decisions(table, classes), report["per_class"]
    counts = confusion(labels, predicted, len(classes))
    roc = points.roc_points(probabilities, labels, classes)
    precision_recall = points.precision_recall_points(probabilities, labels, classes)
    melanoma, at_threshold = report["melanoma"], report["coverage"]["at_threshold"]
    flagged = melanoma if melanoma and melanoma["threshold"] is not None else None

    def path(name: str) -> Path:
        return folder / f"{name}.{kind}"

    by_class, reliability = report["calibration"]["by_class"], reliability_before_after(logits, labels, calibration)
    coverage = risk_coverage(probabilities, labels, predicted)
    drawings = [  # every second one in a process of its own; neighbours take about as long
        partial(draw_subgroups, path("subgroups"), report["subgroups"], title),
        partial(draw_class_calibration, path("class_calibration"), probabilities, labels, by_class, title),
        partial(draw_mistakes, folder / "mistakes.png", images, table, classes, title),
        partial(classification.draw_confusion, path("confusion"), counts, classes, title),
        partial(classification.draw_roc, path("roc"), roc, per_class, title, flagged),
        partial(classification.draw_precision_recall, path("precision_recall"), precision_recall, per_class, title),
        partial(classification.draw_class_bars, path("classes"), per_class, title),
        partial(draw_reliability, path("reliability"), reliability, title),
        partial(draw_risk_coverage, path("risk_coverage"), coverage, title, at_threshold),
    ]
    if MELANOMA in classes:
        place = list(classes).index(MELANOMA)
        of_use = report["prevalence"][MELANOMA]
        share = of_use["test"] if of_use["stated"] is None else of_use["stated"]
        if 0 < of_use["test"] < 1:
            curve = decision_curve(probabilities[:, place], labels == place, share)
            drawings.append(partial(draw_decision_curve, path("decision_curve"), curve, of_use, MELANOMA, title))
        abstain = at_threshold and at_threshold["threshold"]
        caught = caught_melanomas(probabilities, predicted, place, threshold=melanoma["threshold"], abstain=abstain)
        missed = folder / "missed_melanomas.png"
        drawings.append(partial(draw_missed, missed, images, table, classes, title, caught))
    if report.get("robustness"):
        drawings.append(partial(draw_robustness, path("robustness"), report["robustness"], title))
        drawings.append(partial(draw_disturbed, folder / "disturbed.png", images, table, report["robustness"], title))
    others = beside(_draw, drawings[1::2])
    _draw(drawings[::2])
    others()


def _draw(drawings: Sequence[Callable[[], None]]) -> None:
    for draw in drawings:
        draw()
