"""Check the label table, then decode and resize every image once.

Reads   data/raw/
Writes  data/prepared/{labels.csv, images.npy}, metrics/data.json, plots/data/
"""

from exp_tools.data.files import write_csv, write_json
from exp_tools.data.images import pack_images
from exp_tools.data.labels import Problem, check_labels, stop_on, summarise_labels, typed_labels
from exp_tools.data.origin import load_source
from exp_tools.data.parallel import io_processes
from exp_tools.errors import run_main
from exp_tools.evaluation.figures import draw_class_distribution
from exp_tools.params import load_params
from exp_tools.taxonomy import task_classes
from stages.paths import DATA_FIGURES, DATA_METRICS, IMAGES, LABELS, RAW


def main() -> None:
    params = load_params()
    table = load_source(params.data.source).read(RAW)
    stop_on(check_labels(table))

    faults = pack_images(
        table["file"].to_list(),
        IMAGES,
        size=params.prepare.image_size,
        resize=params.prepare.resize,
        processes=io_processes(params.machine),
    )
    rows = list(table.index)
    files = table["file"].to_list()
    stop_on([Problem("bad_image", files[place], rows[place], "", "", reason) for place, reason in faults.items()])

    labels = typed_labels(table)
    write_csv(LABELS, labels)
    write_json(DATA_METRICS, summarise_labels(labels))
    counts = labels["dx"].value_counts().loc[task_classes("diagnosis", labels["dx"])]
    draw_class_distribution(DATA_FIGURES / "classes.png", counts.to_frame("images"), params.data.source)
    print(f"{IMAGES}: {len(labels):,} images of {labels['lesion_id'].nunique():,} lesions; {LABELS}, {DATA_METRICS}")


if __name__ == "__main__":
    run_main(main)
