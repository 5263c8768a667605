"""Images that `prepare` packed, as examples for an export."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from exp_tools.data.labels import read_labels
from exp_tools.data.metadata import Vocabulary, encode
from exp_tools.data.splits import read_splits
from exp_tools.data.task_view import as_task
from exp_tools.errors import UserError, require_file
from exp_tools.models.artifact import ModelFacts
from exp_tools.serving.quantise import Examples
from exp_tools.training.runs import file_digest


class PreparedData(NamedTuple):
    """Where labels.csv, splits.csv and images.npy lie."""

    labels: Path
    splits: Path
    images: Path


def packed_examples(facts: ModelFacts, data: PreparedData, wanted: Sequence[tuple[str, int | None]]) -> list[Examples]:
    """Images of splits of the data that a model was made from.

    Parameters
    ----------
    facts : of the model; another model's images would be of another size, or its test images this one's training
    data : what `prepare` and `split` made
    wanted : a split, and at most how many of its images, spread evenly over it (None: all)

    Raises
    ------
    UserError : a file is missing, or the model was made from other data
    """
    require_file(data.images, "prepare")
    every = read_labels(data.labels)
    split = read_splits(data.splits)["split"].to_numpy()
    digests = {"md5_labels": file_digest(data.labels), "md5_splits": file_digest(data.splits)}
    if any(facts.training.get(name) != digest for name, digest in digests.items()):
        raise UserError(
            f"the model was trained on other data than {data.labels} and {data.splits} name: run `dvc repro`, or give "
            "images of your own with --images FOLDER"
        )
    known, _ = as_task(every, facts.task, facts.classes)
    places = {name: place for place, name in enumerate(facts.classes)}
    packed = np.load(data.images, mmap_mode="r")
    vocabulary = None if facts.vocabulary is None else Vocabulary.from_dict(facts.vocabulary)
    metadata = np.zeros((len(every), 3), np.float32) if vocabulary is None else encode(every, vocabulary)
    found = []
    for name, count in wanted:
        rows = known.index[split[known.index] == name].to_numpy()
        if count is not None and count < len(rows):
            rows = rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]
        found.append(Examples(packed[rows], metadata[rows], known.loc[rows, "dx"].map(places).to_numpy(dtype=np.int64)))
    return found
