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
def draw_roc(
    path: Path,
    points: pd.DataFrame,
    per_class: ClassMetrics,
    title: str,
    flagged: Mapping[str, float] | None = None,
) -> None:
    """ROC curves of `points.roc_points`, with the AUC and support of `classification.class_metrics` in the legend.

    A dot marks each class where the model decides, a star the melanoma threshold: its `specificity` and `sensitivity`
    are `flagged`.
    """
    figure, axes = new_figure(6.2, 5.6)
    set_title(axes, "ROC, each diagnosis against the rest", title, _images(per_class))
    axes.plot([0, 1], [0, 1], **REFERENCE)
    _draw_curves(axes, points, per_class, "auc", "AUC")
    _draw_points(axes, {code: (1 - row["specificity"], row["sensitivity"]) for code, row in per_class.items()})
    if flagged is not None:
        at = (1 - flagged["specificity"], flagged["sensitivity"])
        axes.plot(*at, marker="*", markersize=13, color="black", linestyle="none", label="the melanoma threshold")
    axes.set_xlabel("false positive rate (1 − specificity)")
    axes.set_ylabel("true positive rate (sensitivity)")
    set_legend(axes, loc="lower right")
    save_figure(figure, path)


@matplotlib.rc_context(STYLE)
def draw_precision_recall(path: Path, points: pd.DataFrame, per_class: ClassMetrics, title: str) -> None:
    """Precision-recall curves of `points.precision_recall_points`, with average precision and support in the legend.

    A dot marks each class where the model decides, a tick on the right its share of the images: what chance reaches.
    """
    figure, axes = new_figure(8.2, 5.6)
    set_title(axes, "Precision and recall, each diagnosis against the rest", title, _images(per_class))
    _draw_curves(axes, points, per_class, "average_precision", "AP")
    _draw_points(axes, {code: (row["sensitivity"], row["precision"]) for code, row in per_class.items()})
    for number, row in enumerate(per_class.values()):
        share = row["support"] / max(_images(per_class), 1)
        axes.plot([0.98, 1.03], [share, share], color=COLOURS[number % len(COLOURS)], linewidth=2, clip_on=False)
    axes.plot([], [], color="0.4", linewidth=2, label="share of the class (chance)")
    axes.set_xlabel("recall (sensitivity)")
    axes.set_ylabel("precision (positive predictive value)")
    set_legend(axes, loc="center left", bbox_to_anchor=(1.01, 0.5))
    save_figure(figure, path)


@matplotlib.rc_context(STYLE)
def draw_class_bars(path: Path, per_class: ClassMetrics, title: str, metrics: Sequence[str] = BAR_METRICS) -> None:
    """Some of `classification.class_metrics` side by side for each class; an undefined one is written as –.

    With `intervals` in a row (see `bootstrap.class_intervals`) each score has its own; those that are `small` are pale
    and hollow.
    """
    figure, axes = new_figure(2.2 + 1.25 * len(per_class), 4.8)
    set_title(axes, "Scores of each diagnosis, with 95 % intervals by lesion", title, _images(per_class))
    width = 0.84 / len(metrics)
    for number, metric in enumerate(metrics):
        colour = ("#0072B2", "#56B4E9", "#E69F00", "#009E73", "#CC79A7")[number % 5]
        marker = "osD^v"[number % 5]
        axes.plot([], [], color=colour, marker=marker, linewidth=1.6, label=metric)
        for place, row in enumerate(per_class.values()):
            centre, value = place + (number - (len(metrics) - 1) / 2) * width, row[metric]
            if value is None or np.isnan(value):
                axes.text(centre, 0.01, "–", ha="center", fontsize=9)
                continue
            bounds = row.get("intervals", {}).get(metric, {"low": value, "high": value, "small": False})
            look = {"color": colour, "alpha": 0.45 if bounds["small"] else 1}
            if bounds["low"] is not None:
                axes.plot([centre, centre], [bounds["low"], bounds["high"]], linewidth=1.6, **look)
            face = "white" if bounds["small"] else colour
            axes.plot(centre, value, marker=marker, markersize=5.5, markerfacecolor=face, linestyle="none", **look)
    axes.plot(
        [], [], color="0.4", marker="o", markerfacecolor="white", alpha=0.45, label="fewer than 10 lesions: a hint"
    )
    axes.set_xticks(range(len(per_class)), [_named(code, row) for code, row in per_class.items()])
    axes.set_xlim(-0.5, len(per_class) - 0.5)
    axes.set_ylim(-0.02, 1.04)
    axes.grid(axis="y", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", length=0)
    set_legend(axes, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    save_figure(figure, path)


def _draw_curves(axes: Axes, points: pd.DataFrame, per_class: ClassMetrics, score: str, label: str) -> None:
    for number, (code, row) in enumerate(per_class.items()):
        part = points[points["class"] == code]
        if not part.empty:
            axes.plot(
                part.iloc[:, 1],
                part.iloc[:, 2],
                color=COLOURS[number % len(COLOURS)],
                linestyle=LINE_STYLES[(number + number // len(COLOURS)) % len(LINE_STYLES)],
                linewidth=1.8,
                label=f"{code}  {label} {row[score]:.2f}  (n={row['support']:,})",
            )
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")


def _draw_points(axes: Axes, places: Mapping[str, tuple[float, float]]) -> None:
    for number, (x, y) in enumerate(places.values()):
        axes.plot(x, y, marker="o", markersize=6, color=COLOURS[number % len(COLOURS)], linestyle="none", zorder=4)
    axes.plot([], [], marker="o", color="0.4", linestyle="none", label="where the model decides")


def _named(code: str, row: Mapping[str, float]) -> str:
    lesions = f"\n{row['lesions']:,} lesions" if "lesions" in row else ""
    return f"{code}\nn={row['support']:,}{lesions}"


def _images(per_class: ClassMetrics) -> int:
    return int(sum(row["support"] for row in per_class.values()))
