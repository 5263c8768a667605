"""What a study ends with: a folder with the comparison, how it was made, and what a reader must know of it."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from exp_tools.errors import UserError
from exp_tools.evaluation.compare.compare import compare_groups
from exp_tools.evaluation.compare.render import as_latex
from exp_tools.evaluation.compare.request import gather
from exp_tools.evaluation.compare.scores import check_metrics
from exp_tools.evaluation.compare.write import write_comparison
from exp_tools.evaluation.metrics.catalogue import COST, label_of
from exp_tools.io import atomic_write, write_csv
from exp_tools.project import PREDICTIONS
from exp_tools.revisions import count_scored
from exp_tools.studies.members import Standing
from exp_tools.studies.plan import Study

COPY = "# A copy of the study file, made by exp-tools study"
"""The first line of the study file's copy among the results."""


def compare_study(study: Study, now: Mapping[str, Standing], *, resamples: int = 2000) -> dict[str, Any]:
    """The comparison of all members that are done (as `compare_groups` gives it).

    Raises
    ------
    UserError : a setting has no member that is done; the metric `cost` without costs
    """
    words = []
    for setting in study.content.settings:
        done = [now[one.name].word for one in study.of_setting(setting) if now[one.name].state == "done"]
        if not done:
            raise UserError(f"{setting} has no member that is done, so there is nothing to compare")
        words.append(f"{setting}={','.join(done)}")
    split = study.content.split
    groups, baseline = gather(
        words, study.baseline, root=study.root, predictions=str(PREDICTIONS), split=split, averaged=False
    )
    metrics = check_metrics(study.content.metrics, groups, study.content.primary, split)
    costs = study.now.evaluate.costs
    if COST.key in metrics and costs is None:
        raise UserError("the metric `cost` needs the costs of mistakes: set evaluate.costs in params.yaml")
    found = compare_groups(groups, baseline, metrics, split=split, costs=costs, resamples=resamples)
    found["notes"] += _remarks(study, now)
    return found


def write_study(study: Study, now: Mapping[str, Standing], found: Mapping[str, Any]) -> None:
    """Write `studies/STUDY`: README.md, comparison.{md,csv,png,tex}, members.csv and STUDY.yaml, the study file."""
    folder = study.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_comparison(folder / "comparison", found)
    for name, text in {"comparison.tex": as_latex(found), "README.md": _statement(study, now)}.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if study.copy.resolve() != study.file.resolve():
        text = study.file.read_text(encoding="utf-8").removeprefix(f"{COPY}\n")
        with atomic_write(study.copy) as temporary:
            temporary.write_text(f"{COPY}\n{text}", encoding="utf-8")
    write_csv(folder / "members.csv", member_table(study, now))


def member_table(study: Study, now: Mapping[str, Standing]) -> pd.DataFrame:
    """One row per member: experiment, setting, seed, fold, state, hours (NaN: unknown), reason (of a failure)."""
    rows = [
        {
            "experiment": member.name,
            "setting": member.setting,
            "seed": member.seed,
            "fold": "" if member.fold is None else member.fold,
            "state": now[member.name].state,
            "hours": round(now[member.name].seconds / 3600, 3) or float("nan"),
            "reason": now[member.name].reason,
        }
        for member in study.members
    ]
    return pd.DataFrame(rows)


def _remarks(study: Study, now: Mapping[str, Standing]) -> list[str]:
    """What the comparison's reader must know of the members."""
    remarks = []
    for member in study.members:
        one = now[member.name]
        if one.state != "done":
            remarks.append(f"{member.name} is not in it: {one.state}{': ' + one.reason if one.reason else ''}")
    codes = {one.code for one in now.values() if one.state == "done"}
    if len(codes) > 1:
        remarks.append(
            f"the members were made by {len(codes)} versions of the code: a difference may be the code's. Remove the "
            "older (`dvc exp remove`) and run the study again"
        )
    if study.content.split != "val" and (scored := count_scored(study.root)) > len(study.members):
        remarks.append(
            f"{scored} models of this checkout were scored on this test split, the study's {len(study.members)} among "
            "them: the best of many flatters itself"
        )
    return remarks


def _statement(study: Study, now: Mapping[str, Standing]) -> str:
    content = study.content
    done = sum(one.state == "done" for one in now.values())
    failed = [f"- `{name}`: {one.reason}" for name, one in now.items() if one.state == "failed"]
    where = {"val": "validation", "test": "the test split"}.get(content.split, content.split)
    lines = [
        f"# Study {study.name}",
        "",
        f"{len(content.settings)} settings, seeds {', '.join(map(str, content.seeds))}"
        + (f", {content.folds} folds each" if content.folds else "")
        + f": {done} of {len(study.members)} members are done. Scored on {where}; the primary score, named in the "
        f"study file, is {label_of(content.primary)}; the baseline is `{study.baseline}`.",
        "",
        f"`evaluate` scored each member on the test split too ({done} looks at it). "
        + (
            "Those scores chose nothing here: the comparison is of validation."
            if content.split == "val"
            else "This comparison is of it: nothing may be chosen by it any more."
        ),
        "",
        "| file | what it holds |",
        "|---|---|",
        "| [comparison.md](comparison.md), `.csv`, `.tex` | scores and differences, with intervals |",
        "| `comparison.png` | the same as a forest plot |",
        "| [members.csv](members.csv) | every experiment, its hours, and why it failed where it did |",
        f"| [{study.name}.yaml]({study.name}.yaml) | what was asked; `exp-tools study` with it makes this again |",
        "",
        "| setting | is |",
        "|---|---|",
    ]
    for setting, part in content.settings.items():
        recipe = part.recipe or content.common.recipe
        values = content.common.set | part.set
        what = [f"recipe {recipe}"] if recipe else []
        what += [f"{key} {value}" for key, value in values.items()]
        lines.append(f"| `{setting}` | {', '.join(what) or 'params.yaml as it is'} |")
    if failed:
        lines += ["", "Failed, and not in the comparison (`--retry` runs them again):", "", *failed]
    return "\n".join(lines) + "\n"
