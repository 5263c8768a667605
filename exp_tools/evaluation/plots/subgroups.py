"""A figure of the subgroups' scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import blended_transform_factory

from exp_tools.evaluation.metrics.subgroups import row_scores
from exp_tools.evaluation.plots.style import REFERENCE, STYLE, save_figure, set_title

INK, PALE = "#0072B2", "0.62"
ATTRIBUTE_NAMES = {
    "all": "",
    "sex": "sex",
    "age": "age, years",
    "localization": "site",
    "source": "source",
    "dx_type": "confirmed by",
}
PANELS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_auc": "macro AUC",
    "melanoma_sensitivity": "melanoma sensitivity",
    "melanoma_specificity": "melanoma specificity",
    "melanoma_sensitivity_at_threshold": "melanoma sensitivity\nat the model's threshold",
    "melanoma_specificity_at_threshold": "melanoma specificity\nat the model's threshold",
    "melanoma_auc": "melanoma AUC",
}


@matplotlib.rc_context(STYLE)
def draw_subgroups(path: Path, report: Sequence[Mapping[str, Any]], title: str) -> None:
    """Forest plot of `subgroups.subgroup_report`: a line a subgroup, a panel a metric, 95 % intervals.

    Where melanoma is a class the panels are accuracy and the scores of melanoma (at the model's threshold if there is
    one), else accuracy, balanced accuracy and macro AUC. Subgroups whose interval is `small` are pale and hollow.
    """
    metrics = _panels(report)
    places, headings = _layout(report)
    figure = Figure(figsize=(3.2 + 2.6 * len(metrics), 1.9 + 0.225 * (places[-1] + 1)), layout="constrained")
    panels = figure.subplots(1, len(metrics), sharey=True)
    set_title(panels[0], "Scores of subgroups", title, report[0]["images"])
    for axes, metric in zip(panels, metrics, strict=True):
        _draw_panel(axes, metric, report, places)
    first = panels[0]
    first.set_yticks(places, [_label(row) for row in report])
    first.set_ylim(places[-1] + 0.8, -0.8)
    left_of_axes = blended_transform_factory(first.transAxes, first.transData)
    for name, place in headings:
        first.text(-0.02, place, name, transform=left_of_axes, ha="right", va="center", fontweight="bold", fontsize=10)
    handles = [
        Line2D([], [], color=INK, marker="o", linewidth=1.6, label="score and 95 % interval"),
        Line2D(
            [],
            [],
            color=PALE,
            marker="o",
            markerfacecolor="white",
            linewidth=1.6,
            label="the same from fewer than 10 lesions: a hint at most",
        ),
        Line2D([], [], **REFERENCE, label="all images"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False, handlelength=3)
    save_figure(figure, path)


def _panels(report: Sequence[Mapping[str, Any]]) -> list[str]:
    melanoma = report[0]["melanoma"]
    if melanoma is None:
        return ["accuracy", "balanced_accuracy", "macro_auc"]
    suffix = "_at_threshold" if "sensitivity_at_threshold" in melanoma else ""
    return ["accuracy", f"melanoma_sensitivity{suffix}", f"melanoma_specificity{suffix}", "melanoma_auc"]


def _layout(report: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[tuple[str, float]]]:
    """The height of each row, counted downwards, and that of each attribute's heading, in a line of its own."""
    places: list[float] = []
    headings = []
    line = 0.0
    for before, row in zip([None, *report], report, strict=False):
        if before is not None and before["attribute"] != row["attribute"]:
            attribute = row["attribute"]
            headings.append((ATTRIBUTE_NAMES.get(attribute, _words(attribute)), line + 0.4))
            line += 1.4
        places.append(line)
        line += 1
    return places, headings


def _label(row: Mapping[str, Any]) -> str:
    name = "all images" if row["attribute"] == "all" else _words(row["value"])
    return f"{name}  (n={row['images']:,})"


def _words(name: str) -> str:
    """A name out of a table as it is drawn: a dollar sign begins no formula."""
    return name.replace("_", " ").replace("$", r"\$")


def _draw_panel(axes: Axes, metric: str, report: Sequence[Mapping[str, Any]], places: Sequence[float]) -> None:
    lowest = 1.0
    for row, place in zip(report, places, strict=True):
        score, interval = {name: (score, bounds) for name, score, bounds in row_scores(row)}[metric]
        if score is None or score != score:
            continue
        small = interval["small"]
        look = {"color": PALE if small else INK, "linewidth": 1.6, "solid_capstyle": "butt", "zorder": 2}
        axes.plot([interval["low"], interval["high"]], [place, place], **look)
        face = {"markerfacecolor": "white" if small else INK, "zorder": 3}
        axes.plot(score, place, marker="o", markersize=5.5, color=look["color"], **face)
        if place == 0:
            axes.axvline(score, **REFERENCE, zorder=1)
        lowest = min(lowest, score, interval["low"] if interval["low"] == interval["low"] else score)
    axes.set_xlim(max(lowest - 0.04, -0.02), 1.02)
    axes.set_xlabel(PANELS[metric])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
