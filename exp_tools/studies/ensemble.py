"""Make one model file of several experiments: `exp-tools ensemble`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from exp_tools.data.labels.table import read_labels
from exp_tools.errors import UserError
from exp_tools.evaluation.compare.groups import Group, make_group
from exp_tools.evaluation.compare.runs import FOLD, SEED, read_tables
from exp_tools.evaluation.fitting import choose_thresholds, fit_calibration
from exp_tools.evaluation.prediction_sets import fit_sets
from exp_tools.evaluation.predictions import as_arrays, prediction_table
from exp_tools.evaluation.probabilities import Calibration
from exp_tools.evaluation.report.build import score_set, with_metadata
from exp_tools.evaluation.report.model_card import model_card
from exp_tools.evaluation.unlike import FLAG, SCORE
from exp_tools.evaluation.validation import scores_of
from exp_tools.io import file_digest
from exp_tools.models.architectures._ensemble import Ensemble
from exp_tools.models.model_file import ModelFacts, copy_model, read_facts, read_ood, save_model
from exp_tools.models.registry import ENSEMBLE, load_model
from exp_tools.params import Params
from exp_tools.project import MODEL, PREDICTIONS
from exp_tools.revisions import fetch_model, find_version
from exp_tools.taxonomy import task_label

ALIKE = {
    "task": "tasks",
    "classes": "classes",
    "preprocessing": "image sizes or filters",
    "vocabulary": "ways to read age, sex and site",
    "source": "data sets",
}
"""Facts that members must share, and what they are called."""
ALIKE_IN_WEIGHTS = {
    "architecture": "architectures",
    "knobs": "settings of the architecture",
    "pixel_mean": "normalisation",
    "pixel_std": "normalisation",
}
"""What else networks must share whose weights are averaged."""


@dataclass(frozen=True)
class Made:
    """An ensemble's model file.

    facts : of it
    folds : 1 where all members have the same split, else the number of folds
    predictions : of the ensemble: validation, test and external sets; of an ensemble of folds the external sets alone
    scored : rows that its card is about: the ensemble's on the test split, or of folds those of each image by the
        members that have not seen it
    """

    facts: ModelFacts
    folds: int
    predictions: pd.DataFrame
    scored: pd.DataFrame


def make_ensemble(words: Sequence[str], out: Path, root: Path, params: Params, cache: Path) -> Made:
    """Write a model file that holds the models of several experiments and averages their probabilities.

    Members of one split are seeds (or architectures): temperature, decision and thresholds are fitted on the mean
    probabilities of validation, and the test split is as good as ever. Members of different folds have seen each
    other's test images: these are fitted on each image's prediction by the members that have not seen it, and no image
    of the set is left to test the ensemble itself.

    Parameters
    ----------
    words : experiments, branches, tags, commits or `workspace`, at least two
    out : the model file
    root : the project's folder
    params : its section `calibration` says what to fit
    cache : folder for models out of DVC's cache

    Raises
    ------
    UserError : fewer than two; two have the same model; one of them has no model or no predictions at hand; they differ
        in what they must share, or their test sets overlap without being equal
    """
    paths = member_files(words, root, cache)
    tables = {word: read_tables(word, root, str(PREDICTIONS)) for word in words}
    loaded = [load_model(path) for path in paths]
    facts = [one for _, one in loaded]
    check_alike(words, facts)
    first, classes = facts[0], facts[0].classes
    group = make_group(out.stem, [tables[word].run("test") for word in words])
    known = _of_validation(words, tables, group) if group.folds == 1 else _out_of_fold(group)
    logits = log_mean(known.parts, classes)
    shares = np.mean([one.training["class_shares"] for one in facts], axis=0)
    labels = as_arrays(known.labels, classes)[1]
    calibration, _ = fit_calibration(params.calibration, classes, shares, shares, logits, labels)
    probabilities = calibration.probabilities(logits)
    thresholds, _ = choose_thresholds(params.calibration, classes, probabilities, labels, known.labels["lesion_id"])
    how = params.calibration
    sets = fit_sets(how.sets, how.coverage, classes, probabilities, labels, known.labels["lesion_id"])
    decided = calibration.decisions(probabilities)
    of_members = [Calibration.from_dict(one.calibration) for one in facts]
    made = replace(
        first,
        architecture=ENSEMBLE,
        knobs={
            "members": [
                {
                    "architecture": one.architecture,
                    "knobs": one.knobs,
                    "temperature": own.temperature,
                    "bias": own.bias,
                    "pixel_mean": one.pixel_mean,
                    "pixel_std": one.pixel_std,
                }
                for one, own in zip(facts, of_members, strict=True)
            ]
        },
        calibration=calibration.as_dict(),
        thresholds=thresholds,
        prediction_sets=sets,
        ood=facts[0].ood,
        training={
            "ensemble_of": "folds" if group.folds > 1 else "seeds",
            "folds": group.folds,
            "members": [
                {
                    "experiment": word,
                    "architecture": one.architecture,
                    "seed": tables[word].params.get(SEED),
                    "fold": tables[word].params.get(FOLD) if group.folds > 1 else None,
                    "best_epoch": one.training.get("best_epoch"),
                    "md5": file_digest(path),
                }
                for word, one, path in zip(words, facts, paths, strict=True)
            ],
            "class_shares": shares.tolist(),
            "seen_shares": shares.tolist(),
            "md5_labels": first.training.get("md5_labels"),
            "md5_splits": first.training.get("md5_splits") if group.folds == 1 else None,
            "images": first.training.get("images"),
            "weights": first.training.get("weights"),
            "validation": scores_of(probabilities, labels, decided, classes),
        },
    )
    network = Ensemble(
        [network for network, _ in loaded], [one.temperature for one in of_members], [one.bias for one in of_members]
    )
    _check_sizes(network, made)
    predictions = _predictions(words, tables, group, classes, calibration, sets)
    if group.folds > 1:
        scored = prediction_table(known.labels, "test", logits, classes, calibration, sets)
    else:
        scored = predictions[predictions["split"] == "test"].reset_index(drop=True)
    save_model(out, network, made)
    if made.ood:
        copy_model(out, out, made, ood=read_ood(paths[0]))
    return Made(made, group.folds, predictions, scored)


def member_files(words: Sequence[str], root: Path, cache: Path) -> list[Path]:
    """The members' model files. Raises UserError for fewer than two, for one under two names, and where none is."""
    if len(set(words)) < max(2, len(words)):
        raise UserError("name two or more different experiments")
    paths = [fetch_model(root, find_version(root, word), MODEL, cache) for word in words]
    known: dict[str, str] = {}
    for word, path in zip(words, paths, strict=True):
        read_facts(path)  # says what is wrong with one that is missing or damaged
        other = known.setdefault(file_digest(path), word)
        if other != word:
            raise UserError(f"{word} and {other} have the same model file, which would count twice: leave one out")
    return paths


def card_of(made: Made, files: Mapping[str, str], labels: Path, params: Params) -> str:
    """The ensemble's model card.

    Parameters
    ----------
    made : the ensemble
    files : its model file and that one's MD5, as the card names them
    labels : the project's label table, for subgroups
    params : its section `evaluate` says how to score
    """
    how = params.evaluate
    every = read_labels(labels)
    every["dx"] = [task_label(made.facts.task, code) for code in every["dx"]]

    def report(table: pd.DataFrame, known: pd.DataFrame) -> dict[str, Any]:
        return score_set(
            with_metadata(table, known),
            made.facts.classes,
            calibration=Calibration.from_dict(made.facts.calibration),
            thresholds=made.facts.thresholds,
            set_coverage=made.facts.prediction_sets.get("coverage"),
            costs=how.costs,
            prevalence=how.prevalence,
            subgroups=how.subgroups,
            resamples=how.resamples,
            seed=how.seed,
        )

    return model_card(made.facts, {"test": report(made.scored, every), "external": {}}, dict(files))


def log_mean(tables: Sequence[pd.DataFrame], classes: Sequence[str]) -> np.ndarray:
    """Logits [N, C] whose softmax is the mean of the tables' probabilities, of the same images in the same order."""
    mean = np.mean([as_arrays(table, classes)[0] for table in tables], axis=0)
    return np.log(np.clip(mean, np.finfo(float).tiny, 1))


@dataclass(frozen=True)
class _Known:
    """Predictions to fit on: tables of the same images to average, and the rows that say what the images are."""

    parts: Sequence[pd.DataFrame]
    labels: pd.DataFrame


def _of_validation(words: Sequence[str], tables: Any, group: Group) -> _Known:
    parts = [tables[word].rows("val") for word in words]
    for word, part in zip(words, parts, strict=True):
        if not part["image_id"].equals(parts[0]["image_id"]) or part.empty:
            raise UserError(
                f"{word} and {words[0]} have other validation images, so nothing says how sure their mean may be: "
                "members are of one split, or of the folds of one"
            )
    return _Known(parts, parts[0])


def _out_of_fold(group: Group) -> _Known:
    """Each image as its own fold predicts it; with several seeds their mean."""
    return _Known(group.repeats, group.repeats[0])


def _predictions(
    words: Sequence[str],
    tables: Any,
    group: Group,
    classes: Sequence[str],
    calibration: Calibration,
    sets: dict[str, Any],
) -> pd.DataFrame:
    """What the ensemble says of every set that no member has seen, and of validation."""
    shared = [set(tables[word].table["split"]) for word in words]
    names = sorted(set.intersection(*shared), key=lambda name: (name != "val", name != "test", name))
    found = []
    for name in names:
        if group.folds > 1 and not name.startswith("external:"):
            continue
        parts = [tables[word].rows(name) for word in words]
        same = [part for part in parts if part["image_id"].equals(parts[0]["image_id"])]
        if len(same) == len(parts):
            table = prediction_table(parts[0], name, log_mean(parts, classes), classes, calibration, sets)
            found.append(table.assign(**{column: parts[0][column] for column in (FLAG, SCORE) if column in parts[0]}))
    columns = prediction_table(group.repeats[0][:0], "test", np.zeros((0, len(classes))), classes, calibration, sets)
    return pd.concat(found, ignore_index=True) if found else columns


def check_alike(words: Sequence[str], facts: Sequence[ModelFacts], *, of_one_network: bool = False) -> None:
    """Raise UserError for members that differ in what they must share; `of_one_network`: whose weights are averaged."""
    for word, one in zip(words, facts, strict=True):
        if "ensemble_of" in one.training:
            raise UserError(f"{word} is an ensemble already: name its members")
        for name, meaning in (ALIKE | ALIKE_IN_WEIGHTS if of_one_network else ALIKE).items():
            if getattr(one, name) != getattr(facts[0], name):
                raise UserError(f"{word} and {words[0]} have different {meaning}: they cannot be one model")
        if one.training.get("md5_labels") != facts[0].training.get("md5_labels"):
            raise UserError(f"{word} and {words[0]} were made from different label tables: run both again")
        if of_one_network and one.training.get("md5_splits") != facts[0].training.get("md5_splits"):
            raise UserError(f"{word} and {words[0]} have different splits: one has trained on images that judge both")


def _check_sizes(network: Ensemble, facts: ModelFacts) -> None:
    """The network computes finite numbers for an image of the size that the file names."""
    size = facts.preprocessing["image_size"]
    with torch.inference_mode():
        given = [torch.zeros(1, 3, size, size)] + ([torch.zeros(1, 3)] if network.uses_metadata else [])
        if not math.isfinite(float(network.eval()(*given).sum())):
            raise UserError("the ensemble computes no finite numbers: one of its members is broken")
