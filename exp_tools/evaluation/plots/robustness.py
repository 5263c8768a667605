"""Figures of corrupted images: what each kind costs, and how it looks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from exp_tools.evaluation.plots.style import COLOURS, LINE_STYLES, REFERENCE, STYLE, save_figure
from exp_tools.evaluation.robustness.disturb import KINDS, SEVERITIES, disturb

LINES = {
    "balanced_accuracy": ("balanced accuracy", COLOURS[5], LINE_STYLES[0]),
    "melanoma_sensitivity": ("melanoma sensitivity at the threshold", COLOURS[4], LINE_STYLES[1]),
}
ACROSS = 4
TILE = 1.3  # inches


@matplotlib.rc_context(STYLE)
def draw_robustness(path: Path, report: Mapping[str, Any], title: str) -> None:
    """A panel a kind: points lost or won against the clean images over severity, with 95 % bands.

    Parameters
    ----------
    path : file to write
    report : as `compare.disturbed.robustness_report` gives it
    title : names the set
    """
    kinds = _kinds(report)
    across = min(ACROSS, len(kinds))
    down = -(-len(kinds) // across)
    figure = Figure(figsize=(1.2 + 2.3 * max(across, 2), 1.7 + 2.1 * down), layout="constrained")
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for place, axes in enumerate(panels.flat):
        if place < len(kinds):
            _draw_kind(axes, kinds[place], [row for row in report["rows"] if row["kind"] == kinds[place]])
        else:
            axes.set_axis_off()
        if place + across >= len(kinds):
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("severity", fontsize=9)
    figure.suptitle(
        f"Disturbed images against the same images clean\n{title}, n = {report['images']:,} images of "
        f"{report['lesions']:,} lesions",
        fontsize=11,
        x=0.01,
        ha="left",
    )
    figure.supylabel("change in points, band: 95 % by lesion", fontsize=10)
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=9, frameon=False, handlelength=3)
    save_figure(figure, path)


def _draw_kind(axes: Axes, kind: str, rows: Sequence[Mapping[str, Any]]) -> None:
    axes.axhline(0, **REFERENCE)
    severities = [0, *(row["severity"] for row in rows)]
    for name, (words, colour, style) in LINES.items():
        if name not in rows[0]["differences"]:
            continue
        bounds = [row["differences"][name] for row in rows]
        middle, low, high = (
            100 * np.array([0.0, *(one[part] for one in bounds)], dtype=float) for part in ("difference", "low", "high")
        )
        axes.fill_between(severities, low, high, color=colour, alpha=0.16, linewidth=0)
        axes.plot(severities, middle, color=colour, linestyle=style, marker="o", markersize=3, label=words)
    axes.set_title(KINDS[kind].words, fontsize=10, loc="left")
    axes.set_xticks([0, *SEVERITIES])
    axes.grid(axis="y", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)


def _kinds(report: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["kind"] for row in report["rows"]))


@matplotlib.rc_context(STYLE)
def draw_disturbed(
    path: Path, images: NDArray[np.uint8], table: pd.DataFrame, report: Mapping[str, Any], title: str
) -> None:
    """The first image of a set under each kind and severity: what scores of corrupted images are of.

    Parameters
    ----------
    path : PNG file to write
    images : uint8 [M, S, S, 3], RGB; may be memory-mapped
    table : predictions of the set with `row`, the place of each image in `images`
    report : as `compare.disturbed.robustness_report` gives it
    title : names the set
    """
    kinds, columns = _kinds(report), (0, *SEVERITIES)
    row_of_image, image_id = table.sort_values("image_id").iloc[0][["row", "image_id"]]
    image = np.asarray(images[row_of_image])
    figure = Figure(figsize=(1.3 + TILE * len(columns), 0.8 + TILE * len(kinds)), layout="constrained")
    panels = figure.subplots(len(kinds), len(columns), squeeze=False)
    for kind, row in zip(kinds, panels, strict=True):
        for severity, axes in zip(columns, row, strict=True):
            axes.imshow(disturb(image, kind, severity, seed=report["seed"], image_id=image_id))
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        row[0].set_ylabel(KINDS[kind].words, rotation=0, ha="right", va="center", fontsize=9)
    for severity, axes in zip(columns, panels[0], strict=True):
        axes.set_title(f"severity {severity}" if severity else "clean", fontsize=9)
    figure.suptitle(f"{image_id} corrupted\n{title}", fontsize=11, x=0.01, ha="left", parse_math=False)
    save_figure(figure, path)
