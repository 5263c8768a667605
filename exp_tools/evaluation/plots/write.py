"""Write the curves and figures of one scored set."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from exp_tools.evaluation.metrics.calibration import reliability_before_after
from exp_tools.evaluation.metrics.melanoma import caught_melanomas
from exp_tools.evaluation.metrics.selective import risk_coverage
from exp_tools.evaluation.metrics.subgroups import subgroup_points
from exp_tools.evaluation.plots import classification, points
from exp_tools.evaluation.plots.calibration import draw_reliability, draw_risk_coverage
from exp_tools.evaluation.plots.contact_sheets import draw_missed, draw_mistakes
from exp_tools.evaluation.plots.subgroups import draw_subgroups
from exp_tools.evaluation.predictions import as_arrays, decisions
from exp_tools.evaluation.probabilities import Calibration
from exp_tools.evaluation.validation import confusion
from exp_tools.io import write_csv
from exp_tools.taxonomy import MELANOMA


def write_curves(
    folder: Path, table: pd.DataFrame, classes: Sequence[str], calibration: Calibration, report: Mapping[str, Any]
) -> None:
    """Write the tables that `dvc plots` draws: roc, precision_recall, reliability, confusion, classes, risk_coverage,
    subgroups.

    Parameters
    ----------
    folder : where to
    table : predictions of the set
    classes, calibration : of the model
    report : of the set, see scoring.score_set
    """
    probabilities, labels, logits = as_arrays(table, classes)
    predicted = decisions(table, classes)
    write_csv(folder / "roc.csv", points.roc_points(probabilities, labels, classes))
    write_csv(folder / "precision_recall.csv", points.precision_recall_points(probabilities, labels, classes))
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
) -> None:
    """Draw every picture of a set as PNG.

    Parameters
    ----------
    folder : where to
    table : predictions of the set with metadata and `row`, the place of each image in `images`
    images : uint8 [N, S, S, 3], RGB; may be memory-mapped
    classes, calibration : of the model
    report : of the set, see scoring.score_set
    title : names the set
    """
    probabilities, labels, logits = as_arrays(table, classes)
    predicted, per_class = decisions(table, classes), report["per_class"]
    counts = confusion(labels, predicted, len(classes))
    roc = points.roc_points(probabilities, labels, classes)
    precision_recall = points.precision_recall_points(probabilities, labels, classes)
    classification.draw_confusion(folder / "confusion.png", counts, classes, title)
    classification.draw_roc(folder / "roc.png", roc, per_class, title)
    classification.draw_precision_recall(folder / "precision_recall.png", precision_recall, per_class, title)
    classification.draw_class_bars(folder / "classes.png", per_class, title)
    draw_reliability(folder / "reliability.png", reliability_before_after(logits, labels, calibration), title)
    at_threshold = report["coverage"]["at_threshold"]
    coverage = risk_coverage(probabilities, labels, predicted)
    draw_risk_coverage(folder / "risk_coverage.png", coverage, title, at_threshold)
    draw_subgroups(folder / "subgroups.png", report["subgroups"], title)
    draw_mistakes(folder / "mistakes.png", images, table, classes, title)
    if MELANOMA in classes:
        caught = caught_melanomas(
            probabilities,
            predicted,
            list(classes).index(MELANOMA),
            threshold=report["melanoma"]["threshold"],
            abstain=at_threshold and at_threshold["threshold"],
        )
        draw_missed(folder / "missed_melanomas.png", images, table, classes, title, caught)
