"""Predict validation, test and external sets with the trained model, and score test and external sets.

Reads   models/model.safetensors, data/prepared/{labels.csv, images.npy}, data/splits.csv, metrics/data.json,
        data/features/ (a probe), data/external/{labels.csv, images.npy}
Writes  data/predictions.csv, metrics/{evaluate, report}.json, MODEL_CARD.md, plots/{curves, figures}/
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from exp_tools.data.images.preprocess import Preprocessing
from exp_tools.data.inputs.metadata import Vocabulary, encode
from exp_tools.data.labels.attributes import check_attributes
from exp_tools.data.labels.select import as_task
from exp_tools.data.labels.table import DROPPED_FROM, ORIGINAL, SET, read_labels, read_splits
from exp_tools.devices import prepare_machine
from exp_tools.errors import UserError, run_main
from exp_tools.evaluation.baseline import colour_baseline
from exp_tools.evaluation.compare.disturbed import robustness_report
from exp_tools.evaluation.compare.paired import paired_differences
from exp_tools.evaluation.metrics.bootstrap import bootstrap_intervals
from exp_tools.evaluation.metrics.catalogue import HEADLINE
from exp_tools.evaluation.metrics.classification import headline_metrics
from exp_tools.evaluation.metrics.subgroup_scores import ATTRIBUTES
from exp_tools.evaluation.metrics.weighted import headline_scorer
from exp_tools.evaluation.plots.write import draw_figures, write_curves
from exp_tools.evaluation.predict import VIEWS, predict_views
from exp_tools.evaluation.predictions import as_arrays, decisions, prediction_table
from exp_tools.evaluation.probabilities import Calibration
from exp_tools.evaluation.report.build import score_set, with_metadata
from exp_tools.evaluation.report.model_card import model_card
from exp_tools.evaluation.report.original_labels import DROPPED, all_sets, with_original
from exp_tools.evaluation.report.participants import participants
from exp_tools.io import atomic_write, file_digest, write_csv, write_json
from exp_tools.models.model_file import ModelFacts
from exp_tools.models.registry import load_model
from exp_tools.ood.sets import judging
from exp_tools.params import EvaluateParams, load_params
from exp_tools.probing.cache import read_features
from exp_tools.project import (
    CARD,
    CURVES,
    DATA_METRICS,
    EVALUATE_METRICS,
    EXTERNAL_IMAGES,
    EXTERNAL_LABELS,
    FEATURES,
    FIGURES,
    IMAGES,
    LABELS,
    MODEL,
    PREDICTIONS,
    REPORT,
    SPLITS,
)
from exp_tools.system import beside
from exp_tools.taxonomy import task_label


class TestSet(NamedTuple):
    """Images to predict: their rows in `images`, the labels of all of that file's rows, and what `split` calls them."""

    images: Path
    labels: pd.DataFrame
    rows: np.ndarray
    split: np.ndarray | str


def main() -> None:
    params = load_params()
    device = prepare_machine(params.machine)
    model, facts = load_model(MODEL)
    if facts.task != params.task:
        raise UserError(
            f"{MODEL} is a model of the task {facts.task}, params.yaml says {params.task}: `dvc repro train`"
        )
    run = {
        "model": model.to(device, memory_format=torch.channels_last),
        "batch_size": params.evaluate.batch_size,
        "device": device,
        "precision": params.evaluate.precision,
        "tta": params.evaluate.tta,
    }
    own = own_set(facts)
    guesses = beside(colour_guesses, own, facts.classes)
    check_attributes(params.evaluate.subgroups, ATTRIBUTES, own.labels, "evaluate.subgroups")
    table, plain = predict(own, facts, run)
    test = table[table["split"] == "test"]
    dropped = table[table["split"] == DROPPED]
    report: dict[str, Any] = {"test": score(test, own.labels, facts, params.evaluate, dropped), "external": {}}
    if params.evaluate.tta != "none":
        without = plain[plain["split"] == "test"]
        report["test"]["tta"] = {
            "views": len(VIEWS[params.evaluate.tta]),
            "metrics_without": headline_metrics(
                *as_arrays(without, facts.classes)[:2], facts.classes, decisions(without, facts.classes)
            ),
        }
    prepared = json.loads(DATA_METRICS.read_text(encoding="utf-8"))
    split = read_splits(SPLITS)["split"]
    report["test"]["participants"] = participants(own.labels, split, facts.classes, prepared)
    report["test"]["validation"] = validation_scores(table[table["split"] == "val"], facts.classes, params.evaluate) | {
        "trials": params.evaluate.trials
    }
    report["test"] |= against_colours(guesses(), test, facts.classes, params.evaluate)
    report["test"]["robustness"] = robustness_of(test, own, facts, run, params.evaluate)
    tables = [table]
    for name, external, left_out in external_sets(facts):
        predicted, _ = predict(external, facts, run)
        tables.append(predicted)
        labels = external.labels.iloc[external.rows]
        apart = {"left_out": left_out, "robustness": None}
        report["external"][name] = score(predicted, labels, facts, params.evaluate) | apart
        balanced = report["external"][name]["metrics"]["balanced_accuracy"]
        print(f"{REPORT}: balanced accuracy {balanced:.3f} on {len(predicted):,} images of {name}")

    write_csv(PREDICTIONS, all_sets(tables))
    write_json(REPORT, report)
    summary = summary_of(report["test"])
    write_json(EVALUATE_METRICS, summary)
    title = f"{facts.source} test split"
    calibration = Calibration.from_dict(facts.calibration)
    write_curves(CURVES, test, facts.classes, calibration, report["test"])
    images = np.load(IMAGES, mmap_mode="r")
    draw_figures(
        FIGURES,
        with_rows(test, own),
        images,
        facts.classes,
        calibration,
        report["test"],
        title,
        params.evaluate.figures,
    )
    write_card(facts, report)
    print(
        f"{EVALUATE_METRICS}: balanced accuracy {summary['balanced_accuracy']:.3f} on {len(test):,} {facts.source} "
        f"test images; colour-statistics baseline {summary['baseline_balanced_accuracy']:.3f}"
    )


def own_set(facts: ModelFacts) -> TestSet:
    """Validation and test of the project's own data, in the model's classes; and what a verdict dropped from test."""
    labels = read_labels(LABELS)
    for column in {"dx", ORIGINAL} & set(labels):
        labels[column] = [task_label(facts.task, code) for code in labels[column]]
    unknown = sorted(set(labels["dx"]) - set(facts.classes))
    if unknown:
        raise UserError(f"{LABELS} has diagnoses that {MODEL} does not know: {', '.join(unknown)}; `dvc repro train`")
    splits = read_splits(SPLITS)
    split = splits["split"].to_numpy()
    if DROPPED_FROM in splits:
        split = np.where(splits[DROPPED_FROM] == "test", DROPPED, split)
    if not (split == "test").any():
        raise UserError(f"{SPLITS} has no test image: nothing can be said of the model. Change the section `split`")
    rows = np.concatenate([np.flatnonzero(split == name) for name in ("val", "test", DROPPED)])
    return TestSet(IMAGES, labels, rows, split[rows])


def external_sets(facts: ModelFacts) -> Iterator[tuple[str, TestSet, dict[str, int]]]:
    """The external test sets: name, images of the model's classes, and what was left out."""
    every = read_labels(EXTERNAL_LABELS)
    for name in every[SET].unique():
        of_set = every[every[SET] == name]
        known, left_out = as_task(of_set, facts.task, facts.classes)
        if left_out:
            print(_unmapped(name, left_out, len(of_set), facts.classes), file=sys.stderr, flush=True)
        labels = every.assign(dx=known["dx"].reindex(every.index))
        yield name, TestSet(EXTERNAL_IMAGES, labels, known.index.to_numpy(), f"external:{name}"), left_out


def _unmapped(name: str, left_out: dict[str, int], images: int, classes: Sequence[str]) -> str:
    named = ", ".join(f"{code} ({count:,})" for code, count in left_out.items())
    return (
        f"warning: {sum(left_out.values()):,} of {images:,} images of {name} are NOT scored, as the model has no class "
        f"for {named}; it has {', '.join(classes)}. Where a word of the set means one of these, say so in "
        f"data.external.{name}.classes (docs/data.md)"
    )


def predict(images: TestSet, facts: ModelFacts, run: dict[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The prediction table of a set, and that of the images as they are (equal without test-time augmentation)."""
    vocabulary = None if facts.vocabulary is None else Vocabulary.from_dict(facts.vocabulary)
    metadata = None if vocabulary is None else encode(images.labels, vocabulary)
    with judging(run["model"], facts.ood, MODEL) as judge:
        views = logits_of_features(images, metadata, run)
        if views is None:
            views = predict_views(images=images.images, index=images.rows, metadata=metadata, **run)
        unlike = judge.columns(images.images, images.rows, len(views))
    labels = images.labels.iloc[images.rows]
    known = facts.classes, Calibration.from_dict(facts.calibration), facts.prediction_sets
    tables = (
        with_original(prediction_table(labels, images.split, logits, *known), labels)
        for logits in (views.mean(axis=0, dtype=np.float64), views[0])
    )
    return next(tables).assign(**unlike), next(tables)


def logits_of_features(images: TestSet, metadata: np.ndarray | None, run: dict[str, Any]) -> np.ndarray | None:
    """Logits [1, N, C] of a probe from features that are computed already, which are those of its encoders in fp32.

    None where the network must run: for another architecture, other images, several views or another precision.
    """
    model = run["model"]
    if not hasattr(model, "classify") or (images.images, run["tta"], run["precision"]) != (IMAGES, "none", "fp32"):
        return None
    features = read_features(FEATURES, model.backbone.values(), file_digest(IMAGES), images.rows)
    if features is None:
        return None
    with torch.inference_mode():
        given = [torch.from_numpy(features)] + ([] if metadata is None else [torch.from_numpy(metadata[images.rows])])
        return model.classify(*(tensor.to(run["device"]) for tensor in given)).float().cpu().numpy()[None]


def score(
    table: pd.DataFrame,
    labels: pd.DataFrame,
    facts: ModelFacts,
    params: EvaluateParams,
    dropped: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """The report of one set, of which verdicts on labels took the predictions `dropped`."""
    return score_set(
        with_metadata(table, labels),
        facts.classes,
        calibration=Calibration.from_dict(facts.calibration),
        thresholds=facts.thresholds,
        costs=params.costs,
        prevalence=params.prevalence,
        subgroups=params.subgroups,
        set_coverage=facts.prediction_sets.get("coverage"),
        resamples=params.resamples,
        seed=params.seed,
        dropped=dropped,
    )


def colour_guesses(own: TestSet, classes: list[str]) -> np.ndarray:
    """Probabilities of the test images by logistic regression on 27 mean colours, fitted on the train split [N, C]."""
    labels = own.labels["dx"].map({name: place for place, name in enumerate(classes)}).to_numpy()
    train = np.flatnonzero(read_splits(SPLITS)["split"] == "train")
    images = np.load(IMAGES, mmap_mode="r")
    return colour_baseline(images, labels, train, own.rows[own.split == "test"], len(classes))


def against_colours(
    guesses: np.ndarray, test: pd.DataFrame, classes: list[str], params: EvaluateParams
) -> dict[str, dict[str, Any]]:
    """Headline scores of `colour_guesses` on the same images, and how much better the model is.

    Returns
    -------
    dict with `baseline` (headline metrics), and `above_baseline`: of balanced accuracy and macro AUC the model's score
    less that of the baseline, {"difference", "low", "high"}, 95 % by a paired bootstrap over lesions
    """
    probabilities, truth, _ = as_arrays(test, classes)
    groups = test["group_id"].to_numpy()
    rarest = min(np.unique(groups[truth == c]).size for c in np.unique(truth))
    found = paired_differences(
        headline_scorer(probabilities, truth, decisions(test, classes)),
        headline_scorer(guesses, truth),
        groups,
        len(test),
        resamples=params.resamples,
        seed=params.seed,
        units=dict.fromkeys(HEADLINE, max(rarest, 2)),
    )
    above = {}
    for name in ("balanced_accuracy", "macro_auc"):
        low, high = found[name].interval(0.95)
        above[name] = {"difference": found[name].value, "low": low, "high": high}
    return {"baseline": headline_metrics(guesses, truth, classes), "above_baseline": above}


def validation_scores(table: pd.DataFrame, classes: list[str], params: EvaluateParams) -> dict[str, float]:
    """Balanced accuracy on the images that chose the model, with its 95 % interval; NaN without an image."""
    if table.empty:
        return dict.fromkeys(("balanced_accuracy", "low", "high"), float("nan"))
    probabilities, labels, _ = as_arrays(table, classes)
    given = (probabilities, labels, table["group_id"], classes, decisions(table, classes))
    low, high = bootstrap_intervals(*given, resamples=params.resamples, seed=params.seed)["balanced_accuracy"]
    score = headline_metrics(probabilities, labels, classes, given[-1])["balanced_accuracy"]
    return {"balanced_accuracy": score, "low": low, "high": high}


def robustness_of(
    test: pd.DataFrame, own: TestSet, facts: ModelFacts, run: dict[str, Any], params: EvaluateParams
) -> dict[str, Any] | None:
    """The scores of test images that were disturbed, see `robustness_report`; None where none was asked for."""

    def predict_again(images: Path, rows: np.ndarray) -> pd.DataFrame:
        again = TestSet(images, own.labels.iloc[rows], np.arange(len(rows)), "test")
        return predict(again, facts, run)[0]

    return robustness_report(
        with_rows(test, own),
        np.load(IMAGES, mmap_mode="r"),
        facts.classes,
        predict_again,
        preprocessing=Preprocessing(**facts.preprocessing),
        kinds=params.robustness,
        lesions=params.robustness_lesions,
        threshold=facts.thresholds.get("melanoma"),
        resamples=params.resamples,
        seed=params.seed,
    )


def summary_of(report: dict[str, Any]) -> dict[str, float]:
    """The few numbers of `dvc metrics show` and `dvc exp show`."""
    summary = {key: report["metrics"][key] for key, metric in HEADLINE.items() if metric.in_summary}
    summary["lesion_balanced_accuracy"] = report["lesion_level"]["metrics"]["balanced_accuracy"]
    summary["baseline_balanced_accuracy"] = report["baseline"]["balanced_accuracy"]
    return summary


def with_rows(test: pd.DataFrame, own: TestSet) -> pd.DataFrame:
    """Test predictions with metadata and `row`, their place in images.npy."""
    return with_metadata(test, own.labels).assign(row=own.rows[own.split == "test"])


def write_card(facts: ModelFacts, report: dict[str, Any]) -> None:
    """MODEL_CARD.md, a function of the inputs only."""
    digests = {path.as_posix(): file_digest(path) for path in (LABELS, SPLITS, MODEL)}
    with atomic_write(CARD) as temporary:
        temporary.write_text(model_card(facts, report, digests), encoding="utf-8")


if __name__ == "__main__":
    run_main(main)
