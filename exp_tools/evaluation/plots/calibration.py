"""Figures of calibration and confidence."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from exp_tools.evaluation.plots.style import (
    LINE_STYLES,
    REFERENCE,
    STYLE,
    new_figure,
    save_figure,
    set_legend,
    set_title,
)

FEW_IMAGES = 10
BINS = {"width": "bins of equal width", "mass": "bins of equally many images"}
LOOKS = {  # colour, line style, marker
    "before": ("#D55E00", LINE_STYLES[0], "o"),
    "after": ("#0072B2", LINE_STYLES[1], "s"),
}


@matplotlib.rc_context(STYLE)
def draw_reliability(path: Path, table: pd.DataFrame, title: str) -> None:
    """Reliability diagrams of `calibration.reliability_before_after`, over a histogram of the confidences.

    One panel a binning scheme. Bins of fewer than 10 images are hollow and not joined by the line: their accuracy is
    mostly chance.
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
        axes.set_xlabel("confidence (probability of the predicted diagnosis)")
        axes.tick_params(labelbottom=True)
    panels[1, 1].set_axis_off()
    panels[1, 1].text(
        0.5,
        0.4,
        "ECE: expected calibration error\n"
        "below the diagonal: over-confident\n"
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
        colour, style, marker = LOOKS[str(name)]
        error = ((part["accuracy"] - part["confidence"]).abs() * part["count"]).sum() / part["count"].sum()
        full, few = part[part["count"] >= FEW_IMAGES], part[part["count"] < FEW_IMAGES]
        line = {"color": colour, "linestyle": style, "marker": marker, "markersize": 5.5}
        axes.plot(full["confidence"], full["accuracy"], label=f"{name} (ECE {error:.3f})", **line)
        axes.plot(few["confidence"], few["accuracy"], **line | {"linestyle": "none", "markerfacecolor": "none"})
    axes.set_ylim(-0.02, 1.02)
    set_legend(axes, loc="lower right", title=bins, title_fontsize=9, alignment="left")
