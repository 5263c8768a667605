"""Average the weights of several experiments into one network: `exp-tools ensemble --soup`.

The greedy soup of Wortsman et al. 2022 (arXiv:2203.05482, recipe 1): members join in the order of their score on
validation, each only if the average is then no worse there. It is as fast as one network, and works where the members
were trained from the same pretrained weights; from random weights their average is usually worthless, and is refused.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from exp_tools.data.inputs.metadata import Vocabulary, encode
from exp_tools.data.labels.table import read_labels, read_splits
from exp_tools.devices import prepare_machine
from exp_tools.errors import UserError
from exp_tools.evaluation.fitting import choose_thresholds, fit_calibration
from exp_tools.evaluation.predict import predict_logits
from exp_tools.evaluation.prediction_sets import fit_sets
from exp_tools.evaluation.predictions import prediction_table
from exp_tools.evaluation.validation import scores_of, validation_scores
from exp_tools.io import file_digest
from exp_tools.models.model_file import ModelFacts, save_model
from exp_tools.models.registry import load_model
from exp_tools.params import Params
from exp_tools.project import IMAGES, LABELS, PREPROCESSING, SPLITS
from exp_tools.studies.ensemble import Made, check_alike, member_files
from exp_tools.taxonomy import task_label

SOUP = "weights"
"""What `ensemble_of` says of it."""


def make_soup(words: Sequence[str], out: Path, root: Path, params: Params, cache: Path) -> Made:
    """Write a model file whose weights are the mean of those of several experiments, chosen on validation.

    Parameters
    ----------
    words, out, root, cache : as of `ensemble.make_ensemble`; the workspace's images must be those of the experiments
    params : its sections `calibration`, `evaluate` (batch size and precision) and `machine`

    Raises
    ------
    UserError : fewer than two; two have the same model; no model at hand; they differ in architecture, knobs, split
        or what else must be shared; the workspace has other images; no average is as good on validation as the best
        member alone
    """
    paths = member_files(words, root, cache)
    loaded = [load_model(path) for path in paths]
    facts = [one for _, one in loaded]
    check_alike(words, facts, of_one_network=True)
    first, network = facts[0], loaded[0][0]
    labels, index = _validation_and_test(root, first)
    vocabulary = None if first.vocabulary is None else Vocabulary.from_dict(first.vocabulary)
    metadata = None if vocabulary is None else encode(labels, vocabulary)
    device = prepare_machine(params.machine)
    truth = labels["dx"].map({code: place for place, code in enumerate(first.classes)}).to_numpy()

    def logits_with(weights: Mapping[str, Tensor], rows: np.ndarray) -> np.ndarray:
        network.load_state_dict(weights)
        return predict_logits(
            network,
            root / IMAGES,
            rows,
            batch_size=params.evaluate.batch_size,
            device=device,
            precision=params.evaluate.precision,
            metadata=metadata,
        )

    select_on = str(first.training.get("select_on", params.train.select_on))

    def score(weights: Mapping[str, Tensor]) -> float:
        found = validation_scores(logits_with(weights, index["val"]), truth[index["val"]], first.classes)
        return -found["loss"] if select_on == "loss" else found[select_on]

    members = [{name: tensor.clone() for name, tensor in one.state_dict().items()} for one, _ in loaded]
    alone = [score(weights) for weights in members]
    chosen, best = greedy(members, alone, score)
    if len(chosen) == 1:
        raise UserError(
            f"no average of these weights is as good on validation as {words[chosen[0]]} alone ({select_on} "
            f"{abs(best):.4f}): nothing is written. Without --soup their probabilities are averaged, which nearly "
            "always helps"
        )
    weights = mean_of([members[place] for place in chosen])
    logits = {split: logits_with(weights, rows) for split, rows in index.items()}
    shares, seen = (
        np.mean([facts[place].training[name] for place in chosen], axis=0) for name in ("class_shares", "seen_shares")
    )
    known = labels.iloc[index["val"]]
    given = (logits["val"].astype(np.float64), truth[index["val"]])
    calibration, _ = fit_calibration(params.calibration, first.classes, shares, seen, *given)
    probabilities = calibration.probabilities(given[0])
    thresholds, _ = choose_thresholds(params.calibration, first.classes, probabilities, given[1], known["lesion_id"])
    how = params.calibration
    sets = fit_sets(how.sets, how.coverage, first.classes, probabilities, given[1], known["lesion_id"])
    made = replace(
        first,
        calibration=calibration.as_dict(),
        thresholds=thresholds,
        prediction_sets=sets,
        ood={},  # its features are those of no member: what was fitted on these says nothing
        training={
            "ensemble_of": SOUP,
            "members": [
                {
                    "experiment": words[place],
                    "seed": facts[place].training.get("parameters", {}).get("seed"),
                    "score": abs(alone[place]),
                    "md5": file_digest(paths[place]),
                }
                for place in chosen
            ],
            "tried": len(words),
            "select_on": select_on,
            "score": abs(best),
            "class_shares": shares.tolist(),
            "seen_shares": seen.tolist(),
            "validation": scores_of(probabilities, given[1], calibration.decisions(probabilities), first.classes),
            **{name: first.training.get(name) for name in ("md5_labels", "md5_splits", "images", "weights")},
        },
    )
    parts = [
        prediction_table(labels.iloc[index[split]], split, logits[split], first.classes, calibration, sets)
        for split in ("val", "test")
    ]
    network.load_state_dict(weights)
    save_model(out, network, made)
    return Made(made, 1, pd.concat(parts, ignore_index=True), parts[1])


def greedy(
    members: Sequence[Mapping[str, Tensor]], alone: Sequence[float], score: Callable[[Mapping[str, Tensor]], float]
) -> tuple[list[int], float]:
    """The members whose mean is chosen, the best first, and its score: each joins if the mean is then no worse.

    `alone` has the score of each member, `score` gives that of weights; higher is better.
    """
    order = sorted(range(len(members)), key=lambda place: -alone[place])
    chosen, best = order[:1], alone[order[0]]
    for place in order[1:]:
        tried = score(mean_of([members[one] for one in [*chosen, place]]))
        if tried >= best:
            chosen, best = [*chosen, place], tried
    return chosen, best


def mean_of(members: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of tensors of the same names and shapes, summed in float64; whole numbers are those of the first."""
    return {
        name: torch.stack([one[name].double() for one in members]).mean(dim=0).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in members[0].items()
    }


def _validation_and_test(root: Path, facts: ModelFacts) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """The workspace's labels in the model's task, and the rows of validation and test."""
    for path, name in ((LABELS, "md5_labels"), (SPLITS, "md5_splits")):
        if not (root / path).is_file() or file_digest(root / path) != facts.training.get(name):
            raise UserError(
                f"{path} of the workspace is not the one that these experiments were trained with, so their average "
                "cannot be judged: give params.yaml their `data`, `prepare` and `split`, and `dvc repro split`"
            )
    if json.loads((root / PREPROCESSING).read_text(encoding="utf-8")) != facts.preprocessing:
        raise UserError(
            "the workspace's images have another size or other filters than these experiments: give params.yaml their "
            "`prepare`, and `dvc repro prepare`"
        )
    labels = read_labels(root / LABELS)
    labels["dx"] = [task_label(facts.task, code) for code in labels["dx"]]
    split = read_splits(root / SPLITS)["split"].to_numpy()
    return labels, {name: np.flatnonzero(split == name) for name in ("val", "test")}
