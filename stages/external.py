"""Check and pack the sets of `data.external`, which are only tested on, without the images that the main set also has.

Reads   data/raw/, data/prepared/labels.csv, verdicts/duplicates.csv
Writes  data/external_raw/, data/external/{labels.csv, images.npy, problems.csv}, metrics/external.json

The sets follow each other in one array, and in tables whose column `set` names them.
"""

import pandas as pd

from exp_tools.data.acquire.link import provide, refuse_own_folder
from exp_tools.data.acquire.managed_folder import looking_again, refilled
from exp_tools.data.duplicates.groups import with_groups
from exp_tools.data.duplicates.pairs import without_known_images
from exp_tools.data.duplicates.verdicts import read_verdicts
from exp_tools.data.images.pack import join_arrays
from exp_tools.data.labels.issues import report_table, stop_on, summarise_problems
from exp_tools.data.labels.table import LABEL_COLUMNS, SET, read_labels, summarise_labels, typed_labels
from exp_tools.data.prepare import check_and_pack, packing_of
from exp_tools.data.sources.registry import SourceOptions, licence_text, read_source, spec_of
from exp_tools.errors import run_main
from exp_tools.io import scratch_folder, write_csv, write_json
from exp_tools.params import Params, load_params
from exp_tools.project import (
    EXTERNAL_IMAGES,
    EXTERNAL_LABELS,
    EXTERNAL_METRICS,
    EXTERNAL_PROBLEMS,
    EXTERNAL_RAW,
    FILLED,
    LABELS,
    RAW,
    VERDICTS,
    project_root,
)
from exp_tools.system import io_processes

EXTERNAL_KEY = "data.external.NAME.dir"


def main() -> None:
    params = load_params()
    verdicts = read_verdicts(VERDICTS)
    gather(params)
    main_labels = read_labels(LABELS)
    main_table = read_source(params.data.source, RAW)
    processes = io_processes(params.machine)
    packing = packing_of(params.prepare, processes)
    metrics, tables, reports, arrays = {}, [], [], []
    with (
        scratch_folder(EXTERNAL_IMAGES.parent, "packing") as folder,
        looking_again(EXTERNAL_RAW, EXTERNAL_KEY),
    ):
        for name, chosen in params.data.external.items():
            raw = EXTERNAL_RAW / name
            table = read_source(chosen.source, raw)
            notes = table.attrs["notes"]
            print("\n".join(f"{name}: {note}" for note in notes), end="\n" * bool(notes), flush=True)
            left, removed = without_known_images(
                table, main_table, main_labels, params.prepare.duplicates, verdicts=verdicts, processes=processes
            )
            arrays.append(folder / f"{name}.npy")
            passed_over = [*table.attrs["left_out"], *table["image_id"]]
            kept, problems = check_and_pack(left, spec_of(chosen.source), raw, arrays[-1], packing, passed_over)
            reports.append(of_set(name, report_table(problems)))
            write_csv(EXTERNAL_PROBLEMS, pd.concat(reports))
            stop_on(problems, EXTERNAL_PROBLEMS)
            labels = with_groups(typed_labels(kept))
            tables.append(of_set(name, labels))
            counted = {"rows_read": len(table), "removed": removed, "problems": summarise_problems(problems)}
            counted |= {"reading": notes} if notes else {}
            metrics[name] = {"source_set": chosen.source} | summarise_labels(labels) | counted
            print(f"{name}: {len(labels):,} images; {sum(removed.values()):,} removed that {RAW} has too")
        join_arrays(arrays, EXTERNAL_IMAGES, packing.preprocessing.image_size)
    if not metrics:
        reports, tables = [of_set("", report_table([]))], [pd.DataFrame(columns=[SET, *LABEL_COLUMNS])]
        write_csv(EXTERNAL_PROBLEMS, reports[0])
    write_csv(EXTERNAL_LABELS, pd.concat(tables))
    write_json(EXTERNAL_METRICS, metrics)


def gather(params: Params) -> None:
    """Link or download every set into a folder of its name below data/external_raw/."""
    root, processes = project_root(), io_processes(params.machine)
    wanted = {
        name: SourceOptions(**chosen.model_dump(exclude={"source"})) for name, chosen in params.data.external.items()
    }
    for name in wanted:
        refuse_own_folder(wanted[name], FILLED, root)
    with refilled(EXTERNAL_RAW, EXTERNAL_KEY) as fresh:
        for name, chosen in params.data.external.items():
            done = provide(chosen.source, wanted[name], fresh / name, root=root, processes=processes)
            print(f"{licence_text(spec_of(chosen.source))}{EXTERNAL_RAW / name}/: {done}", flush=True)


def of_set(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """The table with the name of the set in its first column."""
    table = table.copy()
    table.insert(0, SET, name)
    return table


if __name__ == "__main__":
    run_main(main)
