"""Figures of a classification result.

`title` names the data set and the split; the functions say what is drawn and of how many images.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from exp_tools.evaluation.plots.points import BAR_METRICS
from exp_tools.evaluation.plots.style import (
    COLOURS,
    LINE_STYLES,
    REFERENCE,
    STYLE,
    new_figure,
    save_figure,
    set_legend,
    set_title,
)

ClassMetrics = Mapping[str, Mapping[str, float]]


@matplotlib.rc_context(STYLE)
def draw_confusion(path: Path, matrix: NDArray, classes: Sequence[str], title: str) -> None:
    """Counts of a confusion matrix [C, C] (true class in rows), coloured by the share of each true class."""
    support = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, support, out=np.full(matrix.shape, np.nan), where=support > 0)
    size = 2.6 + 0.62 * len(classes)
    figure, axes = new_figure(size + 0.9, size)
    set_title(axes, "Confusion matrix", title, int(matrix.sum()))
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", format=PercentFormatter(1), fraction=0.046)
    for row, column in np.ndindex(*matrix.shape):
        if support[row, 0]:
            text = f"{matrix[row, column]:,}"
            if matrix[row, column]:
                text += f"\n{shares[row, column]:.0%}"
            ink = "black" if shares[row, column] > 0.55 else "white"
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=8)
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(range(len(classes)), [f"{code} (n={n:,})" for code, n in zip(classes, support[:, 0], strict=True)])
    axes.set_xlabel("predicted diagnosis")
    axes.set_ylabel("true diagnosis")
    axes.tick_params(length=0)
    save_figure(figure, path)


@matplotlib.rc_context(STYLE)
def draw_roc(path: Path, points: pd.DataFrame, per_class: ClassMetrics, title: str) -> None:
    """ROC curves of `points.roc_points`, with the AUC and support of `classification.class_metrics` in the legend."""
    figure, axes = new_figure(6.2, 5.6)
    set_title(axes, "ROC, each diagnosis against the rest", title, _images(per_class))
    axes.plot([0, 1], [0, 1], **REFERENCE)
    _draw_curves(axes, points, per_class, "auc", "AUC")
    axes.set_xlabel("false positive rate (1 − specificity)")
    axes.set_ylabel("true positive rate (sensitivity)")
    set_legend(axes, loc="lower right")
    save_figure(figure, path)


@matplotlib.rc_context(STYLE)
def draw_precision_recall(path: Path, points: pd.DataFrame, per_class: ClassMetrics, title: str) -> None:
    """Precision-recall curves of `points.precision_recall_points`, with average precision and support in the legend."""
    figure, axes = new_figure(8.2, 5.6)
    set_title(axes, "Precision and recall, each diagnosis against the rest", title, _images(per_class))
    _draw_curves(axes, points, per_class, "average_precision", "AP")
    axes.set_xlabel("recall (sensitivity)")
    axes.set_ylabel("precision (positive predictive value)")
    set_legend(axes, loc="center left", bbox_to_anchor=(1.01, 0.5))
    save_figure(figure, path)


@matplotlib.rc_context(STYLE)
def draw_class_bars(path: Path, per_class: ClassMetrics, title: str, metrics: Sequence[str] = BAR_METRICS) -> None:
    """Some of `classification.class_metrics` side by side for each class; an undefined one is written as –."""
    figure, axes = new_figure(2.2 + 1.25 * len(per_class), 4.8)
    set_title(axes, "Scores of each diagnosis", title, _images(per_class))
    places, width = np.arange(len(per_class)), 0.84 / len(metrics)
    for number, metric in enumerate(metrics):
        values = np.array([row[metric] for row in per_class.values()], dtype=float)
        centres = places + (number - (len(metrics) - 1) / 2) * width
        colour = ("#0072B2", "#56B4E9", "#E69F00", "#009E73", "#CC79A7")[number % 5]
        axes.bar(centres, np.nan_to_num(values), width, color=colour, edgecolor="white", linewidth=0.6, label=metric)
        for centre, value in zip(centres, values, strict=True):
            text = "–" if np.isnan(value) else f"{value:.2f}".replace("0.", ".", 1)
            axes.text(centre, np.nan_to_num(value) + 0.01, text, ha="center", fontsize=7.5)
    axes.set_xticks(places, [f"{code}\nn={row['support']:,}" for code, row in per_class.items()])
    axes.set_ylim(0, 1.06)
    axes.tick_params(axis="x", length=0)
    set_legend(axes, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=len(metrics))
    save_figure(figure, path)


def _draw_curves(axes: Axes, points: pd.DataFrame, per_class: ClassMetrics, score: str, label: str) -> None:
    for number, (code, row) in enumerate(per_class.items()):
        part = points[points["class"] == code]
        if not part.empty:
            axes.plot(
                part.iloc[:, 1],
                part.iloc[:, 2],
                color=COLOURS[number % len(COLOURS)],
                linestyle=LINE_STYLES[number % len(LINE_STYLES)],
                linewidth=1.8,
                label=f"{code}  {label} {row[score]:.2f}  (n={row['support']:,})",
            )
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")


def _images(per_class: ClassMetrics) -> int:
    return int(sum(row["support"] for row in per_class.values()))
