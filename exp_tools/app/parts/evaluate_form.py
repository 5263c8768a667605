"""The part of the Evaluate page that makes an evaluation: the choice, the progress, and the files."""

import streamlit as st

from exp_tools.app.parts import evaluations, model_picker
from exp_tools.app.parts.evaluations import Evaluation, Evaluations, Request
from exp_tools.app.parts.settings import Settings
from exp_tools.app.parts.text import plain
from exp_tools.errors import UserError
from exp_tools.project import CARD
from exp_tools.revisions import Version

REFRESH_SECONDS = 1
HOW = (
    "No set of images is here: make the project's with `dvc repro split`, or start the app with "
    "`exp-tools app --data-root DIR`, a folder of labelled images or of folders with them."
)


@st.cache_resource(show_spinner=False)
def _evaluations() -> Evaluations:
    return Evaluations()


def show(settings: Settings, version: Version, stored: dict | None) -> Evaluation | None:
    """Draw the form, the progress and the downloads; the finished evaluation to show, None for the stored report.

    `stored` is the version's own report, for the model card.
    """
    every = _evaluations()
    with st.expander("Evaluate this model on a set of images", expanded=every.running is not None):
        _form(settings, version, stored, every)
        if every.running is not None:
            _watch(every)
    finished = [one for one in every.all if one.status["state"] == "done"]
    last = every.all[-1] if every.all else None
    if last and last.status["state"] == "failed":
        st.error(plain(f"{last.title}: {last.status['step']}"), icon=":material/error:")
    if not finished:
        return None
    titles = ["stored with the version", *(one.title for one in finished)]
    place = st.selectbox(
        "Report",
        range(len(titles) - 1, -1, -1),
        index=0 if finished[-1] is last else len(finished),
        format_func=lambda place: titles[place],
        key=f"report {len(finished)}",
    )
    shown = finished[place - 1] if place else None
    if shown is not None:
        _downloads(shown)
    return shown


def _form(settings: Settings, version: Version, stored: dict | None, every: Evaluations) -> None:
    choices = evaluations.sets(settings)
    if not choices:
        st.info(HOW)
        return
    chosen = st.selectbox("Set of images", choices, key="set to evaluate")
    source, table = "", None
    if chosen in evaluations.data_roots.folders(settings.data_roots):
        source = st.selectbox("Kind of data set", evaluations.KINDS, index=evaluations.KINDS.index("folder"))
        if source == "table":
            table = st.text_input("Table in that folder", placeholder="labels.csv")
    skip = st.checkbox("Leave out images and rows that have a problem, instead of stopping")
    if not st.button("Evaluate", type="primary", icon=":material/play_arrow:", disabled=every.running is not None):
        return
    try:
        if source == "table":
            evaluations.require_table(chosen, table)
        path = model_picker.model_file(settings, version)
        name = path.name if settings.model is not None else version.name
        own = None if settings.model is not None else stored
        every.start(Request(settings.root, str(path), name, chosen, source, table, skip, own, settings.cases))
    except UserError as error:
        st.error(plain(str(error)), icon=":material/error:")
        return
    st.rerun()


def _watch(every: Evaluations) -> None:
    @st.fragment(run_every=REFRESH_SECONDS)
    def progress() -> None:
        running = every.running
        if running is None:
            st.rerun(scope="app")
            return
        status = running.status
        st.progress(status["share"], plain(f"{running.title}: {status['step']}"))
        if st.button("Stop", icon=":material/stop:"):
            running.stop()

    progress()


def _downloads(shown: Evaluation) -> None:
    for note in shown.read("about.json")["notes"]:
        st.warning(plain(note), icon=":material/warning:")
    with st.container(horizontal=True):
        for words, name, kind in (
            ("Report as one page (HTML)", "report.html", "text/html"),
            ("Scores (JSON)", "report.json", "application/json"),
        ):
            st.download_button(
                words, shown.file(name), name, kind, on_click="ignore", icon=":material/download:", key=name
            )
        st.download_button(
            "Everything (ZIP)",
            shown.archive(),
            "evaluation.zip",
            "application/zip",
            on_click="ignore",
            icon=":material/folder_zip:",
        )
    if not (shown.folder / "results" / CARD.name).is_file():
        st.caption("No model card is made: the model's scores on its own test split are not known here.")
