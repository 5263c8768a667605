"""One case: its picture, what the model made of it and where it looked, its metadata, the lesion's other pictures."""

from collections.abc import Callable
from html import escape
from typing import NamedTuple

import pandas as pd
import streamlit as st

from exp_tools.app.cases.explain import case_maps
from exp_tools.app.cases.table import TEST, Cases
from exp_tools.app.parts import images
from exp_tools.app.parts.charts import percent, probability_bars
from exp_tools.app.parts.settings import Settings
from exp_tools.app.parts.text import plain
from exp_tools.data.labels.table import EXTRA
from exp_tools.serving.predictor import name_of

SIDE = 300
"""Width of a picture in CSS pixels: three side by side on a desktop, one on a phone."""
SMALL = 140
BARS = 420
STYLE = """
<style>
.facts { border-collapse: collapse; }
.facts caption { text-align: left; font-weight: 600; padding-bottom: .4rem; }
.facts th { text-align: left; font-weight: 400; padding: .2rem 1.2rem .2rem 0; border: 0; vertical-align: top; }
.facts td { padding: .2rem 0; border: 0; overflow-wrap: anywhere; }
</style>
"""


class Answer(NamedTuple):
    """A row of the table as `probability_bars` takes it."""

    diagnosis: str
    probabilities: dict[str, float]


def show(settings: Settings, cases: Cases, case: pd.Series, go: Callable[[str], None]) -> None:
    """Draw a case; `go(image_id)` is called when another picture of its lesion is asked for."""
    st.header(title(case), anchor=False)
    wanted = st.toggle("Where the model looked (heat maps)", key="maps", persist_state="session")
    (pixels,) = cases.pixels(case["split"], [case["place"]])
    with st.container(horizontal=True, gap="medium", key="case-pictures"):
        st.image(
            images.png(pixels),
            caption=f"{plain(case['image_id'])}, as the model sees it: {pixels.shape[1]} px",
            width=SIDE,
            alt=f"{case['image_id']}: {words(case)}",
        )
        if wanted:
            case_maps(settings, cases, case, pixels, SIDE)
        with st.container(width=BARS):
            shares = {code: float(case[f"p_{code}"]) for code in cases.classes}
            st.html(probability_bars(Answer(case["predicted"], shares), true=case["dx"]))
        with st.container(width=BARS):
            st.html(_facts(_known(cases, case)))
    _siblings(cases, case, go)


def title(case: pd.Series) -> str:
    """Right or wrong, what was predicted with which probability, and what is true."""
    predicted = f"{plain(name_of(case['predicted']))} {percent(case['confidence'])}"
    return f"Right: {predicted}" if case["right"] else f"Wrong: {predicted}, true: {plain(name_of(case['dx']))}"


def words(case: pd.Series) -> str:
    """The same in codes, for a button or where a picture cannot be seen."""
    share = percent(case["confidence"])
    return f"{case['dx']} {share}" if case["right"] else f"{case['dx']}, predicted {case['predicted']} {share}"


def _known(cases: Cases, case: pd.Series) -> dict[str, str]:
    """What is known of a case, in words."""
    age = case["age"]
    found = {
        "image": case["image_id"],
        "lesion": case["lesion_id"],
        "true class": name_of(case["dx"]),
    }
    if case.get("dx_original") not in (None, "", case["dx"]) and not pd.isna(case.get("dx_original")):
        found["label before it was changed"] = name_of(case["dx_original"])
    found |= {
        "confirmed by": case["dx_type"],
        "age": "unknown" if pd.isna(age) else f"{age:g} years",
        "sex": case["sex"],
        "site": case["localization"],
        "source": case["source"],
    }
    found |= {
        column.removeprefix(EXTRA).replace("_", " "): case[column]
        for column in case.index
        if column.startswith(EXTRA) and not pd.isna(case[column])
    }
    found["loss"] = f"{case['loss']:.3f} (−ln of the true class's probability)"
    if "lesion_predicted" in case:
        found["decision on the lesion"] = name_of(case["lesion_predicted"])
    if "set_size" in case:
        codes = case["prediction_set"].split()
        listed = ", ".join(name_of(code) for code in codes) or "empty"
        found["cannot be excluded"] = f"{listed} ({len(codes)} of {len(cases.classes)} classes)"
    if "unlike_training" in case:
        score = case.get("unlike_score")
        told = "" if score is None or pd.isna(score) else f", score {score:.3g}"
        found["unlike the training images"] = ("yes" if case["unlike_training"] else "no") + told
    return {name: str(value) for name, value in found.items()}


def _facts(found: dict[str, str]) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in found.items()
    )
    return f"{STYLE}<table class='facts'><caption>What is known of it</caption>{rows}</table>"


def _siblings(cases: Cases, case: pd.Series, go: Callable[[str], None]) -> None:
    """The other images of the lesion, also those that were not predicted."""
    labels = cases.labels[case["split"]]
    others = labels[(labels["lesion_id"] == case["lesion_id"]) & (labels["image_id"] != case["image_id"])]
    st.header("Other images of the same lesion", anchor=False)
    if others.empty:
        st.caption("There are none.")
        return
    table = cases.table[cases.table["split"] == case["split"]].set_index("image_id", drop=False)
    with st.container(horizontal=True, gap="small"):
        for image_id, pixels, split in zip(
            others["image_id"], cases.pixels(case["split"], others.index), others["predicted_split"], strict=True
        ):
            with st.container(width=SMALL, gap="xsmall"):
                if image_id in table.index:
                    thumbnail(pixels, table.loc[image_id], go)
                else:
                    st.image(images.png(pixels), width=SMALL, alt=f"{image_id}, not predicted")
                    where = f"in {split}" if split and split != TEST else "elsewhere"
                    st.caption(f"{plain(image_id)}: {where}, not predicted here")


def thumbnail(pixels, case: pd.Series, go: Callable[[str], None]) -> None:
    """A small picture, and a button that leads to the case."""
    st.image(images.png(pixels), width=SMALL, alt=f"{case['image_id']}: {words(case)}")
    icon = ":material/check:" if case["right"] else ":material/close:"
    st.button(
        plain(words(case)),
        key=f"open {case['split']} {case['image_id']}",
        icon=icon,
        help=plain(case["image_id"]),
        on_click=go,
        args=(case["image_id"],),
        width="stretch",
        wrap=True,
    )
