"""The common style of all figures: PNG, SVG or PDF files, the same bytes for the same numbers.

Colours are Okabe and Ito's (Color Universal Design, 2008), distinguished by line style as well; shades are cividis.
"""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from exp_tools.io import MARK, atomic_write

COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#000000", "#D55E00", "#0072B2", "#CC79A7")
LINE_STYLES: tuple[Any, ...] = (
    "-",
    (0, (6, 2)),
    (0, (2, 1)),
    (0, (6, 2, 1, 2)),
    (0, (10, 2)),
    (0, (4, 1, 1, 1, 1, 1)),
    (0, (1, 1)),
)
REFERENCE = {"color": "0.6", "linewidth": 1, "linestyle": (0, (1, 2))}
DPI = 130
SAID = {"png": MARK, "svg": {"Date": None}, "pdf": dict.fromkeys(("CreationDate", "Creator", "Producer"))}
"""What files of each kind say of their origin: nothing that changes with the time or the version."""
# Every setting, so that a matplotlibrc of the machine does not change the picture.
STYLE = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"} | {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "exp-tools",
}


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of width x height inches with one pair of axes. Draw under `matplotlib.rc_context(STYLE)`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def set_title(axes: Axes, subject: str, title: str, images: int) -> None:
    """`subject` above the set and the number of its images."""
    axes.set_title(f"{subject}\n{title}, n = {images:,} images", fontsize=11, loc="left")


def set_legend(axes: Axes, **place: Any) -> None:
    """A frameless legend, where there are several entries."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9, frameon=False, handlelength=3, **place)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a file of the kind that its ending says (png, svg or pdf) atomically; equal figures give equal bytes."""
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    kind = path.suffix.removeprefix(".")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=DPI, metadata=SAID[kind])


def wilson(right: NDArray[np.float64], total: NDArray[np.float64]) -> NDArray[np.float64]:
    """95 % intervals [2, N] of `right` of `total` independent cases (> 0). Wilson, JASA 22:209, 1927."""
    z = 1.96
    share = right / total
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return np.clip(np.stack([middle - half, middle + half]), 0, 1)
