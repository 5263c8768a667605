"""Images that `prepare` packed, as examples for an export."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from exp_tools.data.labels import read_labels
from exp_tools.data.metadata import Vocabulary, encode
from exp_tools.data.splits import read_splits
from exp_tools.data.task_view import as_task
from exp_tools.errors import UserError, require_file
from exp_tools.models.artifact import ModelFacts
from exp_tools.serving.quantise import Examples
from exp_tools.training.runs import file_digest


def packed_examples(
    facts: ModelFacts, labels: Path, splits: Path, images: Path, wanted: Sequence[tuple[str, int]]
) -> list[Examples]:
    """Images of splits of the data that a model was made from.

    Parameters
    ----------
    facts : of the model; another model's images would be of another size, or its test images this one's training
    labels, splits, images : labels.csv, splits.csv and images.npy
    wanted : a split and at most how many of its images, spread evenly over it

    Raises
    ------
    UserError : a file is missing, or the model was made from other data
    """
    require_file(images, "prepare")
    every = read_labels(labels)
    split = read_splits(splits)["split"].to_numpy()
    digests = {"md5_labels": file_digest(labels), "md5_splits": file_digest(splits)}
    if any(facts.training.get(name) != digest for name, digest in digests.items()):
        raise UserError(
            f"the model was trained on other data than {labels} and {splits} name: `dvc repro`, or give images of your "
            "own with --images FOLDER"
        )
    known, _ = as_task(every, facts.task, facts.classes)
    places = {name: place for place, name in enumerate(facts.classes)}
    packed = np.load(images, mmap_mode="r")
    vocabulary = None if facts.vocabulary is None else Vocabulary.from_dict(facts.vocabulary)
    metadata = np.zeros((len(every), 3), np.float32) if vocabulary is None else encode(every, vocabulary)
    found = []
    for name, count in wanted:
        rows = known.index[split[known.index] == name].to_numpy()
        rows = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)]
        found.append(Examples(packed[rows], metadata[rows], known.loc[rows, "dx"].map(places).to_numpy(dtype=np.int64)))
    return found
