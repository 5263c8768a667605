"""The Evaluate page: a model's stored scores with their uncertainty, and new evaluations."""

import json
from io import StringIO
from typing import Any

import pandas as pd
import streamlit as st

from exp_tools.app.parts import charts, evaluate_form, frame, model_picker, report_view
from exp_tools.app.parts.evaluations import Evaluation
from exp_tools.app.parts.settings import Settings
from exp_tools.app.parts.text import plain
from exp_tools.errors import UserError
from exp_tools.evaluation.standalone.page import FIGURES as FIGURE_NAMES
from exp_tools.io import bare_cells
from exp_tools.project import CURVES, FIGURES, REPORT
from exp_tools.revisions import RELEASED_VERSION, Version, fetch_bytes, read_files

PURPOSE = "How well the chosen model does on images it was not trained on, and how sure that is."
ERRORS = {"mistakes": "The most confident mistakes of each class", "missed_melanomas": "Melanomas that were missed"}

NO_PICTURES = (
    "Figures that show images of a set are left out: their licence says who may see them. `exp-tools app --cases` "
    "shows them to all who reach the app."
)


def show(settings: Settings) -> None:
    """Draw the page. The stored report is shown without the model file too."""
    frame.head("Evaluate", PURPOSE)
    version = model_picker.choose_version(settings, reports=True)
    content = None if version == RELEASED_VERSION else _content(settings, version)
    if settings.model is None:
        model_picker.say_facts(model_picker.facts_of(settings, version))
    made = evaluate_form.show(settings, version, content)
    if made is not None:
        report_view.show(made.read("report.json"))
        _pictures(settings, made)
        return
    if content is None:
        st.info(plain(_missing(version)))
        return
    reports = {"test split": content["test"]}
    reports |= {f"external set {name}": report for name, report in content["external"].items()}
    name = st.selectbox("Images", list(reports), key="set") if len(reports) > 1 else "test split"
    report = reports[name]
    if settings.model is not None:
        st.info("This is the report of the project's own model, not of the model file that the app was started with.")
    report_view.show(report)
    if name == "test split":
        _curves(settings, version, list(report["per_class"]))
        _errors(settings, version)


def _missing(version: Version) -> str:
    if version == RELEASED_VERSION:
        return "The released model comes with its model card (page About). Evaluate it above on images of your own."
    return f"{version.label} has no {REPORT}: make it with `dvc repro evaluate`, or evaluate the model above."


def _content(settings: Settings, version: Version) -> dict[str, Any] | None:
    """The version's stored report; None where there is none."""
    (text,) = read_files(settings.folder, [(version.commit, REPORT)])
    return None if text is None else json.loads(text)


def _pictures(settings: Settings, made: Evaluation) -> None:
    st.header("Figures", anchor=False)
    if not settings.cases:
        st.info(NO_PICTURES)
    for path in sorted((made.folder / "results/figures").glob("*.png")):
        words = FIGURE_NAMES.get(path.stem, path.stem.replace("_", " "))
        st.image(str(path), caption=words, width=700, alt=words)


def _curves(settings: Settings, version: Version, classes: list[str]) -> None:
    names = ("confusion", "roc", "precision_recall", "reliability", "risk_coverage")
    texts = read_files(settings.folder, [(version.commit, f"{CURVES}/{name}.csv") for name in names])
    tables = {name: _read_curve(text) for name, text in zip(names, texts, strict=True) if text}
    if not tables:
        return
    st.header("Curves", anchor=False)
    titles = ("Confusion", "ROC", "Precision and recall", "Reliability", "Abstention")
    for tab, name in zip(st.tabs(titles), names, strict=True):
        with tab:
            if name not in tables:
                st.info(f"{CURVES}/{name}.csv is not in this version.")
            else:
                _draw(name, tables[name], classes)


def _read_curve(text: str) -> pd.DataFrame:
    """The table of a curve; a class is text, also one that is called 01 or NA."""
    codes = [column for column in ("class", "actual", "predicted") if column in text.partition("\n")[0].split(",")]
    table = pd.read_csv(StringIO(text))
    return bare_cells(table.assign(**pd.read_csv(StringIO(text), usecols=codes, dtype=str, keep_default_na=False)))


def _draw(name: str, table: pd.DataFrame, classes: list[str]) -> None:
    if name == "confusion":
        charts.draw(
            table, charts.confusion(classes, charts.ink()), alt="Confusion matrix: true class by predicted class"
        )
        st.caption("A row is a true class; the number counts images, the colour is their share of the row.")
    elif name == "roc":
        spec = charts.curves(
            "false_positive_rate", "true_positive_rate", "1 − specificity", "sensitivity", diagonal=True
        )
        charts.draw(table, spec, alt="ROC curve of each class against the rest")
    elif name == "precision_recall":
        spec = charts.curves("recall", "precision", "recall (sensitivity)", "precision", diagonal=False)
        charts.draw(table, spec, alt="Precision-recall curve of each class against the rest")
    elif name == "reliability":
        schemes = {"mass": "bins of equally many images", "width": "bins of equal width"}
        if "scheme" in table:  # a version made before there were two kinds of bins has not
            scheme = st.segmented_control(
                "Bins", list(schemes), default="mass", required=True, format_func=schemes.get, key="scheme"
            )
            table = table[table["scheme"] == scheme]
        charts.draw(
            table[table["count"] > 0],
            charts.reliability(),
            alt="Reliability: accuracy against confidence, before and after calibration",
        )
    else:
        long = table.melt("coverage", ["accuracy", "balanced_accuracy"], "score", "value")
        charts.draw(
            long.assign(score=long["score"].str.replace("_", " ")), charts.coverage(), alt="Score against coverage"
        )
        st.caption("What would be gained by leaving the least certain images to a human.")


def _errors(settings: Settings, version: Version) -> None:
    st.header("Errors", anchor=False)
    if not settings.cases:
        st.info(NO_PICTURES)
        return
    if not version.commit:
        st.caption("The page Cases shows every test image one by one, with the model's heat maps.")
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
