"""Draw docs/images/ham10000.png from ham10000.csv next to it: what a part of a network adds, with 95 % intervals.

python docs/images/draw_results.py [--out FILE]
"""

import argparse
from pathlib import Path

import matplotlib
import pandas as pd

from exp_tools.evaluation.plots.style import STYLE, new_figure, save_figure

TABLE = Path(__file__).with_name("ham10000.csv")


@matplotlib.rc_context(STYLE)
def draw(path: Path) -> None:
    """One line per comparison: the difference, its interval, and a rule at 0."""
    table = pd.read_csv(TABLE)
    figure, axes = new_figure(7.5, 2.9)
    places = [-(row + 0.6 * (table["what"][row] != table["what"][0])) for row in range(len(table))]
    for place, (_, row) in zip(places, table.iterrows(), strict=True):
        clear = row["low"] > 0 or row["high"] < 0
        colour = "#0072B2" if clear else "#777777"
        axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=2)
        axes.plot(row["difference"], place, "o", color=colour, markersize=6)
        axes.text(0.135, place, f"{row['difference']:+.3f} [{row['low']:.3f}, {row['high']:.3f}]", va="center", size=9)
    axes.axvline(0, color="#333333", linewidth=0.8)
    axes.set_yticks(places, [f"{row['what']}: {row['metric']}" for _, row in table.iterrows()])
    axes.set_xlim(-0.06, 0.19)
    axes.set_ylim(min(places) - 0.6, 0.6)
    axes.set_xticks([-0.05, 0, 0.05, 0.1])
    axes.set_xlabel("difference from the same network without it (to the right: better)")
    save_figure(figure, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=TABLE.with_suffix(".png"))
    draw(parser.parse_args().out)
