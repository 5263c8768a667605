"""What people said of labels: verdicts/labels.csv, which `prepare` applies to whole lesions."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from exp_tools.data.labels.issues import Problem
from exp_tools.data.labels.table import ORIGINAL, VERDICT
from exp_tools.data.verdict_files import MOST_NAMED, read_verdict_file, refuse
from exp_tools.errors import UserError, did_you_mean
from exp_tools.taxonomy import NOT_MELANOMA

COLUMNS = ["image_id", "verdict", "dx", "note"]
RELABEL, DROP, KEEP = "relabel", "drop", "keep"
ANSWERS = (RELABEL, DROP, KEEP)
KIND = "label_verdict"
"""The kind of such a change in problems.csv."""
DONE = {RELABEL: "relabelled", DROP: "dropped"}


class Judged(NamedTuple):
    """A label table as people judged it.

    labels : with ORIGINAL and VERDICT where something changed, otherwise as it was given
    changes : one Problem per changed image, by line of the verdicts; `place` is the row of the label table
    unknown : lines of verdicts on images that the table does not have -> the image
    """

    labels: pd.DataFrame
    changes: list[Problem]
    unknown: dict[int, str]

    def __str__(self) -> str:
        """What changed, in words; "" where nothing did."""
        words = []
        for action in DONE.values():
            places = [change.place for change in self.changes if change.action == action]
            lesions = self.labels["lesion_id"].iloc[places].nunique()
            words += [f"{len(places):,} images of {lesions:,} lesions {action}"] if places else []
        return ", ".join(words)


def read_label_verdicts(path: Path) -> pd.DataFrame:
    """Read the verdicts on labels: columns COLUMNS, as text, indexed by line; no file is no verdict.

    `dx` is the new diagnosis of a `relabel`, and says nothing elsewhere; `note` may be absent.

    Raises
    ------
    UserError
        The file is no table, or a row has no image, no verdict, no diagnosis to relabel to, or contradicts another row:
        all such rows are named by line.
    """
    table = read_verdict_file(path, COLUMNS, "verdict")
    refuse(path, _faults(table))
    return table


def _faults(table: pd.DataFrame) -> list[str]:
    faults, said = [], {}
    for line, image, verdict, dx, _ in table.itertuples():
        now = (verdict, dx if verdict == RELABEL else "")
        if not image:
            faults.append(f"line {line} names no image")
        elif verdict not in ANSWERS:
            faults.append(f"line {line}: verdict is {verdict!r}, it must be relabel, drop or keep")
        elif verdict == RELABEL and not dx:
            faults.append(f"line {line}: relabel {image}, but dx is empty: write the new diagnosis there")
        elif said.setdefault(image, (line, now))[1] != now:
            first, other = said[image]
            faults.append(f"line {line} says {_words(now)} of {image}, line {first} says {_words(other)}")
    return faults


def _words(said: tuple[str, str]) -> str:
    return " ".join(word for word in said if word)


def judge_labels(labels: pd.DataFrame, verdicts: pd.DataFrame, path: Path) -> Judged:
    """Apply verdicts to a label table. A verdict on one image holds for its lesion: all images of that `lesion_id`.

    Dropped images stay in the table, so that the others keep their split and their packed images; `split` uses them for
    nothing (`VERDICT` says "drop").

    Parameters
    ----------
    labels : as `labels.table.typed_labels`, index 0..N-1
    verdicts : as `read_label_verdicts`
    path : the verdicts' file, for messages

    Raises
    ------
    UserError
        Two rows say different things of one lesion, a diagnosis is none of the set's, or a class would lose its last
        image: all such rows are named by line.
    """
    place = dict(zip(labels["image_id"], range(len(labels)), strict=True))
    unknown = {int(line): image for line, image in verdicts["image_id"].items() if image not in place}
    here = verdicts.drop(index=list(unknown))
    codes = sorted(set(labels["dx"]))
    by_fold = {code.casefold(): code for code in codes}
    faults, said = [], {}
    for line, image, verdict, dx, _ in here.itertuples():
        lesion = labels["lesion_id"].iat[place[image]]
        new = by_fold.get(dx.casefold(), dx) if verdict == RELABEL else ""
        if new and new not in codes:
            hint = "; write the one that it has" if new == NOT_MELANOMA else did_you_mean(dx.lower(), codes)
            faults.append(f"line {line}: {dx!r} is no diagnosis of this set, which has {', '.join(codes)}{hint}")
        elif said.setdefault(lesion, (line, image, (verdict, new)))[2] != (verdict, new):
            first, other, before = said[lesion]
            faults.append(
                f"line {line} says {_words((verdict, new))} of {image}, line {first} says {_words(before)} of {other}: "
                f"both show lesion {lesion}, which has one diagnosis"
            )
    refuse(path, faults)
    judged = _applied(labels, said, path)
    lost = [code for code in codes if not (judged.labels["dx"][_used(judged.labels)] == code).any()]
    if lost:
        lines = sorted({change.row for change in judged.changes if change.value in lost})
        raise UserError(
            f"{path}: no image of {', '.join(lost)} is left after line {', '.join(map(str, lines))}, and the class "
            "goes with them. Take one of these rows out, or leave the class out of the set (data.classes)"
        )
    return judged._replace(unknown=unknown)


def _used(labels: pd.DataFrame) -> pd.Series:
    return labels[VERDICT] != DROP if VERDICT in labels else pd.Series(True, index=labels.index)


def _applied(labels: pd.DataFrame, said: Mapping[str, tuple[int, str, tuple[str, str]]], path: Path) -> Judged:
    """The labels with the verdicts on lesions written in; `said` has line, image and (verdict, diagnosis) of each."""
    dx, verdict, changes = labels["dx"].copy(), pd.Series("", index=labels.index, dtype=object), []
    for place, (lesion, old) in enumerate(zip(labels["lesion_id"], labels["dx"], strict=True)):
        line, named, (answer, new) = said.get(lesion, (0, "", (KEEP, "")))
        if answer == KEEP or new == old:
            continue
        image = labels["image_id"].iat[place]
        verdict.iat[place] = answer
        if answer == RELABEL:
            dx.iat[place] = new
        also = "" if image == named else f", as {named} of the same lesion"
        rule = f"{image}: {old} relabelled {new}{also}" if new else f"{image}: dropped, used for nothing{also}"
        changes.append(Problem(KIND, path.as_posix(), line, "dx", old, rule, place, action=DONE[answer]))
    changes.sort(key=lambda change: (change.row, change.place))
    if not changes:
        return Judged(labels, [], {})
    return Judged(labels.assign(dx=dx, **{ORIGINAL: labels["dx"], VERDICT: verdict}), changes, {})


def as_judged(labels: pd.DataFrame) -> pd.DataFrame:
    """A label table as it was before verdicts."""
    if ORIGINAL not in labels:
        return labels
    return labels.assign(dx=labels[ORIGINAL]).drop(columns=[ORIGINAL, VERDICT])


def said_of_unknown(path: Path, unknown: Mapping[int, str]) -> str:
    """That verdicts name images which the set does not have, in words; "" where all are known."""
    if not unknown:
        return ""
    named = ", ".join(f"{image} (line {line})" for line, image in list(unknown.items())[:MOST_NAMED])
    rest = f" and {len(unknown) - MOST_NAMED} more" if len(unknown) > MOST_NAMED else ""
    return (
        f"{path}: this set has no image {named}{rest}; these verdicts change nothing. Check the spelling, unless they "
        "are of another set"
    )
