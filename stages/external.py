"""Check and pack the sets of `data.external`, which are only ever tested on, without what the main set has too.

Reads   data/raw/, data/prepared/labels.csv
Writes  data/external_raw/, data/external/{sets.csv, <name>/{labels.csv, images.npy, problems.csv}},
        metrics/external.json
"""

import shutil

import pandas as pd

from exp_tools.data.duplicates.groups import with_groups
from exp_tools.data.external import without_known_images
from exp_tools.data.facts import Wanted, licence_text
from exp_tools.data.files import write_csv, write_json
from exp_tools.data.gather import provide, refuse_own_folder
from exp_tools.data.labels import read_labels, summarise_labels, typed_labels
from exp_tools.data.origin import facts_of, project_root, read_source
from exp_tools.data.parallel import io_processes
from exp_tools.data.preparing import check_and_pack, packing_of
from exp_tools.data.problems import stop_on, summarise_problems, write_report
from exp_tools.errors import run_main
from exp_tools.params import load_params
from stages.paths import EXTERNAL, EXTERNAL_METRICS, EXTERNAL_RAW, LABELS, RAW


def main() -> None:
    params = load_params()
    processes, root = io_processes(params.machine), project_root()
    packing = packing_of(params.prepare, processes)
    for folder in (EXTERNAL_RAW, EXTERNAL):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    main_labels = read_labels(LABELS)
    main_table = read_source(params.data.source, RAW)
    metrics = {}
    for name, chosen in params.data.external.items():
        raw, wanted = EXTERNAL_RAW / name, Wanted(dir=chosen.dir)
        refuse_own_folder(wanted, raw, root)
        done = provide(chosen.source, wanted, raw, root=root, processes=processes)
        print(f"{licence_text(facts_of(chosen.source))}{raw}/: {done}", flush=True)
        table = read_source(chosen.source, raw)
        left, removed = without_known_images(
            table, main_table, main_labels, params.prepare.duplicates, processes=processes
        )
        kept, problems = check_and_pack(left, facts_of(chosen.source), raw, EXTERNAL / name / "images.npy", packing)
        write_report(EXTERNAL / name / "problems.csv", problems)
        stop_on(problems, EXTERNAL / name / "problems.csv")
        labels = with_groups(typed_labels(kept))
        write_csv(EXTERNAL / name / "labels.csv", labels)
        counted = {"rows_read": len(table), "removed": removed, "problems": summarise_problems(problems)}
        metrics[name] = {"source_set": chosen.source} | summarise_labels(labels) | counted
        print(f"{EXTERNAL / name}/: {len(labels):,} images; {sum(removed.values()):,} removed that {RAW} has too")
    sets = [(name, chosen.source, metrics[name]["images"]) for name, chosen in params.data.external.items()]
    write_csv(EXTERNAL / "sets.csv", pd.DataFrame(sets, columns=["name", "source", "images"]))
    write_json(EXTERNAL_METRICS, metrics)


if __name__ == "__main__":
    run_main(main)
