"""Queue experiments with DVC, run them, and follow their progress."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from exp_tools.errors import UserError
from exp_tools.params import PARAMS_FILE, load_params, parse_params
from exp_tools.recipes import Recipe, find_recipe, merged, words

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_TASK = re.compile(
    r"(?P<id>[0-9a-f]{7})\s+(?:(?P<name>\S+)\s{2,})?\S.*?\s{2,}(?P<state>Queued|Running|Success|Failed)\s*"
)
NICENESS = "10"
_STAGE = re.compile(r"^(?:Running stage|Stage) '(.+?)'", re.MULTILINE)


@dataclass(frozen=True)
class Task:
    """An experiment in DVC's queue: the start of its hash, its name ("": not named yet), and its status.

    `state` is Queued, Running, Success or Failed.
    """

    id: str
    name: str
    state: str


@dataclass(frozen=True)
class Progress:
    """Progress of a running experiment: its stage, the epochs done and requested (0: not training), the log's end."""

    stage: str
    epoch: int
    epochs: int
    log: str


def chosen_words(root: Path, recipe: str | None, changes: Mapping[str, Any]) -> list[str]:
    """Arguments for `dvc exp run` that set the chosen parameters, checked before anything runs.

    Parameters
    ----------
    root : the project's folder
    recipe : name of one of its recipes, or None
    changes : values by dotted key, which win over the recipe's

    Raises
    ------
    UserError : a key or value that parameters cannot have, or that no word of the command can hold
    """
    params = load_params(root / PARAMS_FILE)
    found = find_recipe(root, recipe) if recipe else Recipe("none", "", {})
    content = merged(found, params).model_dump()
    combined = deepcopy(found.changes)
    for key, value in changes.items():
        _put(content, key, value)
        _put(combined, key, value)
    parse_params(content, "your choice")
    return [part for word in words(Recipe("your choice", "", combined), root) for part in word.split(" ", 1)]


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
    """Queue an experiment and see to a worker that runs it, at a low priority (POSIX); DVC's answer.

    Raises UserError for a bad name, or with DVC's words where it refuses.
    """
    if name and not NAME.fullmatch(name):
        raise UserError(f"the name {name!r} will not do: letters, digits, - and _, at most 64, a letter or digit first")
    answer = _dvc(root, "exp", "run", "--queue", *(["--name", name] if name else []), *arguments)
    _dvc(root, "queue", "start", "--jobs", "1", worker=True)
    return answer.strip().splitlines()[-1]


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
    log = "".join(_read(path) for path in _work_files(root, task, "out"))
    stages = _STAGE.findall(log)
    stage = stages[-1] if stages else ""
    done = asked = 0
    if stage == "train" and (folder := _work_folder(root, task)):
        asked = load_params(folder / PARAMS_FILE).train.epochs
        done = min(asked, _last_epoch(folder / training))
    return Progress(stage, done, asked, "\n".join(log.splitlines()[-15:]))


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


def _put(content: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise UserError(f"{key}: {section} is not a section of the parameters")
    content[last] = value


def _dvc(root: Path, *command: str, worker: bool = False) -> str:
    """The output of a DVC command; it and the stages it runs find this environment's Python first.

    With `worker`, which starts one, "": it would keep a pipe open as long as it lives. It is niced, so that predictions
    go before its training.

    Raises UserError, with DVC's words, where the command fails.
    """
    output = subprocess.DEVNULL if worker else subprocess.PIPE
    nice = shutil.which("nice") if worker else None
    environment = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}
    done = subprocess.run(
        [*([nice, "-n", NICENESS] if nice else []), sys.executable, "-m", "dvc", *command],
        cwd=root,
        env=environment,
        stdout=output,
        stderr=output,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        said = (done.stderr or "").strip() or (done.stdout or "").strip()
        raise UserError(said or f"dvc {' '.join(command)} ended with status {done.returncode}")
    return done.stdout or ""
