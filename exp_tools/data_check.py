"""What DVC does not see, or sees too late: changes of the user's folder, dead links, verdicts, files to be deleted."""

import dataclasses
import os
from fnmatch import fnmatch
from pathlib import Path

from exp_tools.data.acquire.link import folder_changes
from exp_tools.data.duplicates.verdicts import read_verdicts
from exp_tools.data.images.decode import is_clutter
from exp_tools.data.label_verdicts import as_judged, judge_labels, read_label_verdicts, said_of_unknown
from exp_tools.data.labels.table import read_labels
from exp_tools.data.sources.registry import SourceOptions
from exp_tools.errors import UserError
from exp_tools.params import PARAMS_FILE, load_params
from exp_tools.project import EXTERNAL_RAW, FIGURES, LABEL_VERDICTS, LABELS, RAW, TRAIN_METRICS, VERDICTS
from exp_tools.system import io_processes

LINK_AGAIN = "dvc repro -f -s download, then dvc repro"
EMPTIED = (FIGURES, TRAIN_METRICS)
"""Outputs that DVC empties as a whole before their stage runs."""
CURVES = ("metrics.json", "plots/metrics/*.tsv")
"""What the curves of training are called."""


def changes_of_data(root: Path) -> tuple[list[str], list[str]]:
    """Files that were added to the user's folder since the stage `download`, and those that are gone.

    Raises
    ------
    UserError : the parameters or the folder are wrong
    """
    params = load_params(root / PARAMS_FILE)
    data = params.data.model_dump()
    wanted = SourceOptions(**{field.name: data[field.name] for field in dataclasses.fields(SourceOptions)})
    processes = io_processes(params.machine)
    return folder_changes(params.data.source, wanted, root / RAW, root=root, processes=processes)


def dead_links(root: Path) -> list[str]:
    """For each folder of links, in a sentence, which of them lead nowhere and what to do: DVC fails at such a link."""
    said = []
    for folder, stage in ((RAW, "download"), (EXTERNAL_RAW, "external")):
        dead = [path for path in sorted((root / folder).rglob("*")) if path.is_symlink() and not path.exists()]
        if dead:
            said.append(
                f"{dead[0].relative_to(root)} is a link to {os.readlink(dead[0])}, which is not there any more "
                f"({len(dead):,} such links in {folder}), and DVC fails at it. Bring it back, or link what is there "
                f"now: dvc repro -f -s {stage}, then dvc repro"
            )
    return said


def verdict_faults(root: Path) -> list[str]:
    """What is wrong with the files of verdicts, at which DVC or `prepare` would stop: one sentence for each."""
    said = []
    for path, read in ((VERDICTS, read_verdicts), (LABEL_VERDICTS, read_label_verdicts)):
        if not (root / path).is_file():
            if not _is_named(path, root / "dvc.yaml"):
                continue
            said.append(f"{path} is not there, and DVC stops at that: git checkout -- {path}")
            continue
        try:
            table = read(root / path)
            if path == LABEL_VERDICTS and (root / LABELS).is_file():
                judge_labels(as_judged(read_labels(root / LABELS)), table, path)
        except UserError as error:
            said.append(str(error))
    return said


def _is_named(path: Path, pipeline: Path) -> bool:
    return pipeline.is_file() and path.as_posix() in pipeline.read_text(encoding="utf-8")


def verdicts_on_labels(root: Path) -> str:
    """Verdicts on labels in a sentence: how many, what they change in the prepared set, and which it does not have."""
    table = read_label_verdicts(root / LABEL_VERDICTS)
    counted = f"{len(table):,} verdicts on labels"
    if table.empty or not (root / LABELS).is_file():
        return counted
    judged = judge_labels(as_judged(read_labels(root / LABELS)), table, LABEL_VERDICTS)
    unknown = said_of_unknown(LABEL_VERDICTS, judged.unknown)
    return f"{counted}: {judged or 'nothing changed'}" + (f"; {unknown}" if unknown else "")


def strays(root: Path) -> list[str]:
    """Files in the folders EMPTIED that no stage made, as paths from the root."""
    found = []
    for folder in EMPTIED:
        names = {path.relative_to(root / folder).as_posix() for path in (root / folder).rglob("*") if path.is_file()}
        names = {name for name in names if not is_clutter(Path(name).name)}
        made = names and (_recorded(root, folder) if folder == FIGURES else _curves(names))
        if made is not None:
            found += sorted((folder / name).as_posix() for name in names - made)
    return found


def _curves(names: set[str]) -> set[str]:
    return {name for name in names if any(fnmatch(name, known) for known in CURVES)}


def _recorded(root: Path, folder: Path) -> set[str] | None:
    """The names in an output folder that DVC's cache knows of its last run; None where it knows none."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        outs = Repo(str(root)).index.outs
        made = next((out.get_obj() for out in outs if Path(out.fs_path) == (root / folder).resolve()), None)
    except DvcException:  # no DVC project, or one whose dvc.yaml is wrong: dvc repro will say so
        return None
    return None if made is None else {"/".join(key) for key, _, _ in made}
