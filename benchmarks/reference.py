"""The table and the picture of docs/results.md, from the predictions in results/: `python -m benchmarks.reference`.

A row is a setting, NAME; its seeds are NAME-seed0.csv.gz, NAME-seed1.csv.gz and so on, its folds NAME-fold0.csv.gz.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import matplotlib

from exp_tools.evaluation.compare.compare import compare_groups
from exp_tools.evaluation.compare.groups import make_group
from exp_tools.evaluation.compare.runs import read_run
from exp_tools.evaluation.compare.scores import check_metrics
from exp_tools.evaluation.made_with import KEPT
from exp_tools.evaluation.plots.style import STYLE, save_figure

FOLDER = Path(__file__).resolve().parents[1] / "results"
HONEST, LEAKY = "reference", "leaky-image-split"
PICTURE = FOLDER.parent / "docs" / "images" / "ham10000.png"
DRAWN = ("balanced_accuracy", "macro_auc")
LEAKS = (*DRAWN, "auc:mel")
"""What is said of the leak: scores without a threshold, since two thresholds are two trade-offs."""
COLUMNS = {
    "balanced_accuracy": "balanced accuracy",
    "macro_auc": "macro AUC",
    "sensitivity@threshold:mel": "melanoma found",
    "specificity@threshold:mel": "others let pass",
    "ece": "calibration error",
}


def settings(folder: Path = FOLDER) -> dict[str, list[Path]]:
    """The kept tables of each setting, sorted."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob(f"*{KEPT}")):
        found.setdefault(path.name.removesuffix(KEPT).rpartition("-")[0], []).append(path)
    return found


def scores(folder: Path = FOLDER, *, split: str = "test") -> dict[str, Mapping[str, Mapping[str, float]]]:
    """For each setting and metric of COLUMNS and LEAKS `mean`, `sd`, `low` and `high`, as `exp-tools compare` has them.

    The setting of the highest balanced accuracy comes first.
    """
    made = {}
    for name, paths in settings(folder).items():
        group = make_group(name, [read_run(str(path), folder, "", split) for path in paths])
        metrics = check_metrics(list(dict.fromkeys([*COLUMNS, *LEAKS])), [group], "balanced_accuracy", split)
        (row,) = compare_groups([group], group, metrics, split=split)["groups"]
        made[name] = row["scores"] | {"makeup": row["makeup"]}
    return dict(sorted(made.items(), key=lambda one: -one[1]["balanced_accuracy"]["mean"]))


def leak(found: Mapping[str, Mapping[str, Mapping[str, float]]], key: str) -> tuple[float, float, float]:
    """How much higher a score is where images of a lesion are on both sides: difference and 95 % interval.

    The two test sets are different images: distances to the bounds add up as squares (Zou and Donner, 2008).
    """
    torn, whole = found[LEAKY][key], found[HONEST][key]
    difference = torn["mean"] - whole["mean"]
    below = math.hypot(torn["mean"] - torn["low"], whole["high"] - whole["mean"])
    above = math.hypot(torn["high"] - torn["mean"], whole["mean"] - whole["low"])
    return difference, difference - below, difference + above


def table(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A Markdown table of `scores`."""
    lines = ["| setting | made from | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name, row in found.items():
        cells = [f"{row[key]['mean']:.3f} [{row[key]['low']:.3f}, {row[key]['high']:.3f}]" for key in COLUMNS]
        lines.append(f"| `{name}` | {row['makeup']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@matplotlib.rc_context(STYLE)
def draw(found: Mapping[str, Mapping[str, Mapping[str, float]]], path: Path = PICTURE) -> None:
    """One line per setting: balanced accuracy and macro AUC with their 95 % intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.7 + 0.32 * len(found)), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(DRAWN), sharey=True), DRAWN, strict=True):
        for place, row in enumerate(found.values()):
            axes.plot([row[key]["low"], row[key]["high"]], [-place, -place], color="#0072B2", linewidth=2)
            axes.plot(row[key]["mean"], -place, "o", color="#0072B2", markersize=6)
        axes.set_yticks([-place for place in range(len(found))], list(found))
        axes.set_ylim(-len(found) + 0.4, 0.6)
        axes.set_xlabel(COLUMNS[key])
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    save_figure(figure, path)


if __name__ == "__main__":
    made = scores()
    print(table(made))
    for key in LEAKS:
        print("{}: LEAKY is {:+.3f} [{:+.3f}, {:+.3f}]".format(key, *leak(made, key)))
    draw(made)
