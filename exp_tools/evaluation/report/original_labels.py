"""Scores with the labels as they were before people changed some of them (verdicts/labels.csv)."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from exp_tools.data.labels.table import ORIGINAL
from exp_tools.evaluation.metrics.bootstrap import bootstrap_intervals
from exp_tools.evaluation.metrics.catalogue import in_tables
from exp_tools.evaluation.metrics.classification import headline_metrics
from exp_tools.evaluation.predictions import as_arrays, decisions
from exp_tools.evaluation.report.numbers import bracketed, interval, number

DROPPED = "dropped"
"""The `split` in predictions.csv of images that would be in the test split, had no verdict dropped them."""


def with_original(table: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """A prediction table with ORIGINAL, where the label table (the same rows) has it."""
    return table.assign(**{ORIGINAL: labels[ORIGINAL].to_numpy()}) if ORIGINAL in labels else table


def all_sets(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Prediction tables below each other; a set in which nothing was changed has its `dx` as ORIGINAL."""
    table = pd.concat(tables, ignore_index=True)
    return table.assign(**{ORIGINAL: table[ORIGINAL].fillna(table["dx"])}) if ORIGINAL in table else table


def original_labels(
    table: pd.DataFrame, dropped: pd.DataFrame | None, classes: Sequence[str], *, resamples: int, seed: int
) -> dict[str, Any] | None:
    """Headline scores with the original labels, of all images that the set had before verdicts.

    Parameters
    ----------
    table : rows of a prediction table, one set
    dropped : rows of the images that a verdict took out of the set; None: none
    classes : the C classes
    resamples, seed : of the bootstrap over lesion groups

    Returns
    -------
    dict with relabelled and dropped (each {"images", "lesions"}), images (scored: those of `table` and `dropped`),
    metrics and intervals (as in `score_set`); None where nothing was changed. A label counts as changed where its class
    in the model's task is another.
    """
    if ORIGINAL not in table:
        return None
    changed = table[table[ORIGINAL] != table["dx"]]
    gone = table.iloc[:0] if dropped is None else dropped
    if changed.empty and gone.empty:
        return None
    whole = pd.concat([table, gone], ignore_index=True)
    whole["dx"] = whole[ORIGINAL]
    probabilities, labels, _ = as_arrays(whole, classes)
    predicted = decisions(whole, classes)
    groups = whole["group_id"].to_numpy()
    bounds = bootstrap_intervals(probabilities, labels, groups, classes, predicted, resamples=resamples, seed=seed)
    return {
        "relabelled": _counted(changed),
        "dropped": _counted(gone),
        "images": len(whole),
        "metrics": headline_metrics(probabilities, labels, classes, predicted),
        "intervals": {name: {"low": low, "high": high} for name, (low, high) in bounds.items()},
    }


def _counted(table: pd.DataFrame) -> dict[str, int]:
    return {"images": len(table), "lesions": table["lesion_id"].nunique()}


def original_labels_section(test: Mapping[str, Any]) -> list[str]:
    """What a model card says of changed test labels; empty where none was changed."""
    found = test.get("original_labels")
    if not found:
        return []
    scores = ", ".join(
        f"{words} {number(found['metrics'][name])} ({interval(found['intervals'][name])})"
        for name, words in in_tables().items()
    )
    return ["### Changed test labels", "", f"{_changes(test, found)}. With the original labels: {scores}.", ""]


def text_line(report: Mapping[str, Any]) -> list[str]:
    """The same for one screen of text: balanced accuracy alone."""
    found = report.get("original_labels")
    if not found:
        return []
    bounds = found["intervals"]["balanced_accuracy"]
    score = f"{number(found['metrics']['balanced_accuracy'])} {bracketed(bounds['low'], bounds['high'])}"
    return ["", f"{_changes(report, found)}; with the original labels balanced accuracy is {score}"]


def _changes(report: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    relabelled, dropped = found["relabelled"], found["dropped"]
    words = f"{relabelled['images']:,} of {report['images']:,} images were relabelled by hand"
    words += f" ({relabelled['lesions']:,} lesions)" if relabelled["images"] else ""
    if dropped["images"]:
        words += f", and {dropped['images']:,} ({dropped['lesions']:,} lesions) were dropped and are not among these"
    return words
