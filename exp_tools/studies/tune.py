"""A search that never sees the test split: `exp-tools tune`, on Optuna.

Each trial is a DVC experiment that ends before `evaluate`. Its score is that of validation, and it is given up after an
epoch at which it is below the median of those before it (Golovin et al., Google Vizier, KDD 2017, section 3.2.2).
Proposals are those of TPE (Bergstra et al., NIPS 2011), of two scores those of NSGA-II (Deb et al., 2002).
"""

import json
import re
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from exp_tools.errors import UserError
from exp_tools.project import RUNS_FOLDER, VALIDATION_METRICS
from exp_tools.revisions import experiments_called, read_files
from exp_tools.studies.run import LOOK, WAIT, is_busy, reason_of, require_data, signals, start_dvc, stop_dvc
from exp_tools.studies.space import BY_EPOCH, SCORES, Range, Space
from exp_tools.training.checkpoints import delete_run

try:
    import optuna
except ModuleNotFoundError:  # said by `require_optuna`
    optuna = None

STAGES = ("--single-item", "features", "split", "train", "ood", "calibrate")
FIRST_TRIALS, FIRST_EPOCHS = 5, 2
"""Trials that are never pruned, and epochs after which none is."""
_EPOCH = re.compile(
    r"^epoch (?P<epoch>\d+)/\d+: .*?validation loss (?P<loss>[\d.]+)(?:, macro auc (?P<macro_auc>[\d.]+))?"
    r"(?:, balanced accuracy (?P<balanced_accuracy>[\d.]+))?",
    re.MULTILINE,
)
_SAVED = re.compile(r"the state is saved in \S*?(?P<run>[0-9a-f]{16}),")


@dataclass
class _Run:
    """A trial at work: its process, its log, its lock and the epochs that were reported."""

    trial: Any
    name: str
    words: list[str]
    log: Path
    lock: FileLock
    process: subprocess.Popen | None = None
    begin_at: float = 0.0
    epochs: set[int] = field(default_factory=set)


def require_optuna() -> None:
    """Raise UserError where Optuna is not installed."""
    if optuna is None:
        raise UserError("the search needs Optuna, which is not installed: pip install -e '.[tune]'")
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def open_search(space: Space) -> Any:
    """The search as Optuna keeps it in `runs/studies/NAME/optuna.db`, new or as it was left.

    Raises UserError where it was begun with other scores.
    """
    require_optuna()
    content = space.content
    folder = _folder(space)
    folder.mkdir(parents=True, exist_ok=True)
    directions = [SCORES[name] for name in content.scores]
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{folder / 'optuna.db'}", engine_kwargs={"connect_args": {"timeout": 60}}
    )
    known = {one.study_name: one for one in optuna.get_all_study_summaries(storage)}
    begun = len(optuna.load_study(study_name=space.name, storage=storage).trials) if space.name in known else 0
    one = len(directions) == 1
    # A search that goes on must not propose again what its first draws were.
    sampler = optuna.samplers.TPESampler if one else optuna.samplers.NSGAIISampler
    pruner = optuna.pruners.MedianPruner(FIRST_TRIALS, FIRST_EPOCHS) if one and content.prune else None
    search = optuna.create_study(
        study_name=space.name,
        storage=storage,
        directions=directions,
        sampler=sampler(seed=content.seed + begun),
        pruner=pruner or optuna.pruners.NopPruner(),
        load_if_exists=True,
    )
    kept = search.user_attrs.get("scores", content.scores)
    if kept != content.scores:
        raise UserError(
            f"{space.file}: this search was begun with {' and '.join(kept)}: give the file another name, or delete "
            f"{folder / 'optuna.db'}"
        )
    search.set_user_attr("scores", content.scores)
    return search


def run_search(space: Space, *, trials: int, jobs: int, say: Callable[[str], None] = print) -> Any:
    """Run trials until there are so many, `jobs` at a time; the search.

    A trial whose process was killed is put in line again with its values. Several of these commands may share a search.

    Parameters
    ----------
    trials : in all, those of earlier calls included
    jobs : at a time
    say : takes a line for each that ends

    Raises
    ------
    Stopped : a signal came; the same command goes on
    UserError : Optuna is missing; the workspace's images are not up to date
    """
    require_optuna()
    require_data(space.root)
    search = open_search(space)
    _pick_up(space, search)
    running: list[_Run] = []

    def stop() -> None:
        for run in running:
            if run.process is not None:
                stop_dvc(run.process)

    with signals(stop):
        while True:
            ended = sum(trial.state.is_finished() for trial in search.trials) - _given_up(search)
            while len(running) < jobs and ended + len(running) < trials:
                running.append(_begin(space, search))
            if not running:
                return search
            for run in list(running):
                if said := _look(space, search, run):
                    running.remove(run)
                    run.lock.release()
                    say(f"{run.name}: {said}")
            time.sleep(LOOK)


def table_of(search: Any) -> pd.DataFrame:
    """One row per trial: trial, experiment, state, one column per score and per parameter, epochs, reason."""
    scores = search.user_attrs["scores"]
    rows = []
    for trial in search.trials:
        values = trial.values or [float("nan")] * len(scores)
        row = {
            "trial": trial.number,
            "experiment": trial.user_attrs.get("experiment", ""),
            "state": trial.state.name.lower(),
        }
        row |= dict(zip(scores, values, strict=True)) | trial.params
        rows.append(row | {"epochs": len(trial.intermediate_values), "reason": trial.user_attrs.get("reason", "")})
    return pd.DataFrame(rows)


def _folder(space: Space) -> Path:
    return space.root / RUNS_FOLDER / "studies" / space.name


def _lock(space: Space, number: int) -> FileLock:
    return FileLock(_folder(space) / f"trial{number}.lock")


def _given_up(search: Any) -> int:
    """Trials that only stand for a killed process, and were put in line again: those that failed for no reason."""
    failed = search.get_trials(states=(optuna.trial.TrialState.FAIL,))
    return sum("reason" not in trial.user_attrs for trial in failed)


def _pick_up(space: Space, search: Any) -> None:
    """Put trials in line again whose process is gone."""
    for trial in search.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        with suppress(Timeout), _lock(space, trial.number).acquire(timeout=0):
            search.enqueue_trial(trial.params)
            search.tell(trial.number, state=optuna.trial.TrialState.FAIL)


def _begin(space: Space, search: Any) -> _Run:
    trial = search.ask()
    lock = _lock(space, trial.number)
    lock.acquire(timeout=0)
    name = f"{space.name}-trial{trial.number:03d}"
    trial.set_user_attr("experiment", name)
    words = space.words({key: _proposed(trial, key, values) for key, values in space.content.space.items()})
    return _Run(trial, name, words, _folder(space) / f"{name}.log", lock)


def _proposed(trial: Any, key: str, values: Any) -> Any:
    if not isinstance(values, Range):
        return trial.suggest_categorical(key, values)
    if values.whole:
        return trial.suggest_int(key, values.low, values.high, step=values.step or 1, log=values.log)
    return trial.suggest_float(key, values.low, values.high, step=values.step, log=values.log)


def _look(space: Space, search: Any, run: _Run) -> str:
    """Go on with a trial; what became of it, "" while it is at work."""
    if run.process is None:
        if time.monotonic() >= run.begin_at:
            run.process = start_dvc(space.root, run.name, [*run.words, *STAGES], run.log)
        return ""
    status = run.process.poll()
    said = run.log.read_text(encoding="utf-8", errors="replace")
    _report_epochs(space, run, said)
    if status is None:
        if run.epochs and run.trial.should_prune():
            stop_dvc(run.process)
            search.tell(run.trial, state=optuna.trial.TrialState.PRUNED)
            _forget(space.root, run.log)
            return f"given up after epoch {max(run.epochs)}"
        return ""
    if status and is_busy(said):
        run.process, run.begin_at = None, time.monotonic() + WAIT
        return ""
    values = None if status else _scores(space, run.name)
    if values is None:
        reason = reason_of(said)
        run.trial.set_user_attr("reason", reason)
        search.tell(run.trial, state=optuna.trial.TrialState.FAIL)
        return f"failed: {reason}"
    search.tell(run.trial, values)
    return ", ".join(f"{name} {value:.4f}" for name, value in zip(space.content.scores, values, strict=True))


def _forget(root: Path, log: Path) -> None:
    """Delete the state that a trial saved when it was given up: nothing resumes it."""
    saved = _SAVED.search(log.read_text(encoding="utf-8", errors="replace"))
    with suppress(UserError):  # it is gone, or another process trains the same
        delete_run(root / RUNS_FOLDER, saved["run"] if saved else "")


def _report_epochs(space: Space, run: _Run, log: str) -> None:
    """Tell Optuna the only score after each new epoch, by which it decides what to give up."""
    content = space.content
    name = content.scores[0]
    if len(content.scores) > 1 or not content.prune or name not in BY_EPOCH:
        return
    for found in _EPOCH.finditer(log):
        epoch = int(found["epoch"])
        if epoch not in run.epochs and found[name] is not None:
            run.epochs.add(epoch)
            run.trial.report(float(found[name]), epoch)


def _scores(space: Space, name: str) -> list[float] | None:
    """The experiment's scores on validation; None where it has none."""
    found = experiments_called(space.root, [name]).get(name)
    if not found:
        return None
    (text,) = read_files(space.root, [(found[0].commit, VALIDATION_METRICS)])
    content = json.loads(text) if text else {}
    values = [content.get(score) for score in space.content.scores]
    return None if None in values else values
