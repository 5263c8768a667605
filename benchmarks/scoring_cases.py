"""The statistics behind the tables."""

import numpy as np

from benchmarks.case import Case, of_times, seconds
from exp_tools.evaluation.metrics.bootstrap import bootstrap_intervals, class_intervals
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
