"""Check labels and images, and decode and resize every image once.

Reads   data/raw/, verdicts/{duplicates, labels}.csv
Writes  data/prepared/{labels.csv, images.npy, masks.npy, preprocessing.json, problems.csv, duplicates.csv},
        metrics/data.json, plots/data/

When a problem stops it, the list of problems is all that is written, and the message says where it lies. The links of
data/raw/ go then, so that `dvc repro` looks at the user's folder again.
"""

import sys
from pathlib import Path

import pandas as pd

from exp_tools.data.acquire.managed_folder import looking_again
from exp_tools.data.duplicates.contact_sheet import draw_pairs
from exp_tools.data.duplicates.groups import pair_report, with_groups
from exp_tools.data.duplicates.pairs import duplicate_pairs, photograph
from exp_tools.data.duplicates.verdicts import read_verdicts, still_united
from exp_tools.data.images.masks import find_masks, pack_masks
from exp_tools.data.label_verdicts import KIND as VERDICT_KIND
from exp_tools.data.label_verdicts import judge_labels, read_label_verdicts, said_of_unknown
from exp_tools.data.labels.issues import Problem, stop_on, summarise_problems, write_report
from exp_tools.data.labels.table import summarise_labels, typed_labels
from exp_tools.data.prepare import Packing, check_and_pack, packing_of
from exp_tools.data.sources.registry import DatasetSpec, read_source, spec_of
from exp_tools.errors import run_main
from exp_tools.evaluation.plots.class_counts import draw_class_distribution
from exp_tools.io import write_csv, write_json
from exp_tools.params import load_params
from exp_tools.project import (
    DATA_FIGURES,
    DATA_METRICS,
    DUPLICATES,
    IMAGES,
    LABEL_VERDICTS,
    LABELS,
    MASKS,
    PREPROCESSING,
    PROBLEMS,
    RAW,
    VERDICTS,
    project_root,
)
from exp_tools.system import io_processes
from exp_tools.taxonomy import task_classes


def main() -> None:
    params = load_params()
    verdicts, of_labels = read_verdicts(VERDICTS), read_label_verdicts(LABEL_VERDICTS)
    processes = io_processes(params.machine)
    packing = packing_of(params.prepare, processes)
    with looking_again(RAW, "data.dir"):
        table = read_source(params.data.source, RAW)
        notes = table.attrs["notes"]
        print("\n".join(notes), end="\n" * bool(notes), flush=True)
        kept, problems = check_and_pack(
            table, spec_of(params.data.source), RAW, IMAGES, packing, table.attrs["left_out"]
        )
        write_report(PROBLEMS, problems)
        report = report_path()
        write_report(report, problems)
        stop_on(problems, report)

    judged = judge_labels(typed_labels(kept), of_labels, LABEL_VERDICTS)
    labels = judged.labels
    problems += judged.changes
    write_report(PROBLEMS, problems)
    if said := str(judged):
        print(f"{LABEL_VERDICTS}: {said}, listed in {PROBLEMS}")
    if unknown := said_of_unknown(LABEL_VERDICTS, judged.unknown):
        print(f"warning: {unknown}", file=sys.stderr)
    files = kept["file"].to_list()
    pairs = duplicate_pairs(labels, files, params.prepare.duplicates, verdicts=verdicts, processes=processes)
    labels = with_groups(labels, pairs)
    if united := still_united(labels, verdicts):
        print(f"warning: {VERDICTS} says no of {united}", file=sys.stderr)
    list_duplicates(labels, files, pairs)
    write_csv(LABELS, labels)
    write_json(PREPROCESSING, packing.preprocessing._asdict())
    masks = pack_lesion_masks(labels["image_id"].to_list(), files, spec_of(params.data.source), packing)
    counted = {
        "rows_read": len(table),
        "rows_left_out": len(table) - len(kept),
        "problems": summarise_problems(problems),
        "lesion_masks": masks,
        **({"reading": notes} if notes else {}),
    }
    write_json(DATA_METRICS, summarise_labels(labels) | counted)
    counts = labels["dx"].value_counts().loc[task_classes("diagnosis", labels["dx"])]
    draw_class_distribution(DATA_FIGURES / "classes.png", counts.to_frame("images"), params.data.source)
    print(
        f"{IMAGES}: {len(labels):,} images of {labels['lesion_id'].nunique():,} lesions; {LABELS}, {DATA_METRICS}; "
        f"{_said(problems)}, listed in {PROBLEMS}"
    )


def _said(problems: list[Problem]) -> str:
    """How many problems there were, those that cost an image apart from the others; verdicts are none."""
    problems = [problem for problem in problems if problem.kind != VERDICT_KIND]
    skipped = sum(problem.action == "skipped" for problem in problems)
    return f"{skipped:,} rows left out for a problem, {len(problems) - skipped:,} problems noted or mended"


def pack_lesion_masks(image_ids: list[str], files: list[str], facts: DatasetSpec, packing: Packing) -> int:
    """Pack the masks that the set came with; warns of those that cannot be used, and returns how many can."""
    found = find_masks(RAW, facts.lesion_masks)
    left_out = pack_masks(MASKS, image_ids, files, found, packing.preprocessing, processes=packing.processes)
    for file, reason in left_out[:5]:
        print(f"warning: the mask {file} is not used: it {reason}", file=sys.stderr)
    if len(left_out) > 5:
        print(f"warning: {len(left_out) - 5:,} more masks are not used", file=sys.stderr)
    return len(found.keys() & set(image_ids)) - len(left_out)


def report_path() -> Path:
    """Where problems are listed: an output; in a queued experiment, whose folder goes, in the project's runs/ too."""
    root = project_root().resolve()
    return PROBLEMS if root == Path.cwd() else root / "runs" / PROBLEMS.name


def list_duplicates(labels: pd.DataFrame, files: list[str], pairs: pd.DataFrame) -> None:
    """Write the pairs as a table, and those of different lesions as a picture."""
    listed = pair_report(labels, pairs)
    write_csv(DUPLICATES, listed)
    place = dict(zip(labels["image_id"], files, strict=True))
    draw_pairs(DATA_FIGURES / "duplicates.png", lambda image_id: photograph(place[image_id]), listed)


if __name__ == "__main__":
    run_main(main)
