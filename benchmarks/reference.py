"""The table of docs/results.md, from the predictions in results/: `python -m benchmarks.reference`.

A row is a setting, NAME; its seeds are NAME-seed0.csv.gz, NAME-seed1.csv.gz and so on, its folds NAME-fold0.csv.gz.
"""

from collections.abc import Mapping
from pathlib import Path

from exp_tools.evaluation.compare.compare import compare_groups
from exp_tools.evaluation.compare.groups import make_group
from exp_tools.evaluation.compare.runs import read_run
from exp_tools.evaluation.compare.scores import check_metrics
from exp_tools.evaluation.standalone.keep import KEPT

FOLDER = Path(__file__).resolve().parents[1] / "results"
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
    """For each setting and metric of COLUMNS `mean`, `sd`, `low` and `high`, as `exp-tools compare` has them."""
    made = {}
    for name, paths in settings(folder).items():
        group = make_group(name, [read_run(str(path), folder, "", split) for path in paths])
        metrics = check_metrics(list(COLUMNS), [group], "balanced_accuracy", split)
        (row,) = compare_groups([group], group, metrics, split=split)["groups"]
        made[name] = row["scores"] | {"makeup": row["makeup"]}
    return made


def table(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A Markdown table of `scores`."""
    lines = ["| setting | made from | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name, row in found.items():
        cells = [f"{row[key]['mean']:.3f} [{row[key]['low']:.3f}, {row[key]['high']:.3f}]" for key in COLUMNS]
        lines.append(f"| `{name}` | {row['makeup']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(scores()))
