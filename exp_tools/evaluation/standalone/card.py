"""The model card with the commit and date that the stage cannot know."""

import json
from pathlib import Path

from exp_tools.errors import UserError, require_file
from exp_tools.evaluation.report.sheets import reporting_sheet
from exp_tools.models.model_file import read_facts
from exp_tools.project import MODEL, REPORT
from exp_tools.revisions import count_scored, git_text


def filled_sheet(root: Path, name: str) -> str:
    """A reporting sheet of the project in `root`, see `sheets.reporting_sheet`.

    Raises
    ------
    UserError : there is no model or no report
    """
    require_file(root / REPORT, "evaluate")
    require_file(root / MODEL, "calibrate")
    report = json.loads((root / REPORT).read_text(encoding="utf-8"))
    return reporting_sheet(name, read_facts(root / MODEL), report)


def signed_card(root: Path, path: str, *, commit: bool) -> str:
    """The model card of the project in `root`, on request with its commit below the title.

    A card that differs from the last commit's, or that was made from other inputs than the commit has (dvc.lock), is
    said to belong to no commit yet. With the commit comes how many models were scored on this test split here: the
    best of many flatters itself.

    Raises
    ------
    UserError : there is no card; the commit is wanted and there is none
    """
    require_file(root / path, "evaluate")
    card = (root / path).read_text(encoding="utf-8")
    if not commit:
        return card
    known = git_text(root, "log", "-1", "--format=%H %cs")
    if known is None:
        raise UserError(f"{root} has no Git commit that the card could belong to; `git commit` first, or omit --commit")
    changed = git_text(root, "status", "--porcelain", "--", path, "dvc.lock")
    digest, date = known.split()
    title, _, rest = card.partition("\n")
    if changed:
        names = ", ".join(line[3:] for line in changed.splitlines())
        line = f"Not committed yet: {names} changed after commit `{digest}` of {date}."
    else:
        line = f"Commit `{digest}` of {date}."
    scored = count_scored(root)
    if scored:
        models = f"{scored} models of this checkout were" if scored > 1 else "One model of this checkout was"
        line += f" {models} scored on this test split."
    return f"{title}\n\n{line}\n{rest}"
