"""Queue experiments with DVC, run them, follow their progress, stop, remove and repeat them."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import yaml
from pydantic import BaseModel

from exp_tools.app.parts.data_roots import require_allowed
from exp_tools.errors import UserError
from exp_tools.params import PARAMS_FILE, load_params, parse_params
from exp_tools.recipes import arguments, changed
from exp_tools.revisions import WORKSPACE, git_text
from exp_tools.system import own_python_first

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_TASK = re.compile(
    r"(?P<id>[0-9a-f]{7})\s+(?:(?P<name>\S+)\s{2,})?\S.*?\s{2,}(?P<state>Queued|Running|Success|Failed)\s*"
)
NICENESS = "10"
_STAGE = re.compile(r"^(?:Running stage|Stage) '(.+?)'", re.MULTILINE)
_TRACEBACK = re.compile(r"^Traceback \(most recent call last\):\n(?:[ \t].*\n|\n)*(?=\S|\Z)", re.MULTILINE)
_INTERRUPTED = re.compile(r"^(?:KeyboardInterrupt|ERROR: interrupted by the user)", re.MULTILINE)
LINES = 15


@dataclass(frozen=True)
class Task:
    """An experiment in DVC's queue: the start of its hash ("": not listed yet), its name ("": none yet), its status.

    `state` is Queued, Running, Success or Failed.
    """

    id: str
    name: str
    state: str


@dataclass(frozen=True)
class Progress:
    """Progress of an experiment that was started.

    stage : of the pipeline, the last that began
    epoch, epochs : done and requested; 0: not training
    log : its end, without tracebacks
    killed : its process was interrupted or ended from outside
    """

    stage: str
    epoch: int
    epochs: int
    log: str
    killed: bool = False


def chosen_words(
    root: Path, recipe: str | None, changes: Mapping[str, Any], data_roots: Sequence[str] = ()
) -> list[str]:
    """Arguments for `dvc exp run` that set the chosen parameters, checked before anything runs.

    Parameters
    ----------
    root : the project's folder
    recipe : name of one of its recipes, or None
    changes : values by dotted key, which win over the recipe's
    data_roots : folders that `changes` may name, see `data_roots.require_allowed`

    Raises
    ------
    UserError : a key or value that parameters cannot have, that no word of the command can hold, or a folder or table
        that visitors may not name
    """
    params, combined = changed(root, recipe, changes)
    require_allowed(changes, params.model_dump(), root, data_roots)
    return arguments(combined, root)


def parse_changes(text: str) -> dict[str, Any]:
    """Lines `section.key=value` as values by dotted key, read as YAML. Raises UserError for a line that is none."""
    changes = {}
    for line in filter(None, (line.strip() for line in text.splitlines())):
        key, equals, value = line.partition("=")
        if not equals or not re.fullmatch(r"[a-z_0-9]+(\.[A-Za-z_0-9-]+)*", key.strip()):
            raise UserError(f"{line!r} is not a line of the form section.key=value, such as train.seed=1")
        try:
            changes[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"the value in {line!r} cannot be read: {error}") from error
    return changes


def queue(root: Path, name: str, arguments: list[str]) -> str:
    """Queue an experiment and see to a worker that runs it, at a low priority (POSIX).

    Returns its name, which DVC chooses where `name` is "".

    Raises UserError for a bad name, one that Git knows already, or with DVC's words where it refuses.
    """
    if name and not NAME.fullmatch(name):
        raise UserError(f"the name {name!r} will not do: letters, digits, - and _, at most 64, a letter or digit first")
    if name == WORKSPACE.name or (name and git_text(root, "rev-parse", "--verify", "--quiet", name) is not None):
        raise UserError(f"the name {name!r} is taken: a branch, tag or commit is called so; choose another")
    answer = _dvc(root, "exp", "run", "--queue", *(["--name", name] if name else []), *arguments)
    _dvc(root, "queue", "start", "--jobs", "1", worker=True)
    found = re.search(r"Queued experiment '(.+?)'", answer)
    return found[1] if found else name


def stop(root: Path, task: Task) -> None:
    """Interrupt a running task, which then counts as failed. Raises UserError where DVC fails."""
    _dvc(root, "queue", "kill", task.id)


def remove(root: Path, task: Task) -> None:
    """Take a task that does not run out of the queue; the experiment of a finished one stays. UserError: DVC fails."""
    _dvc(root, "queue", "remove", task.id)


def retry(root: Path, task: Task, data_roots: Sequence[str] = ()) -> str:
    """Queue a failed task again with its parameters and the code of now; its name.

    Raises UserError where its parameters are gone or do not fit any more.
    """
    text = git_text(root, "show", f"{task.id}:./{PARAMS_FILE.as_posix()}")
    if text is None:
        raise UserError(f"Git does not have the parameters of {task.name or task.id} any more; queue it anew")
    own = parse_params(yaml.safe_load(text), f"{PARAMS_FILE} of {task.name or task.id}")
    arguments = chosen_words(root, None, dict(_different(own, load_params(root / PARAMS_FILE))), data_roots)
    remove(root, task)
    return queue(root, task.name, arguments)


def _different(own: BaseModel, other: BaseModel, path: str = "") -> Iterator[tuple[str, Any]]:
    """Values of `own` that are not those of `other`, by dotted key."""
    for key in type(own).model_fields:
        mine, its = getattr(own, key), getattr(other, key)
        if isinstance(mine, BaseModel) and isinstance(its, BaseModel):
            yield from _different(mine, its, f"{path}{key}.")
        elif mine != its:
            yield path + key, own.model_dump()[key]


def tasks(root: Path) -> list[Task]:
    """The tasks in DVC's queue, in its order. Raises UserError where DVC fails."""
    found = (_TASK.fullmatch(line) for line in _dvc(root, "queue", "status").splitlines())
    return [Task(match["id"], match["name"] or "", match["state"]) for match in found if match]


def progress(root: Path, task: Task, training: str) -> Progress:
    """Progress of a task, from DVC's own files: cheap enough to poll.

    Parameters
    ----------
    root : the project's folder
    task : running or done
    training : folder of the training curves, relative to a project
    """
    whole = "".join(_read(path) for path in _work_files(root, task, "out"))
    log = _TRACEBACK.sub("", whole)
    stages = _STAGE.findall(log)
    stage = stages[-1] if stages else ""
    done = asked = 0
    if stage == "train" and (folder := _work_folder(root, task)):
        asked = load_params(folder / PARAMS_FILE).train.epochs
        done = min(asked, _last_epoch(folder / training))
    killed = bool(_INTERRUPTED.search(whole)) or _gone(root, task)
    return Progress(stage, done, asked, "\n".join(log.splitlines()[-LINES:]), killed)


def _gone(root: Path, task: Task) -> bool:
    """Whether a signal ended the task's process, or it vanished without a word (as a restart of the machine does)."""
    for note in _work_files(root, task, "json"):
        try:
            process = json.loads(_read(note))
            code, number = process["returncode"], process["pid"]
        except (ValueError, KeyError):  # written this very moment
            continue
        return not psutil.pid_exists(number) if code is None else code < 0 or code > 128
    return False


def _last_epoch(folder: Path) -> int:
    try:
        return int(pd.read_csv(folder / "plots/metrics/val/loss.tsv", sep="\t")["step"].max())
    except (OSError, ValueError, KeyError):  # not written yet, or this very moment
        return 0


def _work_folder(root: Path, task: Task) -> Path | None:
    """The folder in which DVC runs the task; None where DVC has not recorded it."""
    for note in _work_files(root, task, "run"):
        try:
            folder = Path(json.loads(_read(note))["root_dir"])
        except (ValueError, KeyError):  # written this very moment
            continue
        if (folder / PARAMS_FILE).is_file():
            return folder
    return None


def _work_files(root: Path, task: Task, ending: str) -> list[Path]:
    return list((root / ".dvc/tmp/exps/run").glob(f"{task.id}*/*.{ending}"))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # removed this very moment
        return ""


def _dvc(root: Path, *command: str, worker: bool = False) -> str:
    """The output of a DVC command; it and the stages it runs find this environment's Python first.

    With `worker`, which starts one, "": it would keep a pipe open as long as it lives. It is niced, so that predictions
    go before its training.

    Raises UserError, with DVC's words, where the command fails.
    """
    output = subprocess.DEVNULL if worker else subprocess.PIPE
    nice = shutil.which("nice") if worker else None
    done = subprocess.run(
        [*([nice, "-n", NICENESS] if nice else []), sys.executable, "-m", "dvc", *command],
        cwd=root,
        env=own_python_first(),
        stdout=output,
        stderr=output,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        said = (done.stderr or "").strip() or (done.stdout or "").strip()
        raise UserError(said or f"dvc {' '.join(command)} ended with status {done.returncode}")
    return done.stdout or ""
