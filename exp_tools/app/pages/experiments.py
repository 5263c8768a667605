"""The Experiments page: scores and curves of every version; where allowed, new experiments."""

import json
import time
from collections.abc import Callable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import streamlit as st
import yaml

from exp_tools.app.parts import charts, data_roots, experiment_queue, frame
from exp_tools.app.parts.settings import Settings
from exp_tools.app.parts.text import plain
from exp_tools.errors import UserError
from exp_tools.evaluation.metrics.catalogue import in_tables
from exp_tools.params import PARAMS_FILE, DataParams, ModelParams, load_params
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
HANDOVER_SECONDS = 60
"""How long a task may be on its way from DVC's queue to a worker, where DVC lists it nowhere."""
PURPOSE = "Compare the project's versions: the scores, training curves and parameters of each. "


def show(settings: Settings) -> None:
    """Draw the page."""
    more = "New experiments are queued below." if settings.allow_training else ""
    frame.head("Experiments", PURPOSE + more)
    versions = list_versions(settings.folder)
    _table(settings, versions)
    _training_curves(settings, versions)
    st.header("New experiment", anchor=False)
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
                "kind": version.kind,
                **{words: found.get(name) for name, words in list(in_tables().items())[:4]},
                "changed": changes(yaml.safe_load(base), values) if version.base and base else "",
                "model": values.get("model", {}).get("name"),
                "data": values.get("data", {}).get("source"),
                "made": "" if version.created is None else f"{version.created:%Y-%m-%d %H:%M}",
            }
        )
    table = pd.DataFrame(rows)
    scored = {words: st.column_config.NumberColumn(format="%.3f") for words in list(in_tables().values())[:4]}
    st.dataframe(
        table,
        hide_index=True,
        placeholder="–",
        column_config=scored | {"made": st.column_config.TextColumn("made (UTC)", width="medium")},
        alt="Scores of every version on its test images",
    )
    st.caption(
        "Scores on each version's own test images, without their uncertainty: small differences are chance. "
        "`exp-tools compare` says which are not."
    )
    if table["data"].map(is_drawn).any():
        st.warning(
            "Data `synthetic` are synthetic images: their scores mean nothing on real skin.", icon=":material/draw:"
        )


def _training_curves(settings: Settings, versions: list[Version]) -> None:
    st.header("Training curves", anchor=False)
    labels = {version.label: version for version in versions}
    chosen = st.multiselect("Versions", list(labels), default=list(labels)[:SHOWN_FIRST], key="curves_of")
    name = st.selectbox("Score", list(CURVES), format_func=CURVES.get, key="curve")
    path = f"{TRAIN_METRICS}/plots/metrics/{name}.tsv"
    texts = read_files(settings.folder, [(labels[label].commit, path) for label in chosen])
    parts = [
        pd.read_csv(StringIO(text), sep="\t")
        .rename(columns={"step": "epoch", name.split("/")[1]: "value"})
        .assign(experiment=label)
        for label, text in zip(chosen, texts, strict=True)
        if text
    ]
    if parts:
        charts.draw(pd.concat(parts), charts.training(CURVES[name]), alt=f"{CURVES[name]} by epoch")
    else:
        st.info("None of the chosen versions has this curve.")


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
        if settings.data_roots:
            asked["data.dir"] = left.selectbox(
                "Data folder", data_roots.folders(settings.data_roots), index=None, placeholder=keep
            )
            asked["data.source"] = right.selectbox(
                "Kind of data", get_args(DataParams.model_fields["source"].annotation), index=None, placeholder=keep
            )
        other = st.text_area("Other parameters", placeholder="train.batch_size=16\nmodel.soft_attention.heads=8")
        sent = st.form_submit_button("Queue experiment", type="primary", icon=":material/playlist_add:")
    if not sent:
        return
    changed = {key: value for key, value in asked.items() if value is not None}

    def send() -> str:
        chosen = changed | experiment_queue.parse_changes(other)
        arguments = experiment_queue.chosen_words(settings.folder, recipe, chosen, settings.data_roots)
        return f"Queued experiment {_announce(experiment_queue.queue(settings.folder, name, arguments))!r}."

    if said := _act(send):
        st.toast(plain(said), icon=":material/check:")


def _act(action: Callable[[], str]) -> str | None:
    """Do something with the queue and ask DVC anew; what to say of it, None after an error, which is drawn."""
    try:
        with st.spinner("Asking DVC …"):
            return action()
    except UserError as error:
        st.error(plain(str(error)), icon=":material/error:")
        return None
    finally:
        _listed.clear()


def _announce(name: str) -> str:
    """Remember a name that was queued: until DVC lists it, it is shown as queued."""
    _announced()[name] = time.monotonic()
    return name


@st.cache_resource
def _announced() -> dict[str, float]:
    return {}


@st.cache_data(ttl=REFRESH_SECONDS - 1, show_spinner=False)
def _listed(root: str) -> list[experiment_queue.Task]:
    """DVC's queue, asked once for all visitors: asking takes a second of CPU time."""
    return experiment_queue.tasks(Path(root))


def _tasks(root: str) -> list[experiment_queue.Task]:
    """DVC's queue, and what is on its way from there to a worker: DVC lists that nowhere for a moment."""
    listed, announced, now = _listed(root), _announced(), time.monotonic()
    for task in listed:
        if task.state == "Queued":
            announced[task.name] = now
        else:
            announced.pop(task.name, None)
    for name in [name for name, since in announced.items() if now - since > HANDOVER_SECONDS]:
        del announced[name]
    known = {task.name for task in listed}
    return [*listed, *(experiment_queue.Task("", name, "Queued") for name in announced if name not in known)]


def _watch(settings: Settings) -> None:
    st.header("Queue", anchor=False)
    busy = any(task.state in ("Queued", "Running") for task in _tasks(settings.root))

    @st.fragment(run_every=REFRESH_SECONDS if busy else None)
    def queue() -> None:
        tasks = _tasks(settings.root)
        if not tasks:
            st.caption("Nothing is queued.")
        before, states = st.session_state.get("states"), {task.name or task.id: task.state for task in tasks}
        st.session_state["states"] = states
        if before is not None and before != states:
            st.rerun(scope="app")  # the table above has a new row, or a new state
        for task in tasks:
            _show_task(settings, task)

    queue()


def _show_task(settings: Settings, task: experiment_queue.Task) -> None:
    name, started = task.name or task.id, task.state in ("Running", "Failed")
    progress = experiment_queue.progress(settings.folder, task, TRAIN_METRICS) if started else None
    state = task.state.lower()
    if progress and progress.killed:
        state = "killed" if task.state == "Failed" else "interrupted; if it stays so, Stop marks it as failed"
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{plain(name)}** — {state}", width="content")
        _buttons(settings, task, name)
    if progress is None:
        return
    if progress.killed and task.state == "Failed":
        st.caption("It was stopped before it was done, and has no result. Retry queues it again.")
    if task.state == "Running":
        share = progress.epoch / progress.epochs if progress.epochs else 0.0
        epochs = f", epoch {progress.epoch} of {progress.epochs}" if progress.epochs else ""
        st.progress(share, plain(f"stage {progress.stage or '…'}{epochs}"))
    with st.expander("Log"):
        st.code(progress.log, language=None)


def _buttons(settings: Settings, task: experiment_queue.Task, name: str) -> None:
    """What can be done with a task in its state; nothing while DVC does not list it."""
    root = settings.folder

    def stop() -> str:
        experiment_queue.stop(root, task)
        return f"Stopping {name}: this takes a moment."

    def remove() -> str:
        experiment_queue.remove(root, task)
        _announced().pop(task.name, None)
        return f"Removed {name} from the queue."

    def retry() -> str:
        return f"Queued {_announce(experiment_queue.retry(root, task, settings.data_roots))!r} again."

    offered = {
        "Running": [("Stop", ":material/stop:", stop)],
        "Queued": [("Remove", ":material/delete:", remove)],
        "Failed": [("Retry", ":material/replay:", retry), ("Remove", ":material/delete:", remove)],
        "Success": [("Remove", ":material/delete:", remove)],
    }
    for words, icon, action in offered[task.state] if task.id else []:
        pressed = st.button(words, icon=icon, key=f"{words} {task.id}", help=plain(f"{words} {name}"))
        if pressed and (said := _act(action)):
            st.toast(plain(said), icon=":material/check:")
            st.rerun(scope="app")


def changes(base: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """The parameters that an experiment changed, as `key=value, …`."""
    before, after = _flat(base), _flat(own)
    return ", ".join(f"{key}={value}" for key, value in after.items() if before.get(key, ...) != value)


def _flat(content: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= _flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return found
