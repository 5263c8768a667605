"""What a model card says of use: whose images it rests on, how many it would take, what a flag is worth elsewhere."""

from collections.abc import Mapping
from typing import Any

from exp_tools.evaluation.metrics.subgroup_scores import UNKNOWN
from exp_tools.evaluation.report.model_card_tables import table
from exp_tools.evaluation.report.numbers import interval, number

ENOUGH = 139
"""Lesions for a 95 % interval of a sensitivity of 90 % that reaches 5 points either way: 1.96^2 0.9 0.1 / 0.05^2."""


def prevalence(test: Mapping[str, Any]) -> list[str]:
    """Predictive values and net benefit at the stated prevalence; empty without a class."""
    lines = []
    for code, row in test["prevalence"].items():
        stated, test_share = row["stated"], row["test"]
        if stated is None:
            lines += [
                f"### Net benefit of flagging `{code}`",
                "",
                f"At the prevalence of the test images, {test_share:.1%}, since `evaluate.prevalence` states none. "
                "Among people who walk in it is far lower, and so are predictive values.",
                "",
            ]
        else:
            ppv, npv = (f"{number(row[name])} ({interval(row['intervals'][name])})" for name in ("ppv", "npv"))
            lines += [
                f"### `{code}` at a prevalence of {stated:.2%}",
                "",
                f"As `evaluate.prevalence` states; in the test images it is {test_share:.1%}. Of the flagged {ppv} "
                f"would be `{code}`, of the others {npv} would not.",
                "",
            ]
        lines += [
            *table(
                ("net benefit per 100 images, alarm from", "model", "95 % interval", "flag every image"),
                [
                    [
                        f"{100 * point['threshold']:g} %",
                        _hundred(point["model"]),
                        f"{_hundred(point['low'])} to {_hundred(point['high'])}",
                        _hundred(point["all"]),
                    ]
                    for point in row["net_benefit"]
                ],
            ),
            "",
            "Net benefit: found cases less needless alarms, weighted by what the alarm's probability says a found case "
            "is worth. Flagging nothing has 0.",
            "",
        ]
    return lines


def _hundred(value: float | None) -> str:
    return "–" if value is None or value != value else f"{100 * value:.2f}"


def participants(test: Mapping[str, Any]) -> list[str]:
    """From the source to the splits, and the make-up of each; empty for a set that was not split here."""
    found = test.get("participants")
    if not found:
        return []
    flow, splits = found["flow"], found["splits"]
    line = f"The source has {flow['read']:,} rows; {flow['left_out']:,} were left out{_kinds(flow, left_out=True)}, "
    line += f"which leaves {flow['images']:,} images" + (
        f", {flow['unused']:,} in no split." if flow["unused"] else "."
    )
    if mended := _kinds(flow, left_out=False):
        line += f" Problems that were mended or noted{mended}."
    rows = [[name, *(f"{part[name]:,}" for part in splits.values())] for name in ("images", "lesions")]
    rows += [
        [f"`{code}`", *(_share(part["classes"][code], part["images"]) for part in splits.values())]
        for code in splits["test"]["classes"]
    ]
    rows.append(["age in years: median (quartiles)", *(_ages(part["age"]) for part in splits.values())])
    rows.append(["age unknown", *(_share(part["age"]["unknown"], part["images"]) for part in splits.values())])
    for name, words in (("sex", "sex"), ("localization", "site")):
        values = sorted(
            {value for part in splits.values() for value in part[name]}, key=lambda one: (one == UNKNOWN, one)
        )
        rows += [
            [
                f"{words}: {value.replace('_', ' ')}",
                *(_share(part[name].get(value, 0), part["images"]) for part in splits.values()),
            ]
            for value in values
        ]
    return ["### Whose images", "", line, "", *table(("", "train", "validation", "test"), rows), ""]


def _kinds(flow: Mapping[str, Any], *, left_out: bool) -> str:
    """` (kind count, …)` of the problems that left rows out, or of the others; empty without any."""
    counts = {
        kind: sum(count for action, count in actions.items() if (action == "skipped") == left_out)
        for kind, actions in flow["problems"].items()
    }
    words = ", ".join(f"{kind.replace('_', ' ')} {count:,}" for kind, count in counts.items() if count)
    return f" ({words})" if words else ""


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})" if total else "0"


def _ages(age: Mapping[str, Any]) -> str:
    if age["median"] is None or age["median"] != age["median"]:
        return "–"
    return f"{age['median']:.0f} ({age['low']:.0f} to {age['high']:.0f})"


def sample_size(test: Mapping[str, Any]) -> str:
    """For which classes the test set is large enough to know a sensitivity of 90 % to within 5 points."""
    enough = [code for code, row in test["per_class"].items() if row["lesions"] >= ENOUGH]
    known = f"only {enough[0]} has as many" if len(enough) == 1 else f"{', '.join(enough) or 'no class'} have as many"
    known = known if enough else "no class has as many"
    return f"- To know a sensitivity of 90 % to within 5 points takes {ENOUGH} lesions of a class; {known}."
