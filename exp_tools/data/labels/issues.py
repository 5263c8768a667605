"""Every kind of problem that data can have, the possible actions, and one report that lists all problems."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from exp_tools.errors import UserError
from exp_tools.io import write_csv

MAX_SHOWN = 12
REPORT_COLUMNS = ["file", "row", "column", "value", "rule", "kind", "action"]
FIXABLE = (
    "untidy_text",
    "no_lesion",
    "bad_age",
    "unknown_sex",
    "wrong_ending",
    "other_pixels",
    "exif_rotation",
    "several_frames",
)
NOTABLE = ("unlisted_image", "unexpected_count")
"""Kinds that can be mended, and kinds that may be noted only."""
ACTIONS = {"stop": "stopped", "skip": "skipped", "fix": "fixed", "note": "noted"}


@dataclass(frozen=True)
class Problem:
    """One problem of the data.

    file, row, column, value : where it stands, as the person knows it, and what was found
    rule : what should be there, and what to do
    place : the row of the table in memory that it is about; None for the set as a whole
    fixed : the text that a fix writes into `column`; None where there is nothing to write
    action : what was done ("stopped", "skipped", "fixed", "noted"); "" while undecided
    """

    kind: str
    file: str
    row: int | None
    column: str
    value: str
    rule: str
    place: int | None = None
    fixed: str | None = None
    action: str = ""

    def __str__(self) -> str:
        where = self.file if self.row is None else f"{self.file}, row {self.row}"
        column = f", {self.column}" if self.column else ""
        return f"{where}{column}: {self.rule}"


def decide(problems: Iterable[Problem], policy: Mapping[str, str]) -> list[Problem]:
    """Set the action of each problem, as chosen for its kind in `prepare.on_problem`.

    A problem that is already decided (a subset, say, where only the whole set could be wrong) keeps its action.
    """
    return [
        problem if problem.action else replace(problem, action=ACTIONS[policy[problem.kind]]) for problem in problems
    ]


def apply_actions(table: pd.DataFrame, problems: Iterable[Problem]) -> pd.DataFrame:
    """The table with fixes written in and skipped rows gone; index and order of the other rows stay."""
    problems = list(problems)
    table = table.copy()
    for problem in problems:
        if problem.action == "fixed" and problem.fixed is not None:
            table.at[problem.place, problem.column] = problem.fixed
    return table.drop(index=sorted({problem.place for problem in problems if problem.action == "skipped"}))


def report_table(problems: Iterable[Problem]) -> pd.DataFrame:
    """REPORT_COLUMNS of each problem, one per row."""
    rows = [[getattr(problem, column) for column in REPORT_COLUMNS] for problem in problems]
    table = pd.DataFrame(rows, columns=REPORT_COLUMNS)
    return table.assign(row=table["row"].astype("Int64"))


def write_report(path: Path, problems: Iterable[Problem]) -> None:
    """Write problems.csv: one row a problem, also when there is none."""
    write_csv(path, report_table(problems))


def summarise_problems(problems: Iterable[Problem]) -> dict[str, dict[str, int]]:
    """Counts of problems by kind and action."""
    counts: dict[str, dict[str, int]] = {}
    for problem in problems:
        by_action = counts.setdefault(problem.kind, {})
        by_action[problem.action] = by_action.get(problem.action, 0) + 1
    return counts


def stop_on(problems: Iterable[Problem], report: Path) -> None:
    """Raise one UserError when a problem stops the work: a dozen in words, all by kind, and where the report lies."""
    fatal = [problem for problem in problems if problem.action == "stopped"]
    if not fatal:
        return
    shown = "\n  ".join(str(problem) for problem in fatal[:MAX_SHOWN])
    rest = f"\n  … and {len(fatal) - MAX_SHOWN} more" if len(fatal) > MAX_SHOWN else ""
    counts = {kind: sum(of.values()) for kind, of in sorted(summarise_problems(fatal).items())}
    kinds = ", ".join(f"{kind} {count}" for kind, count in counts.items())
    raise UserError(
        f"the data have {len(fatal)} problem(s) ({kinds}); no images and labels were written:\n  {shown}{rest}\n"
        f"All of them are listed in {report}. Fix the data{_advice(counts)}"
    )


def _advice(counts: Mapping[str, int]) -> str:
    """A choice that helps with the commonest kind that has one: a fix or a note before a skip, which loses images."""
    choices = [("fix", FIXABLE), ("note", NOTABLE), ("skip", counts.keys() - {"unknown_diagnosis"})]
    for choice, kinds in choices:
        fitting = [kind for kind in counts if kind in kinds]
        if fitting:
            kind = max(fitting, key=lambda one: counts[one])
            loses = f", which leaves {counts[kind]:,} out" if choice == "skip" else ""
            return (
                f", or say what to do about a kind, for example -S prepare.on_problem.{kind}={choice}{loses} "
                "(docs/data.md lists kinds and choices)"
            )
    return ": correct these diagnoses in the table; skipping them would lose whole classes"
