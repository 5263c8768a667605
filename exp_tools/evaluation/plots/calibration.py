"""Figures of calibration and confidence."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from exp_tools.evaluation.plots.style import (
    LINE_STYLES,
    REFERENCE,
    STYLE,
    new_figure,
    save_figure,
    set_legend,
    set_title,
    wilson,
)
from exp_tools.evaluation.report.numbers import number

FEW_IMAGES = 10
CLASS_BINS = 5
BINS = {"width": "bins of equal width", "mass": "bins of equally many images"}
LOOKS = {  # colour, line style, marker
    "before": ("#D55E00", LINE_STYLES[0], "o"),
    "after": ("#0072B2", LINE_STYLES[1], "s"),
}


@matplotlib.rc_context(STYLE)
def draw_reliability(path: Path, table: pd.DataFrame, title: str) -> None:
    """Reliability diagrams of `calibration.reliability_before_after`, over a histogram of the confidences.

    One panel a binning scheme, each bin with its 95 % interval. Bins of fewer than 10 images are hollow: their accuracy
    is mostly chance.
    """
    figure = Figure(figsize=(10, 6.9), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, height_ratios=[3.4, 1])
    width = table[table["scheme"] == "width"]
    images = int(width.loc[width["calibration"] == "before", "count"].sum())
    set_title(panels[0, 0], "Reliability, before and after calibration", title, images)
    for axes, (scheme, name) in zip(panels[0], BINS.items(), strict=True):
        _draw_gaps(axes, table[table["scheme"] == scheme], name)
    panels[0, 0].set_ylabel("accuracy")
    for name, part in width.groupby("calibration", sort=False):
        colour, style, _ = LOOKS[str(name)]
        edges = sorted({*part["bin_low"], *part["bin_high"]})
        counts = part.set_index("bin_low")["count"].reindex(edges[:-1], fill_value=0)
        panels[1, 0].stairs(counts, edges, color=colour, linestyle=style, linewidth=1.5)
    panels[1, 0].set_ylabel("images")
    panels[1, 0].yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    panels[1, 0].set_xlim(-0.02, 1.02)
    for axes in (panels[1, 0], panels[0, 1]):
        axes.set_xlabel("confidence (highest probability)")
        axes.tick_params(labelbottom=True)
    panels[1, 1].set_axis_off()
    panels[1, 1].text(
        0.5,
        0.4,
        "ECE: expected calibration error\n"
        "below the diagonal: over-confident\n"
        "lines: 95 % intervals of a bin's accuracy, by image\n"
        f"hollow: bin of fewer than {FEW_IMAGES} images",
        fontsize=9,
        color="0.35",
        ha="center",
        va="center",
    )
    save_figure(figure, path)


@matplotlib.rc_context(STYLE)
def draw_risk_coverage(
    path: Path, table: pd.DataFrame, title: str, at_threshold: Mapping[str, float] | None = None
) -> None:
    """Accuracy of the most certain images, as in `selective.risk_coverage`.

    Points of fewer than 10 images are left out: their accuracy is mostly chance. `at_threshold` is that of
    `selective.coverage_report`; a line marks the share of images that stays with the model.
    """
    figure, axes = new_figure(6.6, 5)
    set_title(axes, "Accuracy when the least certain go to a human", title, int(table["images"].iloc[-1]))
    shown = table[table["images"] >= min(FEW_IMAGES, table["images"].iloc[-1])]
    columns = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy of the diagnoses that still occur"}
    for (column, name), (colour, style, _) in zip(columns.items(), LOOKS.values(), strict=True):
        label = f"{name} (all: {table[column].iloc[-1]:.3f})"
        axes.plot(shown["coverage"], shown[column], color=colour, linestyle=style, linewidth=1.8, label=label)
    if at_threshold is not None:
        coverage, threshold = at_threshold["coverage"], at_threshold["threshold"]
        label = f"the model's threshold: {coverage:.0%} stay (confidence ≥ {threshold:.2f})"
        axes.axvline(coverage, **REFERENCE, label=label)
    lowest = int(10 * shown[list(columns)].min(axis=None)) / 10
    margin = 0.02 * (1.1 - lowest)
    axes.set_ylim(lowest - margin, 1 + margin)
    axes.set_xlim(-0.02, 1.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("coverage (share of images left to the model, the most certain)")
    axes.set_ylabel("score of those images")
    set_legend(axes, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    save_figure(figure, path)


def _draw_gaps(axes: Axes, table: pd.DataFrame, bins: str) -> None:
    axes.plot([0, 1], [0, 1], **REFERENCE)
    for name, part in table.groupby("calibration", sort=False):
        colour, _, marker = LOOKS[str(name)]
        error = ((part["accuracy"] - part["confidence"]).abs() * part["count"]).sum() / part["count"].sum()
        axes.plot([], [], color=colour, marker=marker, linewidth=1.2, label=f"{name} (ECE {error:.3f})")
        for few, rows in part.groupby(part["count"] < FEW_IMAGES):
            low, high = wilson((rows["accuracy"] * rows["count"]).to_numpy(), rows["count"].to_numpy())
            face = "none" if few else colour
            axes.vlines(rows["confidence"], low, high, color=colour, linewidth=1.2, alpha=0.35 if few else 0.8)
            axes.plot(
                rows["confidence"],
                rows["accuracy"],
                color=colour,
                marker=marker,
                markersize=5.5,
                markerfacecolor=face,
                linestyle="none",
            )
    axes.set_ylim(-0.02, 1.02)
    set_legend(axes, loc="lower right", title=bins, title_fontsize=9, alignment="left")


@matplotlib.rc_context(STYLE)
def draw_class_calibration(
    path: Path,
    probabilities: NDArray,
    labels: NDArray,
    by_class: Mapping[str, Mapping[str, Any]],
    title: str,
) -> None:
    """A panel a class: its frequency against its probability, over five bins of equal width, with 95 % intervals.

    Bins of fewer than 10 images are pale and hollow.

    Parameters
    ----------
    path : of the picture
    probabilities, labels : float [N, C] and int [N]
    by_class : `class_calibration.class_calibration`, for slope and ratio
    title : names the set
    """
    across = min(len(by_class), 4)
    down = -(-len(by_class) // across)
    figure = Figure(figsize=(2.7 * across, 0.9 + 2.7 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False)
    set_title(panels[0, 0], "Calibration of each class, 95 % intervals by image", title, len(labels))
    for axes in panels.ravel()[len(by_class) :]:
        axes.set_axis_off()
    for place, ((code, row), axes) in enumerate(zip(by_class.items(), panels.ravel(), strict=False)):
        scores, positive = probabilities[:, place], labels == place
        index = np.minimum((scores * CLASS_BINS).astype(int), CLASS_BINS - 1)
        count = np.bincount(index, minlength=CLASS_BINS)
        mean = np.bincount(index, weights=scores, minlength=CLASS_BINS)
        cases = np.bincount(index, weights=positive, minlength=CLASS_BINS)
        axes.plot([0, 1], [0, 1], **REFERENCE)
        for images, middle, right in zip(count, mean, cases, strict=True):
            if images:
                low, high = wilson(np.array([right]), np.array([images]))
                full = images >= FEW_IMAGES
                look = {"color": LOOKS["after"][0], "alpha": 1 if full else 0.45}
                axes.vlines(middle / images, low, high, linewidth=1.4, **look)
                face = look["color"] if full else "white"
                axes.plot(middle / images, right / images, marker="o", markersize=5, markerfacecolor=face, **look)
        few = " *" if row["small"] else ""
        text = f"{code} (n={positive.sum():,}){few}\nO/E {number(row['ratio'])}, slope {number(row['slope'])}"
        axes.text(0.03, 0.97, text, transform=axes.transAxes, va="top", fontsize=8.5)
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.12)
    figure.supxlabel(
        "probability of the class (* fewer than 10 lesions; pale: fewer than 10 images: a hint at most)", fontsize=10
    )
    figure.supylabel("share of the class", fontsize=10)
    save_figure(figure, path)


@matplotlib.rc_context(STYLE)
def draw_decision_curve(path: Path, table: pd.DataFrame, report: Mapping[str, Any], code: str, title: str) -> None:
    """Net benefit of flagging a class, against flagging every image and none.

    Parameters
    ----------
    path : of the picture
    table : `prevalence.decision_curve`
    report : `prevalence.prevalence_report`, whose intervals are drawn
    code : the class
    title : names the set
    """
    figure, axes = new_figure(6.6, 4.8)
    share = report["test"] if report["stated"] is None else report["stated"]
    set_title(axes, f"Net benefit of flagging {code} at a prevalence of {share:.1%}", title, int(table.attrs["images"]))
    axes.axhline(0, **REFERENCE, label="flag none")
    axes.plot(table["threshold"], 100 * table["all"], color="0.4", linestyle=LINE_STYLES[1], label="flag every image")
    colour = LOOKS["after"][0]
    axes.plot(
        table["threshold"], 100 * table["model"], color=colour, linewidth=1.8, label="model, 95 % intervals by lesion"
    )
    for row in report["net_benefit"]:
        axes.vlines(row["threshold"], 100 * row["low"], 100 * row["high"], color=colour, linewidth=1.2)
    top = 100 * share
    axes.set_ylim(-0.25 * top, 1.15 * top)
    axes.set_xlim(0, table["threshold"].max())
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("probability from which an image is flagged")
    axes.set_ylabel("net benefit per 100 images")
    set_legend(axes, loc="upper right")
    save_figure(figure, path)
