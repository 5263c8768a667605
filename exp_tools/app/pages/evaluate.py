"""The Evaluate page: a model's scores on its test images, with their uncertainty."""

import json
import math
from collections.abc import Mapping
from io import StringIO
from typing import Any

import pandas as pd
import streamlit as st

from exp_tools.app.parts import charts, model_picker
from exp_tools.app.parts.settings import Settings
from exp_tools.app.parts.text import plain
from exp_tools.errors import UserError
from exp_tools.evaluation.metrics.catalogue import HEADLINE, in_tables
from exp_tools.evaluation.report.numbers import interval, number
from exp_tools.io import bare_cells
from exp_tools.project import CURVES, FIGURES, REPORT
from exp_tools.revisions import Version, fetch_bytes, read_files

ERRORS = {"mistakes": "The most confident mistakes of each class", "missed_melanomas": "Melanomas that were missed"}


def show(settings: Settings) -> None:
    """Draw the page."""
    st.title("Evaluate")
    version = model_picker.choose_version(settings, released=False)
    reports = _reports(settings, version)
    if settings.model is None:
        model_picker.say_model(model_picker.open_predictor(settings, version))
    if reports is None:
        st.info(f"{plain(version.label)} has no {REPORT}: make it with `dvc repro evaluate`.")
        return
    name = st.selectbox("Images", list(reports), key="set") if len(reports) > 1 else "test split"
    report = reports[name]
    if settings.model is not None:
        st.info("This is the report of the project's own model, not of the model file that the app was started with.")
    _headline(report)
    _classes(report["per_class"])
    if report["melanoma"]:
        _melanoma(report["melanoma"])
    if name == "test split":
        _curves(settings, version, list(report["per_class"]))
    _subgroups(report["subgroups"])
    if name == "test split":
        _errors(settings, version)


def _reports(settings: Settings, version: Version) -> dict[str, Any] | None:
    """The report of each set by the set's name; None where there is none."""
    (text,) = read_files(settings.folder, [(version.commit, REPORT)])
    if text is None:
        return None
    content = json.loads(text)
    return {"test split": content["test"]} | {
        f"external set {name}": report for name, report in content["external"].items()
    }


def _headline(report: Mapping[str, Any]) -> None:
    metrics, intervals = report["metrics"], report["intervals"]
    shown = {key: label for key, label in in_tables().items() if key in metrics}  # an older report may lack some
    st.subheader("Scores")
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
        st.dataframe(pd.DataFrame(rows), hide_index=True, alt="Scores with their intervals")
        st.caption("† the interval holds the true value less often than 95 %: a sample shows more error than there is.")


def doubt(name: str) -> str:
    """A mark for an interval that holds the true value less often than it says."""
    return " †" if HEADLINE[name].holds_from == math.inf else ""


def _classes(per_class: Mapping[str, Mapping[str, Any]]) -> None:
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
    st.subheader("Each class")
    scores = {
        name: st.column_config.NumberColumn(format="%.3f") for name in ("sensitivity", "specificity", "precision")
    }
    scores |= {name: st.column_config.NumberColumn(format="%.3f") for name in ("F1", "AUC")}
    st.dataframe(pd.DataFrame(rows), hide_index=True, column_config=scores, alt="Scores of each class")


def _melanoma(scores: Mapping[str, Any]) -> None:
    st.subheader("Melanoma against the rest")
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
    st.dataframe(pd.DataFrame(rows), hide_index=True, alt="Melanoma scores")


def _curves(settings: Settings, version: Version, classes: list[str]) -> None:
    names = ("confusion", "roc", "precision_recall", "reliability", "risk_coverage")
    texts = read_files(settings.folder, [(version.commit, f"{CURVES}/{name}.csv") for name in names])
    tables = {name: bare_cells(pd.read_csv(StringIO(text))) for name, text in zip(names, texts, strict=True) if text}
    if not tables:
        return
    st.subheader("Curves")
    titles = ("Confusion", "ROC", "Precision and recall", "Reliability", "Abstention")
    for tab, name in zip(st.tabs(titles), names, strict=True):
        with tab:
            if name not in tables:
                st.info(f"{CURVES}/{name}.csv is not in this version.")
            else:
                _draw(name, tables[name], classes)


def _draw(name: str, table: pd.DataFrame, classes: list[str]) -> None:
    if name == "confusion":
        ink = "#E8EEF2" if st.context.theme.type == "dark" else "#17242D"
        st.vega_lite_chart(table, charts.confusion(classes, ink), alt="Confusion matrix: true class by predicted class")
        st.caption("A row is a true class; the number counts images, the colour is their share of the row.")
    elif name == "roc":
        spec = charts.curves(
            "false_positive_rate", "true_positive_rate", "1 − specificity", "sensitivity", diagonal=True
        )
        st.vega_lite_chart(table, spec, alt="ROC curve of each class against the rest")
    elif name == "precision_recall":
        spec = charts.curves("recall", "precision", "recall (sensitivity)", "precision", diagonal=False)
        st.vega_lite_chart(table, spec, alt="Precision-recall curve of each class against the rest")
    elif name == "reliability":
        schemes = {"mass": "bins of equally many images", "width": "bins of equal width"}
        if "scheme" in table:  # a version made before there were two kinds of bins has not
            scheme = st.segmented_control(
                "Bins", list(schemes), default="mass", required=True, format_func=schemes.get, key="scheme"
            )
            table = table[table["scheme"] == scheme]
        st.vega_lite_chart(
            table[table["count"] > 0],
            charts.reliability(),
            alt="Reliability: accuracy against confidence, before and after calibration",
        )
    else:
        long = table.melt("coverage", ["accuracy", "balanced_accuracy"], "score", "value")
        st.vega_lite_chart(
            long.assign(score=long["score"].str.replace("_", " ")), charts.coverage(), alt="Score against coverage"
        )
        st.caption("What would be gained by leaving the least certain images to a human.")


def _subgroups(groups: list[Mapping[str, Any]]) -> None:
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
    st.subheader("Subgroups")
    scores = {name: st.column_config.NumberColumn(format="%.3f") for name in ("balanced accuracy", "accuracy")}
    st.dataframe(pd.DataFrame(rows), hide_index=True, column_config=scores, alt="Scores of subgroups")


def _errors(settings: Settings, version: Version) -> None:
    st.subheader("Errors")
    for name, title in ERRORS.items():
        try:
            picture = _figure(settings, version, f"{FIGURES}/{name}.png")
        except UserError as error:
            st.info(plain(str(error)))
            continue
        st.image(picture, caption=title, width="stretch", alt=title)


def _figure(settings: Settings, version: Version, path: str) -> bytes:
    """A picture of a version; a committed one never changes and is kept."""
    return _committed_figure(settings, version, path) if version.commit else fetch_bytes(settings.folder, version, path)


@st.cache_data(max_entries=20, show_spinner="Fetching the picture …")
def _committed_figure(settings: Settings, version: Version, path: str) -> bytes:
    return fetch_bytes(settings.folder, version, path)
