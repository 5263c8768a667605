"""Choose the model that the pages show; load its predictor and describe its data."""

from pathlib import Path

import streamlit as st

from exp_tools.app.parts.settings import CACHE, Settings
from exp_tools.app.parts.text import plain
from exp_tools.errors import UserError
from exp_tools.io import file_sha256
from exp_tools.models.model_file import ModelFacts, read_facts
from exp_tools.models.released import released_model
from exp_tools.project import EVALUATE_METRICS, MODEL, has_released
from exp_tools.revisions import RELEASED_VERSION, WORKSPACE, Version, fetch_model, list_versions, read_files
from exp_tools.serving.predictor import Predictor
from exp_tools.taxonomy import is_drawn

KEY = "version"
DRAWN = (
    "**Synthetic data.** This model has only seen synthetic images (the embedded sample set). What it says of a "
    "photograph means nothing; its scores say that the software works, no more."
)


def choose_version(settings: Settings, *, reports: bool = False) -> Version:
    """Draw the chooser of versions that were evaluated, and of the released model; the choice holds on every page.

    The released model comes first where the workspace has none that has seen skin; with `reports` it comes last, since
    it has none.
    """
    if settings.model is not None:
        return WORKSPACE
    versions = list_versions(settings.folder)
    trained = read_files(settings.folder, [(version.commit, EVALUATE_METRICS) for version in versions])
    shown = [version for version, text in zip(versions, trained, strict=True) if text or not version.commit]
    if has_released(settings.folder):
        first = not reports and _without_skin(settings.folder / MODEL)
        shown.insert(0 if first else len(shown), RELEASED_VERSION)
    labels = {version.label: version for version in shown}
    key = f"{KEY} of {'reports' if reports else 'all'}"
    if st.session_state.get(KEY) in labels:
        st.session_state[key] = st.session_state[KEY]
    elif st.session_state.get(key) not in labels:
        st.session_state.pop(key, None)  # an experiment that was removed meanwhile
    chosen = st.selectbox("Model of", list(labels), key=key, on_change=_remember, args=(key,), persist_state="session")
    return labels[chosen]


def _remember(key: str) -> None:
    """Let what a page's box says hold on the other pages; a look at a page, without a choice, changes nothing."""
    st.session_state[KEY] = st.session_state[key]


def open_predictor(settings: Settings, version: Version) -> Predictor:
    """The version's model, ready; loaded once and shared by everyone. Stops the page where there is none."""
    try:
        return find_predictor(settings, version)
    except UserError as error:
        st.error(plain(str(error)), icon=":material/error:")
        st.stop()


def find_predictor(settings: Settings, version: Version) -> Predictor:
    """As `open_predictor`; raises UserError where there is none."""
    path = model_file(settings, version)
    return _opened(str(path), _stamp(path))


def model_file(settings: Settings, version: Version) -> Path:
    """The version's model file. Raises UserError where it is neither here nor in DVC's cache or remote."""
    if settings.model is not None:
        return Path(settings.model)
    if version == RELEASED_VERSION:
        return released_model(settings.folder)
    return fetch_model(settings.folder, version, MODEL, settings.folder / CACHE)


def facts_of(settings: Settings, version: Version) -> ModelFacts | str:
    """What the version's model file says, without loading its weights; in words why that is not known."""
    try:
        path = model_file(settings, version)
        _stamp(path)
        return read_facts(path) if path.suffix == ".safetensors" else open_predictor(settings, version).facts
    except UserError as error:
        return str(error)


def _without_skin(model: Path) -> bool:
    """Whether there is no model, or one that saw synthetic images alone."""
    try:
        return is_drawn(read_facts(model).source)
    except UserError:
        return True


def say_model(predictor: Predictor) -> None:
    """One line on the model, and a warning where its data are synthetic."""
    say_facts(predictor.facts)


def say_facts(facts: ModelFacts | str) -> None:
    """As `say_model`, of facts; where the model file is not here, that."""
    if isinstance(facts, str):
        st.caption(f"Shown without the model file: {plain(facts)}.")
        return
    backbone = facts.knobs.get("backbone")
    name = facts.architecture + (f" on {backbone}" if backbone else "")
    st.markdown(
        f"Model **{plain(name)}**, {len(facts.classes)} classes, {facts.preprocessing['image_size']} px, trained on "
        f"**{'the synthetic sample set' if is_drawn(facts.source) else plain(facts.source)}**."
    )
    if is_drawn(facts.source):
        st.warning(DRAWN, icon=":material/draw:")


def identity(predictor: Predictor) -> tuple[str, int, int]:
    """Identifies this model, and changes when its file is replaced."""
    return str(predictor.path), *_stamp(predictor.path)


def checksum(predictor: Predictor) -> str:
    """SHA-256 of the model file in hex digits."""
    return _checksum(*identity(predictor))


@st.cache_data(max_entries=10, show_spinner=False)
def _checksum(path: str, changed: int, size: int) -> str:
    return file_sha256(Path(path))


def require_trained(predictor: Predictor) -> Predictor:
    """The predictor; raises UserError where its file records no training."""
    if not predictor.facts.is_trained:
        raise UserError(f"{predictor.path.name} has no record of training; an untrained model is not shown")
    return predictor


def _stamp(path: Path) -> tuple[int, int]:
    """Changes when the file does. Raises UserError where it is missing."""
    if not path.is_file():
        raise UserError(
            f"there is no model {path.name} yet; make one with `dvc repro`, or fetch it with `dvc pull` where a remote "
            "holds it"
        )
    return path.stat().st_mtime_ns, path.stat().st_size


@st.cache_resource(max_entries=3, show_spinner="Loading the model …")
def _opened(path: str, stamp: tuple[int, int]) -> Predictor:
    return require_trained(Predictor(Path(path)))
