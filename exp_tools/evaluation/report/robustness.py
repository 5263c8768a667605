"""What a report says of corrupted images: the model card's section, and one line."""

from collections.abc import Mapping
from typing import Any

from exp_tools.evaluation.metrics.bootstrap import SMALL_GROUPS
from exp_tools.evaluation.report.model_card_tables import table
from exp_tools.evaluation.report.numbers import interval, number
from exp_tools.evaluation.robustness.disturb import KINDS

SCORES = {
    "balanced_accuracy": "balanced accuracy",
    "macro_auc": "macro AUC",
    "melanoma_sensitivity": "melanoma sensitivity",
}
COLUMNS = (
    ("balanced_accuracy", 1),
    ("balanced_accuracy", 3),
    ("balanced_accuracy", 5),
    ("macro_auc", 3),
    ("melanoma_sensitivity", 3),
)
"""Scores and severities of the card's table."""


def disturbed(test: Mapping[str, Any]) -> list[str]:
    """What each kind of corruption changes, as Markdown; empty where none was asked for.

    Parameters
    ----------
    test : report of a set; its `robustness` is as `compare.disturbed.robustness_report` gives it, or absent
    """
    found = test.get("robustness")
    if not found:
        return []
    cells: dict[str, dict[Any, str]] = {}
    for row in found["rows"]:
        for name, bounds in row["differences"].items():
            cells.setdefault(row["kind"], {})[name, row["severity"]] = _change(bounds)
    columns = [column for column in COLUMNS if column[0] in found["clean"]]
    head = ["corruption", *(f"{SCORES[name]}, severity {severity}" for name, severity in columns)]
    rows = [[KINDS[kind].words, *(of_kind[column] for column in columns)] for kind, of_kind in cells.items()]
    clean = ", ".join(f"{SCORES[name]} {number(value)}" for name, value in found["clean"].items())
    rare = [code for code, lesions in found["counts"].items() if 0 < lesions < SMALL_GROUPS]
    lines = [
        "### Image corruptions",
        "",
        f"What synthetic corruptions, of severity 1 to 5, change on {found['images']:,} test images of "
        f"{found['lesions']:,} lesions, as many of each class as there are. On the same images unchanged: {clean}. "
        "In brackets 95 % by lesion, paired, for each number on its own.",
        "",
        *table(head, rows),
        "",
        worst_line(found),
    ]
    if rare:
        lines.append(f"Fewer than {SMALL_GROUPS} lesions of {', '.join(rare)}: means over classes are a hint at most.")
    return [*lines, ""]


def worst_line(found: Mapping[str, Any]) -> str:
    """The kind that costs most at the middle severity, as a sentence."""
    worst = found["worst"]
    if not worst:
        return "No difference in balanced accuracy is defined."
    kind = KINDS[worst["kind"]].words
    holds = "95 %" if worst["kinds"] == 1 else f"95 % for all {worst['kinds']} kinds together"
    if worst["high"] < 0:
        return (
            f"It loses {-100 * worst['difference']:.1f} points of balanced accuracy under {kind} of severity "
            f"{worst['severity']} ({-100 * worst['high']:.1f} to {-100 * worst['low']:.1f}; {holds})"
            + ("." if worst["kinds"] == 1 else ", the largest loss of them.")
        )
    return (
        f"No kind is shown to cost balanced accuracy at severity {worst['severity']}; the worst is {kind}, "
        f"{100 * worst['difference']:+.1f} points ({100 * worst['low']:+.1f} to {100 * worst['high']:+.1f}; {holds})."
    )


def _change(bounds: Mapping[str, Any]) -> str:
    return f"{number(bounds['difference'], '+')} ({interval(bounds)})"
