"""Tables of a report, as the Evaluate page shows them."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from exp_tools.app.parts.text import plain
from exp_tools.evaluation.metrics.catalogue import HEADLINE, in_tables
from exp_tools.evaluation.report.numbers import interval, number
from exp_tools.evaluation.report.set_scores import sets_line


def show(report: Mapping[str, Any]) -> None:
    """Draw the tables of one set's report, see `build.score_set`."""
    headline(report)
    classes(report["per_class"])
    if report.get("prediction_sets"):  # an older report has none
        line = sets_line(report["prediction_sets"])
        st.caption(plain(f"{line[:1].upper()}{line[1:]}."))
    if report["melanoma"]:
        melanoma(report["melanoma"])
    subgroups(report["subgroups"])


def headline(report: Mapping[str, Any]) -> None:
    metrics, intervals = report["metrics"], report["intervals"]
    shown = {key: label for key, label in in_tables().items() if key in metrics}  # an older report may lack some
    st.header("Scores", anchor=False)
    st.caption(
        f"{report['images']:,} images of {report['lesions']:,} lesions. Intervals of 95 %, resampled by lesion: "
        "how much chance is in the scores."
    )
    with st.container(horizontal=True):
        for name, words in list(shown.items())[:4]:
            bounds = interval(intervals[name])
            st.metric(
                words[:1].upper() + words[1:],
                number(metrics[name]),
                bounds,
                delta_color="off",
                delta_arrow="off",
                border=True,
                width=166,
            )
    rows = [
        {"score": words, "value": number(metrics[name]), "95 % interval": interval(intervals[name]) + doubt(name)}
        for name, words in shown.items()
    ]
    lesion = report["lesion_level"]
    rows.append(
        {
            "score": "balanced accuracy, a lesion's images averaged",
            "value": number(lesion["metrics"]["balanced_accuracy"]),
            "95 % interval": interval(lesion["intervals"]["balanced_accuracy"]),
        }
    )
    if "baseline" in report:
        rows.append(
            {
                "score": "balanced accuracy of a colour baseline",
                "value": number(report["baseline"]["balanced_accuracy"]),
                "95 % interval": "–",
            }
        )
    with st.expander("All scores"):
        st.dataframe(pd.DataFrame(rows), hide_index=True, placeholder="–", alt="Scores with their intervals")
        st.caption("† the interval holds the true value less often than 95 %: a sample shows more error than there is.")


def doubt(name: str) -> str:
    """A mark for an interval that holds the true value less often than it says."""
    return " †" if HEADLINE[name].holds_from == math.inf else ""


def classes(per_class: Mapping[str, Mapping[str, Any]]) -> None:
    rows = [
        {
            "class": code,
            "images": row["support"],
            "lesions": row["lesions"],
            "sensitivity": row["sensitivity"],
            "95 %": interval(row["intervals"]["sensitivity"]),
            "specificity": row["specificity"],
            "precision": row["precision"],
            "F1": row["f1"],
            "AUC": row["auc"],
            "few lesions": "few" if row["intervals"]["sensitivity"]["small"] else "",
        }
        for code, row in per_class.items()
    ]
    st.header("Each class", anchor=False)
    scores = {
        name: st.column_config.NumberColumn(format="%.3f") for name in ("sensitivity", "specificity", "precision")
    }
    scores |= {name: st.column_config.NumberColumn(format="%.3f") for name in ("F1", "AUC")}
    st.dataframe(pd.DataFrame(rows), hide_index=True, placeholder="–", column_config=scores, alt="Scores of each class")


def melanoma(scores: Mapping[str, Any]) -> None:
    st.header("Melanoma against the rest", anchor=False)
    bounds = scores["intervals"]
    wanted = {
        "auc": "AUC",
        "sensitivity_at_90_specificity": "sensitivity at 90 % specificity",
        "specificity_at_90_sensitivity": "specificity at 90 % sensitivity",
    }
    if scores["threshold"] is not None:
        wanted |= {name: f"{name} at the model's threshold" for name in ("sensitivity", "specificity", "precision")}
    rows = [
        {"score": words, "value": number(scores[name]), "95 % interval": interval(bounds[name])}
        for name, words in wanted.items()
    ]
    few = " Few lesions: the values say little." if scores["small"] else ""
    st.caption(f"{scores['melanomas']:,} melanomas among {scores['images']:,} images.{few}")
    st.dataframe(pd.DataFrame(rows), hide_index=True, placeholder="–", alt="Melanoma scores")


def subgroups(groups: list[Mapping[str, Any]]) -> None:
    rows = [
        {
            "attribute": group["attribute"],
            "value": group["value"],
            "images": group["images"],
            "lesions": group["lesions"],
            "balanced accuracy": group["balanced_accuracy"],
            "95 %": interval(group["intervals"]["balanced_accuracy"]),
            "accuracy": group["accuracy"],
            "few lesions": "few" if group["small"] else "",
        }
        for group in groups
    ]
    st.header("Subgroups", anchor=False)
    scores = {name: st.column_config.NumberColumn(format="%.3f") for name in ("balanced accuracy", "accuracy")}
    st.dataframe(pd.DataFrame(rows), hide_index=True, placeholder="–", column_config=scores, alt="Scores of subgroups")
