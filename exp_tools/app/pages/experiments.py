"""The Experiments page: scores and curves of every version; where allowed, new experiments."""

import json
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import streamlit as st
import yaml

from exp_tools.app.parts import charts, experiment_queue
from exp_tools.app.parts.settings import Settings
from exp_tools.app.parts.text import plain
from exp_tools.errors import UserError
from exp_tools.evaluation.metrics.catalogue import in_tables
from exp_tools.params import PARAMS_FILE, ModelParams, load_params
from exp_tools.project import EVALUATE_METRICS, TRAIN_METRICS
from exp_tools.recipes import list_recipes
from exp_tools.revisions import Version, list_versions, read_files
from exp_tools.taxonomy import is_drawn

CURVES = {
    "val/balanced_accuracy": "balanced accuracy, validation",
    "val/macro_f1": "macro F1, validation",
    "val/macro_auc": "macro AUC, validation",
    "val/accuracy": "accuracy, validation",
    "val/loss": "loss, validation",
    "train/loss": "loss, training",
}
SHOWN_FIRST = 6
REFRESH_SECONDS = 5


def show(settings: Settings) -> None:
    """Draw the page."""
    st.title("Experiments")
    versions = list_versions(settings.folder)
    _table(settings, versions)
    _training_curves(settings, versions)
    st.subheader("New experiment")
    if not settings.allow_training:
        st.info("The app was started without `--allow-training`: it shows experiments, and runs none.")
        return
    try:
        _form(settings)
        _watch(settings)
    except UserError as error:  # parameters or recipes that cannot be read, DVC that cannot tell
        st.error(plain(str(error)), icon=":material/error:")


def _table(settings: Settings, versions: list[Version]) -> None:
    commits = [version.commit for version in versions]
    scores = read_files(settings.folder, [(commit, EVALUATE_METRICS) for commit in commits])
    params = read_files(settings.folder, [(commit, str(PARAMS_FILE)) for commit in commits])
    bases = read_files(settings.folder, [(version.base, str(PARAMS_FILE)) for version in versions])
    rows = []
    for version, summary, own, base in zip(versions, scores, params, bases, strict=True):
        found, values = json.loads(summary) if summary else {}, yaml.safe_load(own) if own else {}
        rows.append(
            {
                "experiment": version.name,
                **{words: found.get(name) for name, words in list(in_tables().items())[:4]},
                "changed": changes(yaml.safe_load(base), values) if version.base and base else "",
                "model": values.get("model", {}).get("name"),
                "data": values.get("data", {}).get("source"),
                "kind": version.kind,
                "made": version.created,
            }
        )
    table = pd.DataFrame(rows)
    scored = {words: st.column_config.NumberColumn(format="%.3f") for words in list(in_tables().values())[:4]}
    st.dataframe(
        table,
        hide_index=True,
        placeholder="–",
        column_config=scored | {"made": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm")},
        alt="Scores of every version on its test images",
    )
    st.caption(
        "Scores on each version's own test images, without their uncertainty: small differences are chance. "
        "`exp-tools compare` says which are not."
    )
    if table["data"].map(is_drawn).any():
        st.warning("Data `synthetic` are drawn: their scores mean nothing on real skin.", icon=":material/draw:")


def _training_curves(settings: Settings, versions: list[Version]) -> None:
    st.subheader("Curves of training")
    labels = {version.label: version for version in versions}
    chosen = st.multiselect("Versions", list(labels), default=list(labels)[:SHOWN_FIRST], key="curves_of")
    name = st.selectbox("Score", list(CURVES), format_func=CURVES.get, key="curve")
    path = f"{TRAIN_METRICS}/plots/metrics/{name}.tsv"
    texts = read_files(settings.folder, [(labels[label].commit, path) for label in chosen])
    parts = [
        pd.read_csv(StringIO(text), sep="\t")
        .rename(columns={"step": "epoch", name.split("/")[1]: "value"})
        .assign(experiment=labels[label].name)
        for label, text in zip(chosen, texts, strict=True)
        if text
    ]
    if parts:
        st.vega_lite_chart(pd.concat(parts), charts.training(CURVES[name]), alt=f"{CURVES[name]} by epoch")
    else:
        st.info("None of them has this curve.")


def _form(settings: Settings) -> None:
    params = load_params(settings.folder / PARAMS_FILE)
    recipes = {recipe.name: recipe.summary for recipe in list_recipes(settings.folder)}
    with st.form("new", border=True):
        name = st.text_input("Name", placeholder="chosen by DVC where left empty", max_chars=64)
        recipe = st.selectbox(
            "Recipe to start from", recipes, index=None, placeholder="none: the project's parameters as they are"
        )
        left, right = st.columns(2)
        keep = "as in recipe or project"
        asked = {
            "model.name": left.selectbox(
                "Architecture", get_args(ModelParams.model_fields["name"].annotation), index=None, placeholder=keep
            ),
            "train.epochs": right.number_input(
                "Epochs", 1, value=None, step=1, placeholder=f"{keep} ({params.train.epochs})"
            ),
            "train.lr": left.number_input(
                "Learning rate", value=None, step=1e-4, format="%g", placeholder=f"{keep} ({params.train.lr:g})"
            ),
            "train.seed": right.number_input(
                "Seed of training", 0, value=None, step=1, placeholder=f"{keep} ({params.train.seed})"
            ),
        }
        other = st.text_area("Other parameters", placeholder="train.batch_size=16\nmodel.soft_attention.heads=8")
        sent = st.form_submit_button("Queue experiment", type="primary", icon=":material/playlist_add:")
    if not sent:
        return
    try:
        changed = {key: value for key, value in asked.items() if value is not None}
        arguments = experiment_queue.chosen_words(
            settings.folder, recipe, changed | experiment_queue.parse_changes(other)
        )
        with st.spinner("Queueing …"):
            st.success(plain(experiment_queue.queue(settings.folder, name, arguments)), icon=":material/check:")
        _tasks.clear()
    except UserError as error:
        st.error(plain(str(error)), icon=":material/error:")


def _watch(settings: Settings) -> None:
    st.subheader("Queue")
    busy = any(task.state in ("Queued", "Running") for task in _tasks(settings.root))

    @st.fragment(run_every=REFRESH_SECONDS if busy else None)
    def queue() -> None:
        tasks = _tasks(settings.root)
        if not tasks:
            st.caption("Nothing is queued.")
            return
        before, states = st.session_state.get("states"), {task.id: task.state for task in tasks}
        st.session_state["states"] = states
        if before is not None and before != states:
            st.rerun(scope="app")  # the table above has a new row, or a new state
        for task in tasks:
            _show_task(settings, task)

    queue()


@st.cache_data(ttl=REFRESH_SECONDS - 1, show_spinner=False)
def _tasks(root: str) -> list[experiment_queue.Task]:
    """DVC's queue, asked once for all visitors: asking takes a second of a processor's time."""
    return experiment_queue.tasks(Path(root))


def _show_task(settings: Settings, task: experiment_queue.Task) -> None:
    st.markdown(f"**{plain(task.name or task.id)}** — {task.state.lower()}")
    if task.state not in ("Running", "Failed"):
        return
    progress = experiment_queue.progress(settings.folder, task, TRAIN_METRICS)
    if task.state == "Running":
        share = progress.epoch / progress.epochs if progress.epochs else 0.0
        epochs = f", epoch {progress.epoch} of {progress.epochs}" if progress.epochs else ""
        st.progress(share, f"stage {progress.stage or '…'}{epochs}")
    with st.expander("Log"):
        st.code(progress.log, language=None)


def changes(base: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """The parameters that an experiment changed, as `key=value, …`."""
    before, after = _flat(base), _flat(own)
    return ", ".join(f"{key}={value}" for key, value in after.items() if before.get(key, ...) != value)


def _flat(content: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= _flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return found
