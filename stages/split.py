"""Give every lesion to train, validation or test, and prove that none is in two.

Reads   data/prepared/{labels.csv, duplicates.csv}
Writes  data/splits.csv, metrics/split.json
"""

from exp_tools.data.labels.table import lesions_known, read_labels
from exp_tools.data.split_proof import crossings
from exp_tools.data.splits import LEAKY, assert_disjoint, assign_splits, ignored_tests, resolve_scheme, summarise_splits
from exp_tools.errors import UserError, run_main
from exp_tools.io import write_csv, write_json
from exp_tools.params import load_params
from exp_tools.project import DUPLICATES, LABEL_VERDICTS, LABELS, SPLIT_METRICS, SPLITS
from exp_tools.taxonomy import task_classes, task_label


def main() -> None:
    params = load_params()
    labels = read_labels(LABELS)
    found = {task_label(params.task, code) for code in labels["dx"]}
    missing = set(task_classes(params.task, labels["dx"])) - found
    if missing or len(found) < 2:
        what = f"no {' and no '.join(sorted(missing))}" if missing else "only one class"
        raise UserError(
            f"task {params.task}: {LABELS} has {what}; its diagnoses are {', '.join(sorted(set(labels['dx'])))}"
        )
    chosen = resolve_scheme(labels, params.split)
    splits = assign_splits(labels, chosen)
    assert_disjoint(splits, chosen.scheme)
    write_csv(SPLITS, splits)
    proof = crossings(SPLITS, LABELS, DUPLICATES)
    if any(proof.values()) and chosen.scheme != LEAKY:
        SPLITS.unlink()
        raise AssertionError(f"{SPLITS} is wrong and was taken away: {proof}; please report this")
    known = lesions_known(labels)
    summary = proof | summarise_splits(splits, chosen, lesions_known=known)
    write_json(SPLIT_METRICS, summary)
    counts = splits["split"].value_counts()
    print(f"{SPLITS}: {counts['train']:,} train, {counts['val']:,} validation, {counts['test']:,} test images")
    if chosen.scheme == LEAKY:
        print(
            f"WARNING: LEAKY, split by image: {summary['leak']:.0%} of the test images show a lesion that is in train "
            f"too ({proof['lesions_in_two_splits']:,} lesions are in two splits). The scores will be too good; they "
            "are for measuring by how much, and report, card and `exp-tools compare` say so"
        )
    if ignored := ignored_tests(labels, chosen):
        print(
            f"WARNING: {ignored:,} images are marked as test by the source or the table, and split.scheme "
            f"{chosen.scheme} mixes them with the others; split.scheme auto keeps them as the test set"
        )
    if not known:
        print(
            "WARNING: there are images whose lesion is unknown, so one lesion may be in train and in test "
            "and scores too good; give lesion_id, or search with prepare.duplicates=search"
        )
    if dropped := summary.get("dropped"):
        said = ", ".join(f"{count:,} of {split}" for split, count in dropped.items())
        print(f"{LABEL_VERDICTS} dropped images, which are used for nothing: {said}; no other image has moved")
    if unused := summary["unused_images_of_test_groups"]:
        print(f"WARNING: {unused:,} images show a lesion of the given test set and are used for nothing")


if __name__ == "__main__":
    run_main(main)
