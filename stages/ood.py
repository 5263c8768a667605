"""Fit what tells pictures unlike the training images: a score of the network's features, and limits of the picture.

Reads   models/network.safetensors, data/prepared/{labels.csv, images.npy}, data/splits.csv, data/features/ (a probe)
Writes  models/ood.safetensors: the score's tensors, limits, and what they say of each validation image
"""

import numpy as np

from exp_tools.data.inputs.metadata import Vocabulary, encode
from exp_tools.data.labels.table import read_labels, read_splits
from exp_tools.devices import prepare_machine
from exp_tools.errors import run_main
from exp_tools.io import file_digest
from exp_tools.models.model_file import ModelFacts
from exp_tools.models.registry import load_model
from exp_tools.ood.features import features_of
from exp_tools.ood.fit import fit_ood, write_fit
from exp_tools.params import load_params
from exp_tools.probing.cache import read_features
from exp_tools.project import FEATURES, IMAGES, LABELS, NETWORK, OOD, SPLITS
from exp_tools.taxonomy import task_label

BATCH = 64


def main() -> None:
    params = load_params()
    device = prepare_machine(params.machine)
    model, facts = load_model(NETWORK)
    labels, split = read_labels(LABELS), read_splits(SPLITS)["split"].to_numpy()
    rows = np.flatnonzero(np.isin(split, ("train", "val")))
    features = None
    if hasattr(model, "classify"):
        features = read_features(FEATURES, model.backbone.values(), file_digest(IMAGES), rows)
    if features is None:
        metadata = metadata_of(facts, labels)
        features = features_of(model, IMAGES, rows, batch_size=BATCH, device=device, metadata=metadata)
    codes = [facts.classes.index(task_label(params.task, code)) for code in labels["dx"].iloc[rows]]
    found = fit_ood(
        params.ood.method,
        features,
        np.array(codes),
        labels["lesion_id"].iloc[rows].to_numpy(),
        split[rows] == "train",
        np.load(IMAGES, mmap_mode="r"),
        rows,
    )
    write_fit(OOD, found)
    print(
        f"{OOD}: {found.method} on {features.shape[1]:,} features of {int((split == 'train').sum()):,} training "
        f"images, {found.bytes / 1000:.0f} kB; scored {len(found.scores):,} validation images"
    )


def metadata_of(facts: ModelFacts, labels) -> np.ndarray | None:
    """Metadata of every image, as the network takes them; None where it takes none."""
    return None if facts.vocabulary is None else encode(labels, Vocabulary.from_dict(facts.vocabulary))


if __name__ == "__main__":
    run_main(main)
