"""A comparison as text for a terminal, as Markdown, and as a table for programs."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from exp_tools.evaluation.metrics.catalogue import label_of
from exp_tools.evaluation.report.latex import latex_table
from exp_tools.evaluation.report.numbers import bracketed, number


class Table(NamedTuple):
    """Cells to print: the first column is text, the others are aligned to the right."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def as_text(comparison: Mapping[str, Any]) -> str:
    """Aligned tables for a terminal; `comparison` as `compare.compare_groups` gives it."""
    parts = []
    for table in _tables(comparison):
        rows = [[table.title, *table.head], *table.rows]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        parts += ["  ".join(_aligned(row, widths)).rstrip() for row in rows] + [""]
    parts += [*_listed(comparison, "  "), *(f"- {note}" for note in comparison["notes"])]
    head = [line for line in (warning(comparison), _head(comparison)) if line]
    return "\n".join([*head, "", *parts]).rstrip()


def as_markdown(comparison: Mapping[str, Any]) -> str:
    """The same as Markdown, to put into a report."""
    drawn = warning(comparison)
    parts = ["## Comparison", "", *([f"**{drawn[0].upper()}{drawn[1:]}.**", ""] if drawn else [])]
    parts += [f"{_head(comparison)}.", ""]
    for table in _tables(comparison):
        parts.append("| " + " | ".join([table.title, *table.head]) + " |")
        parts.append("| --- |" + " ---: |" * len(table.head))
        parts += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table.rows] + [""]
    listed = _listed(comparison, "- ")
    parts += [*listed[:1], "", *listed[1:]] if listed else []
    parts += [f"- {note.replace('* rests', chr(92) + '* rests')}" for note in comparison["notes"]]
    return "\n".join(parts).rstrip() + "\n"


def as_latex(comparison: Mapping[str, Any]) -> str:
    """The same as LaTeX, a `table` for each metric, the notes as comments."""
    parts = [f"% {line}" for line in (warning(comparison), _head(comparison)) if line]
    for table in _tables(comparison):
        head = ["", *table.head]
        parts += ["", latex_table(head, table.rows, caption=table.title)]
    return "\n".join([*parts, "", *(f"% {note}" for note in comparison["notes"])]) + "\n"


def as_table(comparison: Mapping[str, Any]) -> pd.DataFrame:
    """A row per result and metric, undefined values empty.

    Returns
    -------
    DataFrame [name, made_from, runs (with spaces between), split, images, lesions, metric, mean, sd, low, high, small,
    baseline, difference, difference_low, difference_high, level (of the interval of the difference), p, verdict,
    mcnemar_lesions_p, mcnemar_images_p (of right and wrong, the same for every metric)]; six decimals
    """
    rows = []
    for group in comparison["groups"]:
        tests = group["mcnemar"] or {}
        for metric, score in group["scores"].items():
            difference = (group["differences"] or {}).get(metric, {})
            rows.append(
                {
                    "name": group["name"],
                    "made_from": group["makeup"],
                    "runs": " ".join(group["runs"]),
                    "split": comparison["split"],
                    "images": group["images"],
                    "lesions": group["lesions"],
                    "metric": metric,
                    **{key: score[key] for key in ("mean", "sd", "low", "high", "small")},
                    "baseline": comparison["baseline"] if difference else None,
                    "difference": difference.get("difference"),
                    "difference_low": difference.get("low"),
                    "difference_high": difference.get("high"),
                    "level": comparison["level"] if difference else None,
                    "p": difference.get("p"),
                    "verdict": difference.get("verdict"),
                    "mcnemar_lesions_p": tests.get("lesions", {}).get("p"),
                    "mcnemar_images_p": tests.get("images", {}).get("p"),
                }
            )
    return pd.DataFrame(rows).round(6)


def warning(comparison: Mapping[str, Any]) -> str:
    """A remark that synthetic images say nothing about skin, and that leaky splits flatter, where there are any."""
    drawn, leaky = comparison["drawn"], comparison["leaky"]
    said = [f"synthetic images in {', '.join(drawn)}: their scores mean nothing for real skin"] if drawn else []
    said += [f"LEAKY: {', '.join(leaky)} split by image, so their scores are too good"] if leaky else []
    return "; ".join(said)


def _head(comparison: Mapping[str, Any]) -> str:
    return f"Scores on {comparison['split']}, 95 % intervals by lesion; differences from {comparison['baseline']}"


def _tables(comparison: Mapping[str, Any]) -> list[Table]:
    groups = comparison["groups"]
    made = [[group["name"], group["makeup"], f"{group['images']:,}", f"{group['lesions']:,}"] for group in groups]
    tables = [Table("compared", ("made from", "images", "lesion groups"), made)]
    for place, metric in enumerate(comparison["metrics"]):
        rows = [_row(metric, group) for group in groups if metric in group["scores"]]
        title = label_of(metric) + (", the primary score" if place == 0 and len(comparison["metrics"]) > 1 else "")
        tables.append(Table(title, ("score", "sd", "interval", "difference", "interval", ""), rows))
    tested = [group for group in groups if group["mcnemar"]]
    if tested:
        head = ("lesions gained", "lost", "p", "images gained", "lost", "p")
        rows = []
        for group in tested:
            cells = [group["name"]]
            for unit in ("lesions", "images"):
                test = group["mcnemar"][unit]
                cells += [f"{test['gained']:,}", f"{test['lost']:,}", _p(test["p"])]
            rows.append(cells)
        tables.append(Table("right or wrong, McNemar", head, rows))
    return tables


def _row(metric: str, group: Mapping[str, Any]) -> list[str]:
    score, differences = group["scores"][metric], group["differences"]
    row = [group["name"], number(score["mean"]) + (" *" if score["small"] else "")]
    row += [number(score["sd"]), bracketed(score["low"], score["high"], "")]
    if differences is None:
        return [*row, "not paired" if group["unpaired"] else "baseline", "", ""]
    if metric not in differences:
        return [*row, "", "", ""]
    difference = differences[metric]
    signed = bracketed(difference["low"], difference["high"], "+")
    return [*row, number(difference["difference"], "+"), signed, difference["verdict"]]


def _listed(comparison: Mapping[str, Any], mark: str) -> list[str]:
    """The parameters in which each result differs from the baseline."""
    lines = []
    for group in comparison["groups"]:
        changed = [
            f"{key} {json.dumps(own)} (not {json.dumps(before)})" for key, (before, own) in group["changed"].items()
        ]
        if changed:
            lines.append(f"{mark}{group['name']}: {', '.join(changed)}")
    return [f"Parameters that differ from {comparison['baseline']}:", *lines, ""] if lines else []


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [f"{row[0]:<{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))]


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
