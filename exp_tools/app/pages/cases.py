"""The Cases page: the test images one by one, with what the model made of each. Nothing leaves this machine."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from exp_tools.app.cases import freshness, steps, view
from exp_tools.app.cases.selection import OUTCOMES, Filters, ordered, orders, select
from exp_tools.app.cases.table import OF, Cases, files_of, read_cases, set_name
from exp_tools.app.parts import charts, frame, model_picker
from exp_tools.app.parts.settings import Settings
from exp_tools.app.parts.text import plain
from exp_tools.errors import UserError
from exp_tools.project import PREDICTIONS
from exp_tools.revisions import WORKSPACE
from exp_tools.serving.predictor import name_of

PURPOSE = "The workspace's test images one by one: what the model made of each, and where it looked."
OFF = (
    "This page shows pictures of the data set to whoever reaches this address, and data sets have licences. So it is "
    "off where other computers may reach the app: start it with `exp-tools app --cases` to switch the page on."
)
VIEWS = ("One case", "Grid", "Confusion matrix")
LABELS = {"dx_type": "Confirmed by", "localization": "Site"}
CONFIDENCE = (0, 100)
EITHER = {"either": None, "yes": True, "no": False}
PER_PAGE = 24
NOBODY = "No image passes these filters: choose *All* under *Predicted*, or open *Filters and order* and clear them."
CELL = "cell"
MATRIX_ALT = "Confusion matrix: true class by predicted class"
URL = {"bind": "query-params"}
"""A filter is part of the page's address, so that a selection can be quoted."""


def _restart() -> None:
    """Begin with the first case of the new selection."""
    st.query_params.pop("case", None)
    st.session_state["page"] = 1


CHANGED = {"on_change": _restart, "width": 272, **URL}
"""Of every filter: four fit side by side on a desktop, one on a phone."""


def show(settings: Settings) -> None:
    """Draw the page: filters, then the view of what passes them."""
    frame.head("Cases", PURPOSE)
    if not settings.cases:
        st.info(OFF, icon=":material/visibility_off:")
        return
    root = settings.folder
    try:
        cases = _cases(str(root), _stamps(files_of(root)))
    except UserError as error:
        st.error(plain(str(error)), icon=":material/error:")
        return
    for line in _stale(str(root), _stamps(freshness.watched(root))):
        st.warning(line, icon=":material/history:")
    if settings.model is not None:
        st.info(
            "These are predictions of the project's own model, not of the model file that the app was started with."
        )
    top = st.container(horizontal=True, vertical_alignment="bottom")
    outcome = top.segmented_control(
        "Predicted",
        OUTCOMES,
        default=OUTCOMES[0],
        required=True,
        format_func=str.capitalize,
        key="outcome",
        on_change=_restart,
        **URL,
    )
    shown = top.segmented_control("View", VIEWS, default=VIEWS[0], required=True, key="view", **URL)
    filters, order = _ask(cases, outcome)
    found = ordered(select(cases.table, filters), order)
    everything = cases.table["split"] == filters.of_set
    top.markdown(
        f"**{len(found):,}** of {everything.sum():,} images, {found['lesion_id'].nunique():,} lesions", width="content"
    )
    if shown == "Confusion matrix":
        _matrix(cases, filters)
    elif shown == "Grid":
        _grid(cases, found)
    else:
        _one(settings, cases, filters.of_set, found)
    model_picker.say_facts(model_picker.facts_of(replace(settings, model=None), WORKSPACE))


def _stamps(files: Sequence[Path]) -> tuple:
    """Changes when one of the files does."""
    stats = [file.stat() if file.is_file() else None for file in files]
    return tuple(one and (one.st_mtime_ns, one.st_size) for one in stats)


@st.cache_resource(max_entries=2, show_spinner="Reading the predictions …")
def _cases(root: str, stamps: tuple) -> Cases:
    return read_cases(Path(root))


@st.cache_data(max_entries=2, show_spinner=False)
def _stale(root: str, stamps: tuple) -> list[str]:
    return freshness.stale(Path(root))


def _ask(cases: Cases, outcome: str) -> tuple[Filters, str]:
    """Draw the filters; what was asked for, and the order. Closed, they leave a phone's screen to the case."""
    given = sum(st.session_state.get(key, nothing) != nothing for key, nothing in _nothing(cases).items())
    unlike, sizes = "either", ()
    with st.expander(f"Filters and order{f': {given} set' if given else ''}", key="filters"):
        box = st.container(horizontal=True)
        order = box.selectbox("Order", orders(cases.table), key="order", **CHANGED)
        names = {set_name(name): name for name in cases.sets}
        chosen = next(iter(names))
        if len(names) > 1:
            chosen = box.selectbox("Images", list(names), key="images", **CHANGED)
        true = _several(box, "True class", cases.classes, "true", _named)
        predicted = _several(box, "Predicted class", cases.classes, "predicted", _named)
        low, high = box.slider(
            "Probability of the prediction", *(0, 100, CONFIDENCE), format="%d %%", key="confidence", **CHANGED
        )
        attributes = {
            name: _several(box, LABELS.get(name, name.replace("_", " ").capitalize()), values, OF + name)
            for name, values in cases.attributes.items()
        }
        if "unlike_training" in cases.table:
            unlike = box.selectbox("Unlike the training images", list(EITHER), key="unlike", **CHANGED)
        if "set_size" in cases.table:
            counts = sorted(int(size) for size in cases.table["set_size"].unique())
            sizes = _several(box, "Classes in the prediction set", [str(count) for count in counts], "sizes")
        _say_missing(cases.table)
        st.button("Clear filters", icon=":material/filter_alt_off:", on_click=_clear, args=(cases,))
    return (
        Filters(
            of_set=names[chosen],
            outcome=outcome,
            true=true,
            predicted=predicted,
            confidence=(low / 100, high / 100),
            attributes=attributes,
            unlike=EITHER[unlike],
            sizes=tuple(int(size) for size in sizes),
        ),
        order,
    )


def _several(
    place: DeltaGenerator, label: str, values: Sequence[str], key: str, form: Callable[[str], str] = str
) -> tuple[str, ...]:
    """Draw a filter of which several values may be chosen; none lets all pass."""
    chosen = place.multiselect(label, values, format_func=form, placeholder="any", key=key, **CHANGED)
    return tuple(chosen)


def _named(code: str) -> str:
    return code if name_of(code) == code else f"{name_of(code)} ({code})"


def _nothing(cases: Cases) -> dict[str, Any]:
    """Each filter's key, and its value that lets everything pass."""
    several = ("true", "predicted", "sizes", *(OF + name for name in cases.attributes))
    return {**{key: [] for key in several}, "confidence": CONFIDENCE, "unlike": "either"}


def _say_missing(table: pd.DataFrame) -> None:
    """Which filters there could be, and how to get them."""
    missing = []
    if "set_size" not in table:
        missing.append("the number of classes in the prediction set (`calibration.sets`)")
    if "unlike_training" not in table:
        missing.append("likeness to the training images")
    if missing:
        st.caption(
            f"No filter for {' and '.join(missing)}: {PREDICTIONS} was made without. Switch it on in params.yaml where "
            "it is off, then `dvc repro`."
        )


def _clear(cases: Cases) -> None:
    """Let everything pass."""
    _restart()
    present = _nothing(cases).keys() & set(st.session_state)
    st.session_state.update({key: value for key, value in _nothing(cases).items() if key in present})


def _go(image_id: str) -> None:
    st.query_params["case"] = image_id
    st.session_state["view"] = VIEWS[0]


def _one(settings: Settings, cases: Cases, of_set: str, found: pd.DataFrame) -> None:
    """One case, with the way to the next."""
    asked = st.query_params.get("case")
    ids = found["image_id"].tolist()
    if asked is None and not ids:
        st.info(NOBODY)
        return
    every = cases.table[cases.table["split"] == of_set]
    asked = ids[0] if asked is None else asked
    rows = every[every["image_id"] == asked]
    steps.show(ids.index(asked) if asked in ids else -1, len(ids), lambda place: _go(ids[place]))
    if rows.empty:
        st.error(
            f"There is no image {plain(asked)} in the {set_name(of_set)}: the link is of another run. *Next* leads to "
            "the first case there is."
        )
        return
    if asked not in ids:
        st.info("The filters do not let this case pass; *Next* leads to the first that does.")
    st.query_params["case"] = asked  # the address leads back to the case
    view.show(settings, cases, rows.iloc[0], _go)


def _grid(cases: Cases, found: pd.DataFrame) -> None:
    """Small pictures of the selected cases, a page at a time."""
    if found.empty:
        st.info(NOBODY)
        return
    pages = -(-len(found) // PER_PAGE)
    page = min(st.session_state.get("page", 1), pages)
    some = found.iloc[(page - 1) * PER_PAGE : page * PER_PAGE]
    with st.container(horizontal=True, gap="small", key="case-grid"):
        for pixels, (_, case) in zip(cases.pixels(some["split"].iloc[0], some["place"]), some.iterrows(), strict=True):
            with st.container(width=view.SMALL, gap="xsmall"):
                view.thumbnail(pixels, case, _go)
    if pages > 1:
        st.pagination(pages, key="page")


def _matrix(cases: Cases, filters: Filters) -> None:
    """The confusion matrix of all that pass the other filters; a click on a cell shows its cases."""
    counted = select(cases.table, replace(filters, outcome="all", true=(), predicted=()))
    spec = charts.confusion(cases.classes, charts.ink())
    spec["layer"][0]["name"] = "cells"
    spec["params"] = [
        {"name": CELL, "select": {"type": "point", "fields": ["actual", "predicted"]}, "views": ["cells"]}
    ]
    charts.draw(
        counted[["dx", "predicted"]].rename(columns={"dx": "actual"}),
        spec,
        alt=MATRIX_ALT,
        key="matrix",
        on_select=_chosen,
    )
    st.caption(
        "A row is a true class; the number counts images, the colour is their share of the row. Click a cell to see "
        "its cases, or choose *True class* and *Predicted class* among the filters. The other filters hold here too."
    )


def _chosen() -> None:
    """Show the cases of the cell that was clicked."""
    cells = st.session_state["matrix"]["selection"][CELL]
    if not cells:
        return
    _restart()
    st.session_state.update(
        {"outcome": "all", "true": [cells[0]["actual"]], "predicted": [cells[0]["predicted"]], "view": "Grid"}
    )
