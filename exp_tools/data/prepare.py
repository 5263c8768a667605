"""From a source's text table to checked rows and packed images, for `prepare` and `external` alike."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from exp_tools.data.images.decode import index_images
from exp_tools.data.images.formats import image_id
from exp_tools.data.images.pack import array_bytes, pack_images
from exp_tools.data.images.preprocess import Preprocessing
from exp_tools.data.labels.issues import Problem, apply_actions, decide
from exp_tools.data.labels.validate import check_counts, check_labels, tidied
from exp_tools.data.sources.registry import DatasetSpec
from exp_tools.errors import UserError
from exp_tools.io import in_words
from exp_tools.params import PrepareParams


class Packing(NamedTuple):
    """How images are packed, and the action for each kind of problem."""

    preprocessing: Preprocessing
    policy: Mapping[str, str]
    processes: int


def packing_of(params: PrepareParams, processes: int) -> Packing:
    """The packing that the parameters ask for."""
    return Packing(
        preprocessing=Preprocessing(**{name: getattr(params, name) for name in Preprocessing._fields}),
        policy=params.on_problem.model_dump(),
        processes=processes,
    )


def check_and_pack(
    table: pd.DataFrame,
    facts: DatasetSpec,
    raw: Path,
    target: Path,
    packing: Packing,
    passed_over: Collection[str] = (),
) -> tuple[pd.DataFrame, list[Problem]]:
    """Check every row and every image; pack the images unless a problem stops it.

    Parameters
    ----------
    table : as `read_source` gives it
    facts : what is known of the source
    raw : the folder that the table was read from
    target : the .npy file to write; it is not written when a problem has the action "stopped"
    packing : how
    passed_over : ids of images that are left out on purpose: they are no surprise in the folder

    Returns
    -------
    The rows that are kept, in the order of the array, and every problem with what was done about it.

    Raises
    ------
    UserError
        No row is left, or none of a class, or the disk has no room.
    """
    tidy = table.assign(**tidied(table, facts.classes))
    found = check_labels(table, facts.classes) + unlisted_images(table, raw, facts.masks, passed_over)
    problems = decide(found + check_counts(tidy, facts.counts, facts.title), packing.policy)
    kept = apply_actions(table, problems)
    if kept.empty:
        raise UserError(f"no image of {facts.title} is left: {len(table)} rows, {len(problems)} problems")
    stopping = any(problem.action == "stopped" for problem in problems)
    if not stopping:
        print(f"{target} will have {in_words(array_bytes(len(kept), packing.preprocessing.image_size))}", flush=True)
    findings = pack_images(
        kept["file"].to_list(),
        None if stopping else target,
        packing.preprocessing,
        policy=packing.policy,
        processes=packing.processes,
    )
    of_images = []
    for finding in findings:
        row = kept.iloc[finding.place]
        place, number = int(kept.index[finding.place]), int(row["row"]) or None
        of_images.append(Problem(finding.kind, row["file"], number, "", finding.value, finding.rule, place))
    of_images = decide(of_images, packing.policy)
    kept = apply_actions(kept, of_images)
    if kept.empty:
        raise UserError(f"no image of {facts.title} is left: none of {len(table)} can be used")
    every = problems + of_images
    if not any(problem.action == "stopped" for problem in every):
        _stop_on_lost_classes(tidy, kept, every)
    return kept, every


def _stop_on_lost_classes(table: pd.DataFrame, kept: pd.DataFrame, problems: list[Problem]) -> None:
    """Raise UserError when a diagnosis of the table has no image left: skipping must not take a class away unsaid."""
    unknown = {problem.place for problem in problems if problem.kind == "unknown_diagnosis"}
    counts = table.drop(index=list(unknown))["dx"].value_counts()
    lost = sorted(set(counts.index) - set(kept["dx"]))
    if not lost:
        return
    kinds = sorted({problem.kind for problem in problems if problem.action == "skipped"})
    listed = ", ".join(f"{code} ({counts[code]:,} rows)" for code in lost)
    raise UserError(
        f"every image of {listed} was left out ({', '.join(kinds)} are skipped, see prepare.on_problem), and the class "
        "with them. Mend these images or rows, or take the rows out of the table"
    )


def unlisted_images(
    table: pd.DataFrame, raw: Path, masks: tuple[str, ...] = (), passed_over: Collection[str] = ()
) -> list[Problem]:
    """Images below a folder that no row of its table names; `masks` are endings of names that belong to others."""
    named = {Path(file) for file in table["file"] if file}
    stems = {image_id(path.name) for path in named} | set(passed_over)
    return [
        Problem(
            "unlisted_image",
            path.relative_to(raw).as_posix(),
            None,
            "",
            name,
            "no table names this image; it is not used",
        )
        for name, paths in sorted(index_images(raw).items())
        for path in paths
        if path not in named and name not in stems and not name.lower().endswith(masks)
    ]
