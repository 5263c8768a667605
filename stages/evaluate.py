"""Predict validation, test and external sets with the trained model, and score test and external sets.

Reads   models/model.safetensors, data/prepared/{labels.csv, images.npy}, data/splits.csv, data/external/
Writes  data/predictions.csv, metrics/{evaluate, classes, intervals, evaluate_external}.json, plots/{curves, figures}/
"""

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from exp_tools.data.files import write_csv, write_json
from exp_tools.data.labels import read_labels
from exp_tools.data.metadata import Vocabulary, encode
from exp_tools.data.splits import read_splits
from exp_tools.data.task_view import as_task
from exp_tools.errors import run_main
from exp_tools.evaluation import curves, figures
from exp_tools.evaluation.baseline import colour_baseline
from exp_tools.evaluation.calibration import reliability_before_after
from exp_tools.evaluation.intervals import bootstrap_intervals
from exp_tools.evaluation.metrics import class_metrics, confusion, headline_metrics
from exp_tools.evaluation.predict import predict_logits
from exp_tools.evaluation.predictions import as_arrays, prediction_table
from exp_tools.models.artifact import ModelFacts, load_model
from exp_tools.params import EvaluateParams, load_params
from exp_tools.taxonomy import task_label
from exp_tools.training.machine import prepare_machine
from stages.paths import (
    CLASS_METRICS,
    CURVES,
    EVALUATE_METRICS,
    EXTERNAL,
    EXTERNAL_SCORES,
    FIGURES,
    IMAGES,
    INTERVALS,
    LABELS,
    MODEL,
    PREDICTIONS,
    SPLITS,
)


def main() -> None:
    params = load_params()
    device = prepare_machine(params.machine)
    model, facts = load_model(MODEL)
    model = model.to(device, memory_format=torch.channels_last)
    vocabulary = None if facts.vocabulary is None else Vocabulary.from_dict(facts.vocabulary)
    labels = read_labels(LABELS)
    labels["dx"] = [task_label(facts.task, code) for code in labels["dx"]]
    split = read_splits(SPLITS)["split"].to_numpy()

    rows = np.concatenate([np.flatnonzero(split == name) for name in ("val", "test")])
    run = {"batch_size": params.evaluate.batch_size, "device": device, "precision": params.evaluate.precision}
    metadata = None if vocabulary is None else encode(labels, vocabulary)
    logits = predict_logits(model, IMAGES, rows, metadata=metadata, **run)
    table = prediction_table(labels.iloc[rows], split[rows], logits, facts.classes, facts.temperature)
    external, external_scores = predict_external(model, facts, vocabulary, params.evaluate, run)
    write_csv(PREDICTIONS, pd.concat([table, *external], ignore_index=True))
    write_json(EXTERNAL_SCORES, external_scores)

    test = table[table["split"] == "test"]
    metrics = headline_metrics(*as_arrays(test, facts.classes)[:2], facts.classes)
    baseline = baseline_metrics(labels["dx"], split, facts.classes)
    write_json(EVALUATE_METRICS, metrics | {"baseline_balanced_accuracy": baseline["balanced_accuracy"]})
    score_test(test, facts, params.evaluate)
    print(
        f"{EVALUATE_METRICS}: balanced accuracy {metrics['balanced_accuracy']:.3f} on {len(test):,} {facts.source} "
        f"test images; colour-statistics baseline {baseline['balanced_accuracy']:.3f}"
    )


def baseline_metrics(dx: pd.Series, split: np.ndarray, classes: list[str]) -> dict[str, float]:
    """Headline scores of logistic regression on nine mean colours, for the same split."""
    labels = dx.map({name: place for place, name in enumerate(classes)}).to_numpy()
    train, test = np.flatnonzero(split == "train"), np.flatnonzero(split == "test")
    guesses = colour_baseline(np.load(IMAGES, mmap_mode="r"), labels, train, test, len(classes))
    return headline_metrics(guesses, labels[test], classes)


def predict_external(
    model: nn.Module, facts: ModelFacts, vocabulary: Vocabulary | None, params: EvaluateParams, run: dict[str, Any]
) -> tuple[list[pd.DataFrame], dict[str, Any]]:
    """Predictions and scores of the sets that are only tested on, by name."""
    tables, scores = [], {}
    for name in pd.read_csv(EXTERNAL / "sets.csv", dtype=str)["name"]:
        every = read_labels(EXTERNAL / name / "labels.csv")
        metadata = None if vocabulary is None else encode(every, vocabulary)
        labels, left_out = as_task(every, facts.task, facts.classes)
        images = EXTERNAL / name / "images.npy"
        logits = predict_logits(model, images, labels.index.to_numpy(), metadata=metadata, **run)
        table = prediction_table(labels, f"external:{name}", logits, facts.classes, facts.temperature)
        tables.append(table)
        probabilities, truth, _ = as_arrays(table, facts.classes)
        intervals = bootstrap_intervals(
            probabilities, truth, table["group_id"], facts.classes, resamples=params.resamples, seed=params.seed
        )
        scores[name] = {
            "images": len(table),
            "left_out": left_out,
            "metrics": headline_metrics(probabilities, truth, facts.classes),
            "intervals": {metric: {"low": low, "high": high} for metric, (low, high) in intervals.items()},
        }
        balanced = scores[name]["metrics"]["balanced_accuracy"]
        print(f"{EXTERNAL_SCORES}: balanced accuracy {balanced:.3f} on {len(table):,} images of {name}")
    return tables, scores


def score_test(test: pd.DataFrame, facts: ModelFacts, params: EvaluateParams) -> None:
    """Write per-class scores, intervals, curves and pictures of the test split."""
    classes = facts.classes
    probabilities, labels, logits = as_arrays(test, classes)
    predicted = logits.argmax(axis=1)
    per_class = class_metrics(probabilities, labels, classes)
    write_json(CLASS_METRICS, {"classes": per_class})
    intervals = bootstrap_intervals(
        probabilities, labels, test["group_id"], classes, resamples=params.resamples, seed=params.seed
    )
    write_json(INTERVALS, {name: {"low": low, "high": high} for name, (low, high) in intervals.items()})

    roc = curves.roc_points(probabilities, labels, classes)
    precision_recall = curves.precision_recall_points(probabilities, labels, classes)
    reliability = reliability_before_after(logits, labels, facts.temperature)
    write_csv(CURVES / "roc.csv", roc)
    write_csv(CURVES / "precision_recall.csv", precision_recall)
    write_csv(CURVES / "reliability.csv", reliability)
    write_csv(CURVES / "confusion.csv", curves.confusion_pairs(labels, predicted, classes))
    write_csv(CURVES / "classes.csv", curves.class_bars(per_class))

    title = f"{facts.source} test split"
    figures.draw_confusion(FIGURES / "confusion.png", confusion(labels, predicted, len(classes)), classes, title)
    figures.draw_roc(FIGURES / "roc.png", roc, per_class, title)
    figures.draw_precision_recall(FIGURES / "precision_recall.png", precision_recall, per_class, title)
    figures.draw_reliability(FIGURES / "reliability.png", reliability, title)
    figures.draw_class_bars(FIGURES / "classes.png", per_class, title)


if __name__ == "__main__":
    run_main(main)
