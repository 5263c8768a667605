"""A bar chart of the images per class."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from exp_tools.evaluation.plots.style import STYLE, new_figure, save_figure, set_legend, set_title


@matplotlib.rc_context(STYLE)
def draw_class_distribution(path: Path, counts: pd.DataFrame, title: str) -> None:
    """Images of each class as bars.

    Parameters
    ----------
    counts : whole numbers, one row per class (index: codes), one column per part of the bar (train, val, test, or one
        column for all images)
    """
    figure, axes = new_figure(8, 1.9 + 0.42 * len(counts))
    totals = counts.sum(axis=1)
    set_title(axes, "Images of each diagnosis", title, int(totals.sum()))
    left = np.zeros(len(counts))
    for number, part in enumerate(counts.columns):
        colour = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")[number % 4]
        axes.barh(counts.index, counts[part], left=left, color=colour, edgecolor="white", linewidth=0.5, label=part)
        left += counts[part].to_numpy()
    for row, (code, total) in enumerate(totals.items()):
        text = f"{total:,} ({total / max(totals.sum(), 1):.1%})"
        if counts.shape[1] > 1:
            text += "  " + " / ".join(f"{n:,}" for n in counts.loc[code])
        axes.annotate(text, (total, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_xlim(0, max(totals.max(), 1) * (1.45 if counts.shape[1] > 1 else 1.25))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.invert_yaxis()
    axes.set_xlabel("images")
    if counts.shape[1] > 1:
        set_legend(axes, loc="lower right")
    save_figure(figure, path)
