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

import numpy as np
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

    Raises UserError where it was begun with other scores, or with other choices of a parameter.
    """
    require_optuna()
    content = space.content
    folder = _folder(space)
    folder.mkdir(parents=True, exist_ok=True)
    directions = [SCORES[name] for name in content.scores]
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{folder / 'optuna.db'}", engine_kwargs={"connect_args": {"timeout": 60}}
    )
    prune = len(directions) == 1 and content.prune
    pruner = optuna.pruners.MedianPruner(FIRST_TRIALS, FIRST_EPOCHS) if prune else None
    search = optuna.create_study(
        study_name=space.name,
        storage=storage,
        directions=directions,
        pruner=pruner or optuna.pruners.NopPruner(),
        load_if_exists=True,
    )
    kept = search.user_attrs.get("scores", content.scores)
    if kept != content.scores:
        raise UserError(f"{space.file}: this search was begun with {' and '.join(kept)}: give the file another name")
    search.set_user_attr("scores", content.scores)
    for trial in search.get_trials(deepcopy=False):
        for key in content.space.keys() & trial.distributions:
            _check_same(space, key, trial.distributions[key], _distribution(content.space[key]))
    return search


def run_search(space: Space, *, trials: int, jobs: int, say: Callable[[str], None] = print) -> Any:
    """Run trials until there are so many, `jobs` at a time; the search.

    A trial whose process was killed is put in line again with its values. Several of these commands may share a search.

    Parameters
    ----------
    trials : in all, those of earlier calls included and those that another command runs
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
    running: list[_Run] = []

    def stop() -> None:
        for run in running:
            if run.process is not None:
                stop_dvc(run.process)

    with signals(stop):
        while True:
            while len(running) < jobs and (begun := _begin(space, search, trials)):
                running.append(begun)
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


def _lock(space: Space, of: str) -> FileLock:
    return FileLock(_folder(space) / f"{of}.lock")


def _count(search: Any) -> int:
    """Trials that ended or are at work.

    Not those that wait in line, nor those that only stand for a killed process and failed for no reason.
    """
    states = optuna.trial.TrialState
    return sum(
        trial.state != states.WAITING and (trial.state != states.FAIL or "reason" in trial.user_attrs)
        for trial in search.trials
    )


def _pick_up(space: Space, search: Any) -> None:
    """Put trials in line again whose process is gone."""
    for trial in search.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        with suppress(Timeout), _lock(space, f"trial{trial.number}").acquire(timeout=0):
            search.enqueue_trial(trial.params)
            search.tell(trial.number, state=optuna.trial.TrialState.FAIL)


def _begin(space: Space, search: Any, trials: int) -> _Run | None:
    """The next trial, held by its lock; None where there are so many already, those of other commands included."""
    with _lock(space, "begin"):  # or another command takes a trial that is not held yet for one whose process is gone
        _pick_up(space, search)
        if _count(search) >= trials:
            return None
        search.sampler = _sampler(space, len(search.trials))
        trial = search.ask({key: _distribution(values) for key, values in space.content.space.items()})
        lock = _lock(space, f"trial{trial.number}")
        lock.acquire(timeout=0)
        name = f"{space.name}-trial{trial.number:03d}"
        trial.set_user_attr("experiment", name)
    return _Run(trial, name, _folder(space) / f"{name}.log", lock)


def _sampler(space: Space, number: int) -> Any:
    """What proposes trial `number`: each has a seed of its own, or commands that share a search propose the same."""
    seed = int(np.random.SeedSequence([space.content.seed, number]).generate_state(1)[0])
    one = len(space.content.scores) == 1
    return optuna.samplers.TPESampler(seed=seed) if one else optuna.samplers.NSGAIISampler(seed=seed)


def _distribution(values: Any) -> Any:
    kinds = optuna.distributions
    if not isinstance(values, Range):
        return kinds.CategoricalDistribution(values)
    if values.whole:
        return kinds.IntDistribution(values.low, values.high, log=values.log, step=values.step or 1)
    return kinds.FloatDistribution(values.low, values.high, log=values.log, step=values.step)


def _check_same(space: Space, key: str, before: Any, now: Any) -> None:
    try:
        optuna.distributions.check_distribution_compatibility(before, now)
    except ValueError as error:
        raise UserError(
            f"{space.file}: this search was begun with other choices for {key}, or another kind of range ({before}): "
            "take that back, or give the file another name"
        ) from error


def _look(space: Space, search: Any, run: _Run) -> str:
    """Go on with a trial; what became of it, "" while it is at work."""
    if run.process is None:
        if time.monotonic() >= run.begin_at:
            try:
                words = space.words(run.trial.params)
            except UserError as error:  # each value can be, together they cannot
                return _fail(search, run, str(error))
            run.process = start_dvc(space.root, run.name, [*words, *STAGES], run.log)
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
        return _fail(search, run, reason_of(said))
    search.tell(run.trial, values)
    return ", ".join(f"{name} {value:.4f}" for name, value in zip(space.content.scores, values, strict=True))


def _fail(search: Any, run: _Run, reason: str) -> str:
    run.trial.set_user_attr("reason", reason)
    search.tell(run.trial, state=optuna.trial.TrialState.FAIL)
    return f"failed: {reason}"


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
