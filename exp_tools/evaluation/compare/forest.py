"""A comparison as a forest plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from exp_tools.evaluation.compare.render import warning
from exp_tools.evaluation.metrics.catalogue import label_of, metric_of
from exp_tools.evaluation.plots.style import REFERENCE, STYLE, save_figure

INK, PALE = "#0072B2", "0.62"
LOOKS = {"": ("black", "o"), "better": ("#009E73", "^"), "worse": ("#D55E00", "v"), "trade-off": ("#CC79A7", "D")}
"""Colour and marker of a difference, by its verdict."""
LEFT_OUT = "not paired"
LONGEST_NAME = 28


@matplotlib.rc_context(STYLE)
def draw_forest(path: Path, comparison: Mapping[str, Any]) -> None:
    """Scores with their intervals, a panel a metric; below them the differences from the baseline, where there are any.

    Parameters
    ----------
    path : of the PNG
    comparison : as `compare.compare_groups` gives it
    """
    groups, metrics = comparison["groups"], comparison["metrics"]
    paired = any(group["differences"] for group in groups)
    lines = 2 if paired else 1
    width, height = 2.6 + 2.7 * len(metrics), 1.7 + lines * (0.85 + 0.3 * len(groups))
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(lines, len(metrics), sharey="row", squeeze=False)
    figure.suptitle(_title(comparison), fontsize=11, x=0.01, ha="left")
    for axes, metric in zip(panels[0], metrics, strict=True):
        for place, group in enumerate(groups):
            if metric in group["scores"]:
                score = group["scores"][metric]
                colour = PALE if score["small"] else INK
                _draw(axes, place, (score["low"], score["mean"], score["high"]), colour, hollow=score["small"])
        _finish(axes, label_of(metric) + (" (lower is better)" if metric_of(metric).lower_is_better else ""), groups)
    panels[0, 0].set_yticks(range(len(groups)), [_label(group) for group in groups])
    if paired:
        for axes, metric in zip(panels[1], metrics, strict=True):
            _draw_differences(axes, metric, groups)
        panels[1, 0].set_yticks(range(len(groups)), [_short(group, comparison["baseline"]) for group in groups])
    _draw_legend(figure, comparison, paired)
    save_figure(figure, path)


def _draw_differences(axes: Axes, metric: str, groups: Sequence[Mapping[str, Any]]) -> None:
    axes.axvline(0, **REFERENCE, zorder=1)
    for place, group in enumerate(groups):
        difference = (group["differences"] or {}).get(metric)
        if difference is None:
            continue
        colour, marker = LOOKS[difference["verdict"]]
        bounds = (difference["low"], difference["difference"], difference["high"])
        _draw(axes, place, bounds, colour, marker=marker, hollow=group["scores"][metric]["small"])
    _finish(axes, f"difference in {label_of(metric)}", groups)
    reach = max(abs(limit) for limit in axes.get_xlim())
    axes.set_xlim(-reach, reach)


def _draw(
    axes: Axes, place: int, bounds: tuple[float, float, float], colour: str, *, marker: str = "o", hollow: bool = False
) -> None:
    low, score, high = bounds
    axes.plot([low, high], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt", zorder=2)
    face = "white" if hollow else colour
    axes.plot(score, place, marker=marker, markersize=6, color=colour, markerfacecolor=face, zorder=3)


def _finish(axes: Axes, words: str, groups: Sequence[Mapping[str, Any]]) -> None:
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_xlabel(words, fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8.5)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(axis="x", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)


def _label(group: Mapping[str, Any]) -> str:
    return f"{_cut(group['name'])}\n{group['makeup']}, n={group['images']:,}"


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _short(group: Mapping[str, Any], baseline: str) -> str:
    if group["differences"]:
        return _cut(group["name"])
    return f"{_cut(group['name'])} ({'baseline' if group['name'] == baseline else LEFT_OUT})"


def _title(comparison: Mapping[str, Any]) -> str:
    title = f"Scores on {comparison['split']}, 95 % intervals by lesion"
    return "\n".join(filter(None, (title, warning(comparison))))


def _draw_legend(figure: Figure, comparison: Mapping[str, Any], paired: bool) -> None:
    together = "; those of differences hold all together" if comparison["comparisons"] > 1 else ""
    looks = [("o", INK, INK, f"score, 95 % interval{together}")]
    if any(score["small"] for group in comparison["groups"] for score in group["scores"].values()):
        looks.append(("o", PALE, "white", "from fewer than 10 lesions: a hint at most"))
    found = {
        difference["verdict"] for group in comparison["groups"] for difference in (group["differences"] or {}).values()
    }
    baseline = comparison["baseline"]
    words = {
        "": f"difference from {baseline}, no verdict",
        "better": f"better than {baseline}",
        "worse": f"worse than {baseline}",
        "trade-off": "one rate for the other",
    }
    looks += [(LOOKS[name][1], LOOKS[name][0], LOOKS[name][0], text) for name, text in words.items() if name in found]
    handles = [
        Line2D([], [], color=colour, marker=marker, markerfacecolor=face, linewidth=1.6, label=label)
        for marker, colour, face, label in looks
    ]
    if paired:
        handles.append(Line2D([], [], **REFERENCE, label=f"as {comparison['baseline']}"))
    figure.legend(handles=handles, loc="outside lower left", ncols=3, fontsize=9, frameon=False, handlelength=3)
