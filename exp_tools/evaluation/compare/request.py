"""The arguments of `exp-tools compare`: groups of runs, and the baseline they are compared with."""

from collections.abc import Sequence
from pathlib import Path

from exp_tools.errors import UserError
from exp_tools.evaluation.compare.ensemble import ensemble
from exp_tools.evaluation.compare.groups import Group, group_runs
from exp_tools.evaluation.compare.runs import Run, read_run


def gather(
    words: Sequence[str], baseline: str | None, *, root: Path, predictions: str, split: str, averaged: bool
) -> tuple[list[Group], Group]:
    """Read and group the runs.

    Parameters
    ----------
    words : each a run (see `runs.read_run`) or GROUP=RUN,RUN,...
    baseline : a group, or a run, whose group it then is; read too where it is not among the words. None: the first
    root : the project's folder
    predictions : the prediction table's path in the project
    split : which rows
    averaged : add groups of averaged probabilities: of the seeds of each group, and of all groups

    Returns
    -------
    the groups, and the baseline, which is one of them

    Raises
    ------
    UserError : a run cannot be read or grouped; there is nothing to average
    """
    asked = [_parts(word) for word in words]
    if baseline is not None and all(baseline not in (name, *parts) for name, parts in asked):
        asked.insert(0, _parts(baseline))
    known: dict[str, Run] = {}
    for part in (part for _, parts in asked for part in parts):
        known[part] = known.get(part) or read_run(part, root, predictions, split)
    groups = group_runs([(name, [known[part] for part in parts]) for name, parts in asked])
    first = groups[0]
    if baseline is not None:
        name, parts = _parts(baseline)
        wanted = known.get(parts[0])
        first = next(group for group in groups if group.name in (name, baseline) or wanted in group.runs)
    return groups + (_ensembles(groups) if averaged else []), first


def _parts(word: str) -> tuple[str | None, list[str]]:
    """The group's name (None for a single run), and its runs."""
    name, sign, runs = word.partition("=")
    if not sign or Path(word).is_file():
        return None, [word]
    parts = [part for part in runs.split(",") if part]
    if not name or not parts:
        raise UserError(f"{word!r} names no group of runs; write GROUP=EXP,EXP")
    if len(set(parts)) < len(parts):
        raise UserError(f"{word!r} names a run twice: it would count twice")
    return name, parts


def _ensembles(groups: Sequence[Group]) -> list[Group]:
    made = [ensemble(f"{group.name}, averaged", [group]) for group in groups if len(group.repeats) > 1]
    if len(groups) > 1:
        made.append(ensemble("all averaged", groups))
    if not made:
        raise UserError("--ensemble: there is one run, so nothing to average; name more, such as seeds of one recipe")
    return made
