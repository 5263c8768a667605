"""The statistics behind the tables."""

from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.case import Case, of_times, seconds
from exp_tools.evaluation.metrics.bootstrap import bootstrap_intervals, class_intervals
from exp_tools.evaluation.plots.write import draw_figures, write_curves
from exp_tools.evaluation.predictions import prediction_table
from exp_tools.evaluation.probabilities import Calibration
from exp_tools.evaluation.report.build import score_set
from exp_tools.taxonomy import DIAGNOSES

IMAGES, RESAMPLES, LIMIT = 10_000, 2000, 5.0


def bootstrap_case(repeats: int) -> Case:
    """Intervals of every headline metric and of every class's."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, len(DIAGNOSES), IMAGES)
    logits = generator.normal(size=(IMAGES, len(DIAGNOSES))) + 2 * np.eye(len(DIAGNOSES))[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    lesions = np.sort(generator.integers(0, 7470, IMAGES))

    def work() -> None:
        for intervals in (bootstrap_intervals, class_intervals):
            intervals(probabilities, labels, lesions, list(DIAGNOSES), resamples=RESAMPLES)

    times = [seconds(work) for _ in range(repeats)]
    return of_times("bootstrap", times, LIMIT, f"{RESAMPLES:,} resamples of {IMAGES:,} predictions in {LIMIT:g} s")


def report_case(images: int, limit: float, scratch: Path, repeats: int) -> Case:
    """All of `evaluate` but the network: every score with its interval, subgroups, gaps, curves and figures."""
    generator = np.random.default_rng(0)
    codes = list(DIAGNOSES)
    of_image = np.sort(generator.integers(0, round(0.75 * images), images))
    numbers = generator.choice(len(codes), images, p=[0.03, 0.05, 0.11, 0.01, 0.11, 0.67, 0.02])[of_image]
    lesions = of_image.astype(str)
    labels = pd.DataFrame({
        "image_id": [f"image{number}" for number in range(images)],
        "lesion_id": lesions,
        "group_id": lesions,
        "source": "drawn",
        "dx": np.array(codes)[numbers],
        "dx_type": generator.choice(["histo", "follow_up", "consensus"], images),
        "age": generator.choice(np.arange(5, 90, 5), images).astype(float),
        "sex": generator.choice(["male", "female"], images),
        "localization": generator.choice(["back", "trunk", "face", "lower extremity", "abdomen"], images),
    })  # fmt: skip
    logits = generator.normal(size=(images, len(codes))) + 2 * np.eye(len(codes))[numbers]
    calibration = Calibration.none(len(codes))
    table = prediction_table(labels, "test", logits, codes, calibration)
    table = table.assign(**labels[["dx_type", "age", "sex", "localization"]], row=np.arange(images) % 50)
    pixels = generator.integers(0, 256, (50, 96, 96, 3), dtype=np.uint8)
    folder = scratch / f"report-{images}"
    folder.mkdir()

    def work() -> None:
        thresholds = {"melanoma": 0.2, "abstain": 0.5}
        options = {"costs": None, "resamples": RESAMPLES, "seed": 0}
        report = score_set(table, codes, calibration=calibration, thresholds=thresholds, **options)
        write_curves(folder, table, codes, calibration, report)
        draw_figures(folder, table, pixels, codes, calibration, report, "drawn")

    work()
    times = [seconds(work) for _ in range(repeats)]
    return of_times(f"report_{images}", times, limit, f"all scores and figures of {images:,} images in {limit:g} s")
