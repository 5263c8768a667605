"""Figures of explanations: cases with their maps, and the randomisation test."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from exp_tools.evaluation.plots.style import COLOURS, LINE_STYLES, REFERENCE, STYLE, save_figure
from exp_tools.explain.overlay import COLOURS as HEAT
from exp_tools.explain.overlay import NAMES, is_flat, overlay

STEP_TICKS = ("head", "+ 1/4", "+ 1/2", "+ 3/4", "all")
TILE, NARROWEST = 1.5, 5.4
OUTLINE = (255, 255, 255)
EXAMPLES = 4
LABEL = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}


class Case(NamedTuple):
    """One image with its captions.

    image : uint8 [S, S, 3], RGB
    mask : bool [S, S], the lesion, where it is known
    maps : method -> float [H, W]
    truth, predicted : diagnoses
    probability, truth_probability : 0..1, of the predicted and of the true diagnosis
    """

    image_id: str
    image: NDArray
    mask: NDArray | None
    maps: Mapping[str, NDArray]
    truth: str
    predicted: str
    probability: float
    truth_probability: float

    @property
    def right(self) -> bool:
        return self.truth == self.predicted

    @property
    def text(self) -> str:
        """The image's id, and its findings."""
        said = f"{self.truth}, predicted {self.probability:.0%}"
        if not self.right:
            said = f"{self.truth} {self.truth_probability:.0%}, predicted {self.predicted} {self.probability:.0%}"
        return f"{self.image_id}\n{said}"


@matplotlib.rc_context(STYLE)
def draw_cases(path: Path, cases: Sequence[Case], title: str) -> None:
    """Cases that were predicted right on the left, wrong ones on the right; each image next to its maps.

    Grad-CAM is that of the predicted diagnosis. Where the lesion's mask is known its outline is drawn on the image.
    """
    methods = list(cases[0].maps)
    halves = [("Predicted right", [case for case in cases if case.right])]
    halves.append(("Predicted wrong", [case for case in cases if not case.right]))
    halves = [(name, half) for name, half in halves if half]
    rows, columns = max(len(half) for _, half in halves), 1 + len(methods)
    height = rows * (TILE + 0.45) + 0.4
    width = max(len(halves) * (columns * TILE + 0.4), NARROWEST)
    figure = Figure(figsize=(width, height + 1.4), layout="constrained")
    legend = ["Grad-CAM: for the predicted diagnosis"] * ("gradcam" in methods)
    legend += ["white line: the lesion"] * any(case.mask is not None for case in cases)
    heading = ["What predictions rest on", f"{title}, {len(cases)} cases", "; ".join(legend)]
    figure.suptitle("\n".join(line for line in heading if line), fontsize=11, x=0.01, ha="left")
    upper, lower = figure.subfigures(2, 1, height_ratios=[height, 0.5])
    _heat_bar(lower)
    for part, (name, half) in zip(np.atleast_1d(upper.subfigures(1, len(halves))), halves, strict=True):
        part.suptitle(name, fontsize=11, x=0.02, ha="left", weight="bold")
        grid = part.subplots(rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for line, case in zip(grid, half, strict=False):
            _draw_case(line, case)
        for axes, said in zip(grid[len(half) - 1], ("image", *(NAMES[method] for method in methods)), strict=True):
            axes.text(0.5, -0.04, said, transform=axes.transAxes, ha="center", va="top", fontsize=8)
    save_figure(figure, path)


def _draw_case(line: Sequence[Axes], case: Case) -> None:
    line[0].set_title(case.text, fontsize=8, loc="left", pad=3)
    line[0].imshow(case.image if case.mask is None else outlined(case.image, case.mask), interpolation="nearest")
    for axes, heat in zip(line[1:], case.maps.values(), strict=True):
        axes.imshow(overlay(case.image, heat), interpolation="nearest")
        _say_flat(axes, heat)


def _say_flat(axes: Axes, heat: NDArray) -> None:
    if is_flat(heat[None])[0]:
        axes.text(0.5, 0.04, "flat", transform=axes.transAxes, ha="center", fontsize=8, bbox=LABEL)


def _heat_bar(figure: SubFigure) -> None:
    """The scale of all maps; each is stretched for itself, so there are no numbers to write."""
    axes = figure.subplots()
    axes.set_box_aspect(0.02)
    figure.colorbar(ScalarMappable(cmap=HEAT), cax=axes, orientation="horizontal")
    axes.set_xticks([0, 1], ["weakest place of a map", "strongest"], fontsize=8)
    for label, side in zip(axes.get_xticklabels(), ("left", "right"), strict=True):
        label.set_horizontalalignment(side)


def outlined(image: NDArray, mask: NDArray) -> NDArray:
    """An image uint8 [S, S, 3] with a thin white line, edged in black, around its mask bool [S, S]."""
    large = max(1, 256 // len(image))
    picture = cv2.resize(image, None, fx=large, fy=large, interpolation=cv2.INTER_NEAREST)
    shape = cv2.resize(mask.astype(np.uint8), None, fx=large, fy=large, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(shape, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    thin = max(1, len(picture) // 128)
    cv2.drawContours(picture, contours, -1, (0, 0, 0), thin + 2)
    cv2.drawContours(picture, contours, -1, OUTLINE, thin)
    return picture


@matplotlib.rc_context(STYLE)
def draw_sanity(
    path: Path,
    by_step: Mapping[str, Sequence[Mapping[str, Any]]],
    chance: Mapping[str, Mapping[str, float]],
    images: NDArray,
    maps: Sequence[Mapping[str, NDArray]],
    title: str,
) -> None:
    """How like the trained network's the maps stay when its weights are replaced by random ones, and examples.

    Parameters
    ----------
    by_step, chance, maps : as `randomisation_test` gives them
    images : uint8 [N, S, S, 3], those that the maps are of
    """
    method, shown = next(iter(by_step)), min(EXAMPLES, len(images))
    figure = Figure(figsize=(9.6, 4.1 + 1.3 * shown), layout="constrained")
    heading = "Likeness to the trained network's maps, as its weights become random from the head down"
    figure.suptitle(f"{heading}\n{title}, n = {len(images):,} images", fontsize=11, x=0.01, ha="left")
    upper, lower = figure.subfigures(2, 1, height_ratios=[3.5, 1.3 * shown])
    panels = upper.subplots(1, 2)
    for axes, (metric, name, low) in zip(
        panels, (("rank_correlation", "rank correlation", -1), ("ssim", "structural similarity (SSIM)", 0)), strict=True
    ):
        _draw_similarity(axes, by_step, chance, metric)
        axes.set_ylim(low - 0.04, 1.04)
        axes.set_ylabel(name)
    lines = panels[0].get_legend_handles_labels()
    upper.legend(*lines, loc="outside lower center", ncols=2, fontsize=9, frameon=False, handlelength=3)
    grid = lower.subplots(shown, len(maps) + 1, squeeze=False)
    lower.suptitle(NAMES[method], fontsize=9, x=0.02, ha="left")
    heads = ("image", "trained", *STEP_TICKS)
    for row, line in enumerate(grid):
        heats = [None, *(made[method][row] for made in maps)]
        for axes, heat, head in zip(line, heats, heads, strict=True):
            axes.imshow(images[row] if heat is None else overlay(images[row], heat), interpolation="nearest")
            axes.set_axis_off()
            if row == 0:
                axes.set_title(head, fontsize=8)
            if heat is not None:
                _say_flat(axes, heat)
    save_figure(figure, path)


def _draw_similarity(
    axes: Axes,
    by_step: Mapping[str, Sequence[Mapping[str, Any]]],
    chance: Mapping[str, Mapping[str, float]],
    metric: str,
) -> None:
    places = range(len(STEP_TICKS) + 1)
    for number, (method, steps) in enumerate(by_step.items()):
        colour = COLOURS[(5, 4)[number]]
        values = [1.0, *(step[metric] for step in steps)]
        style = {"color": colour, "linestyle": LINE_STYLES[number], "marker": "o", "markersize": 4}
        axes.plot(places, values, label=NAMES[method], **style)
        level = REFERENCE | {"color": colour}
        axes.axhline(chance[method][metric], **level, label=f"{NAMES[method]}, maps of two different images")
    blank = [step["blank"] for step in next(iter(by_step.values()))]
    ticks = [f"{tick}\n{share:.0%} flat" if share else tick for tick, share in zip(STEP_TICKS, blank, strict=True)]
    axes.set_xticks(places, ["nothing", *ticks], fontsize=8)
    axes.set_xlabel("random: head, then so much of the backbone")
