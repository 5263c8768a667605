"""Group runs: seeds of one recipe, and folds of one split pooled into one set of predictions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from exp_tools.errors import UserError
from exp_tools.evaluation.compare.runs import FOLDS, Run

ABOUT_AN_IMAGE = {"group_id": "lesion group", "dx": "diagnosis"}


@dataclass(frozen=True)
class Group:
    """One configuration: a row of the comparison.

    name : of the row
    runs : all that belong to it
    repeats : a prediction table for each seed, all of the same images in the same order; the folds of a seed are
        pooled, and the column `run` is the place in `predictors` of the run that predicted a row
    folds : number of test sets that were pooled, 1 for a plain split
    classes : in the order of the tables' columns
    notes : what the reader must know
    averaged : number of models whose probabilities were averaged, for an ensemble, whose only repeat is the run `mean`
    """

    name: str
    runs: tuple[Run, ...]
    repeats: tuple[pd.DataFrame, ...]
    folds: int
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    averaged: int = 1
    mean: Run | None = None

    @property
    def predictors(self) -> tuple[Run, ...]:
        """The runs that predicted the rows of `repeats`."""
        return (self.mean,) if self.mean else self.runs

    @property
    def images(self) -> int:
        """Images in the test set."""
        return len(self.repeats[0])

    @property
    def lesions(self) -> int:
        """Lesion groups in the test set, the units of every interval."""
        return self.repeats[0]["group_id"].nunique()

    @property
    def makeup(self) -> str:
        """The runs it was made from, in words."""
        if self.averaged > 1:
            return f"mean of {self.averaged}"
        words = [f"{len(self.repeats)} seeds"] if len(self.repeats) > 1 else []
        words += [f"{self.folds} folds"] if self.folds > 1 else []
        return " x ".join(words) or "1 run"

    @property
    def trainings(self) -> int:
        """How many seeds of training the score is a mean over."""
        return max(len(self.repeats), self.averaged)


def group_runs(named: Sequence[tuple[str | None, Sequence[Run]]]) -> list[Group]:
    """Put runs into groups.

    Parameters
    ----------
    named : (name, runs) as the user wrote GROUP=EXP,EXP; with the name None a single run, which is put together with
        others of the same parameters but for the seed of training and the fold. A run of a seed and a fold that its
        group has already is another way of doing it (such as other code), and gets a group of its own.

    Returns
    -------
    the groups, in the order in which they were first named

    Raises
    ------
    UserError : as `make_group`; two groups of one name
    """
    sorted_in: list[tuple[str | None, list[Run]]] = []
    for name, runs in named:
        home = None
        if name is None and runs[0].settings:
            home = next((members for known, members in sorted_in if known is None and _fits(runs[0], members)), None)
        if home is None:
            sorted_in.append((name, list(runs)))
        else:
            home.extend(runs)
    names = [name or _common_name(runs) for name, runs in sorted_in]
    # A common beginning that two groups share tells neither from the other.
    names = [
        name if given or names.count(name) == 1 else _first_and_more(runs)
        for name, (given, runs) in zip(names, sorted_in, strict=True)
    ]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"two of the compared are called {twice!r}; name each once, or write GROUP=EXP,EXP")
    return [make_group(name, runs) for name, (_, runs) in zip(names, sorted_in, strict=True)]


def make_group(name: str, runs: Sequence[Run]) -> Group:
    """Pool the folds of each seed, and check that the seeds are of the same images.

    Runs with the same test images are repeats, runs whose test images have nothing in common are folds. Where seeds are
    known, the folds of one seed are pooled; otherwise the first of each fold, the second of each, and so on.

    Raises
    ------
    UserError : a run is named twice; classes differ; test sets overlap without being equal, or share a lesion: they
        are of different splits; one image has several diagnoses or two lesion groups
    """
    first = runs[0]
    for run in runs[1:]:
        if run.classes != first.classes:
            raise UserError(
                f"{name}: {first.name} has the classes {', '.join(first.classes)}, {run.name} "
                f"{', '.join(run.classes)}; they cannot be of one group"
            )
    folds = _folds_of(name, runs)
    _check_disjoint(name, folds)
    seeds = _by_seed(folds)
    place = {id(run): number for number, run in enumerate(runs)}
    tables = [
        pd.concat([run.table.assign(run=place[id(run)]) for run in members]).sort_values("image_id", ignore_index=True)
        for members in seeds
    ]
    whole = max(len(members) for members in seeds)
    notes = [run.remark for run in runs if run.remark]
    for members in seeds:
        if len(members) < whole:
            notes.append(
                f"{name}: {', '.join(run.name for run in members)} left out, as the seed has {len(members)} of "
                f"{whole} folds"
            )
    wanted = first.params.get(FOLDS)
    if len(folds) > 1 and wanted and len(folds) < wanted:
        notes.append(f"{name}: {len(folds)} of {wanted} folds: not every image was predicted")
    complete = [table for table, members in zip(tables, seeds, strict=True) if len(members) == whole]
    for table in complete[1:]:
        if problem := difference_of_sets(complete[0], table):
            raise UserError(f"{name}: the runs are not of one test set: {problem}")
    return Group(name, tuple(runs), tuple(complete), len(folds), first.classes, tuple(notes))


def difference_of_sets(
    one: pd.DataFrame, other: pd.DataFrame, names: tuple[str, str] = ("the first", "the second")
) -> str:
    """Why two prediction tables (sorted by image_id) cannot be paired image by image; empty: they can."""
    first, second = set(one["image_id"]), set(other["image_id"])
    if first != second:
        both = len(first & second)
        example = min(first ^ second)
        return (
            f"the test images differ: {both:,} in both, {len(first) - both:,} in {names[0]} alone, "
            f"{len(second) - both:,} in {names[1]} alone (such as {example}, in {names[example in second]})"
        )
    for column, words in ABOUT_AN_IMAGE.items():
        differs = np.flatnonzero(one[column].to_numpy() != other[column].to_numpy())
        if differs.size:
            row = differs[0]
            return (
                f"{differs.size:,} images have another {words}, such as {one['image_id'].iloc[row]}: "
                f"{one[column].iloc[row]} in {names[0]}, {other[column].iloc[row]} in {names[1]}"
            )
    return ""


def why_unpaired(group: Group, baseline: Group) -> str:
    """Why two groups cannot be compared image by image; empty: they can."""
    if group.classes != baseline.classes:
        return (
            f"the classes differ: {', '.join(baseline.classes)} in {baseline.name}, "
            f"{', '.join(group.classes)} in {group.name}"
        )
    return difference_of_sets(baseline.repeats[0], group.repeats[0], (baseline.name, group.name))


def _fits(run: Run, members: Sequence[Run]) -> bool:
    taken = {(member.seed, member.fold) for member in members}
    return members[0].settings == run.settings and (run.seed, run.fold) not in taken


def _folds_of(name: str, runs: Sequence[Run]) -> list[list[Run]]:
    """The runs of each test set, in order of first appearance."""
    folds: list[tuple[frozenset[str], list[Run]]] = []
    for run in runs:
        images = frozenset(run.table["image_id"])
        for known, members in folds:
            if images == known:
                if same := next((member for member in members if _is_same(member, run)), None):
                    raise UserError(f"{name}: {same.name} and {run.name} are one run, of one seed; name it once")
                members.append(run)
                break
            if shared := len(images & known):
                raise UserError(
                    f"{name}: {members[0].name} and {run.name} share {shared:,} of {len(known):,} and {len(images):,} "
                    "test images: neither the same test set nor two folds of one split. Compare them apart"
                )
        else:
            folds.append((images, [run]))
    return [members for _, members in folds]


def _is_same(one: Run, other: Run) -> bool:
    tables = [run.table.sort_values("image_id", ignore_index=True) for run in (one, other)]
    return one.seed == other.seed and tables[0].equals(tables[1])


def _check_disjoint(name: str, folds: Sequence[Sequence[Run]]) -> None:
    owner: dict[str, Run] = {}
    for members in folds:
        run = members[0]
        groups = set(run.table["group_id"])
        shared = sorted(groups & owner.keys())
        if shared:
            raise UserError(
                f"{name}: lesion {shared[0]} is in the test sets of both {owner[shared[0]].name} and {run.name} "
                f"({len(shared):,} such lesions), so they are not folds of one split. Compare them apart"
            )
        owner |= dict.fromkeys(groups, run)


def _by_seed(folds: Sequence[Sequence[Run]]) -> list[list[Run]]:
    if all(len(members) == 1 for members in folds):
        return [[members[0] for members in folds]]
    seeds: dict[object, list[Run]] = {}
    for members in folds:
        known = [run.seed for run in members]
        distinct = None not in known and len(set(known)) == len(known)
        for place, run in enumerate(members):
            seeds.setdefault(run.seed if distinct else ("run", place), []).append(run)
    return list(seeds.values())


def _common_name(runs: Sequence[Run]) -> str:
    """The common beginning of the runs' names, where that is a name: seeds-0, seeds-1 -> seeds."""
    if len(runs) == 1:
        return runs[0].name
    first, last = min(run.name for run in runs), max(run.name for run in runs)
    same = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    common = first[:same].rstrip("0123456789").rstrip("-_./ ")
    return common if len(common) > 2 and "/" not in common else _first_and_more(runs)


def _first_and_more(runs: Sequence[Run]) -> str:
    return runs[0].name if len(runs) == 1 else f"{runs[0].name} and {len(runs) - 1} more"
