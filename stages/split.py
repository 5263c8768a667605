"""Give every lesion to train, validation or test, and prove that none is in two.

Reads   data/prepared/labels.csv
Writes  data/splits.csv, metrics/split.json
"""

from exp_tools.data.files import write_csv, write_json
from exp_tools.data.labels import read_labels
from exp_tools.data.splits import assert_disjoint, assign_splits, summarise_splits
from exp_tools.errors import run_main
from exp_tools.params import load_params
from stages.paths import LABELS, SPLIT_METRICS, SPLITS


def main() -> None:
    params = load_params()
    splits = assign_splits(read_labels(LABELS), params.split)
    assert_disjoint(splits)
    write_csv(SPLITS, splits)
    write_json(SPLIT_METRICS, summarise_splits(splits, params.split))
    counts = splits["split"].value_counts()
    print(f"{SPLITS}: {counts['train']:,} train, {counts['val']:,} validation, {counts['test']:,} test images")


if __name__ == "__main__":
    run_main(main)
