"""How often the 95 % intervals hold the truth, where it is known: drawn classifiers on drawn lesions.

python -m benchmarks.interval_coverage [--sets 1000] [--resamples 1000] [--lesions 5 10 20 50 100]

Each lesion has one to three images with related logits, each set is drawn again with as many lesions per class, and
the truth is the score of a set of 200,000 lesions. Prints, for each number of lesions in the rarest class and each
skill, how many of 100 intervals hold the truth, and next to it what the percentiles of the same resamples would. With
1,000 sets a figure is certain to about ±1.4.
"""

import argparse

import numpy as np
from numpy.typing import NDArray

from exp_tools.evaluation.metrics.bootstrap import bootstrap_intervals, bootstrap_metric_samples, class_intervals
from exp_tools.evaluation.metrics.classification import class_metrics, headline_metrics

HEADLINE = (
    "accuracy",
    "balanced_accuracy",
    "macro_auc",
    "macro_f1",
    "average_precision",
    "brier",
    "log_loss",
    "mcc",
    "cohen_kappa",
)
OF_RAREST = ("sensitivity", "auc")
SHARES = {"two classes": (3, 1), "seven classes": (12, 2, 2, 1, 1, 1, 1)}  # lesions per class, the rarest 1
SKILLS = {"fair": 1.5, "good": 2.0, "near perfect": 3.0}


def draw_set(
    lesions: tuple[int, ...], skill: float, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Probabilities [N, C], labels [N] and lesions [N] of a classifier of that skill (shift of the true logit)."""
    labels = np.repeat(np.arange(len(lesions)), lesions)
    centres = rng.normal(size=(labels.size, len(lesions))) + skill * np.eye(len(lesions))[labels]
    lesion = np.repeat(np.arange(labels.size), rng.integers(1, 4, labels.size))
    powers = np.exp(2 * (centres[lesion] + 0.5 * rng.normal(size=(lesion.size, len(lesions)))))
    return powers / powers.sum(axis=1, keepdims=True), labels[lesion], lesion


def coverage(
    shares: tuple[int, ...], rarest: int, skill: float, *, sets: int, resamples: int
) -> dict[str, tuple[float, float, float]]:
    """Metric -> truth, share of intervals that hold it, share of percentile intervals that do (NaN: not asked)."""
    codes = list("abcdefg")[: len(shares)]
    many = tuple(share * (200_000 // sum(shares)) for share in shares)
    probabilities, labels, _ = draw_set(many, skill, np.random.default_rng(2**32))
    whole = headline_metrics(probabilities, labels, codes)
    last = class_metrics(probabilities, labels, codes)[codes[-1]]
    truth = {name: whole[name] for name in HEADLINE} | {f"{name} of rarest": last[name] for name in OF_RAREST}
    held = {name: [0, 0] for name in truth}
    for seed in range(sets):
        rng = np.random.default_rng(seed)
        drawn = draw_set(tuple(share * rarest for share in shares), skill, rng)
        draws = {"resamples": resamples, "seed": seed}
        intervals = bootstrap_intervals(*drawn, codes, **draws)
        of_rarest = class_intervals(*drawn, codes, **draws)[codes[-1]]
        intervals |= {f"{name} of rarest": (of_rarest[name]["low"], of_rarest[name]["high"]) for name in OF_RAREST}
        samples = bootstrap_metric_samples(*drawn, codes, **draws)
        for name, value in truth.items():
            low, high = intervals[name]
            held[name][0] += low <= value <= high
            if name in samples:
                low, high = np.nanquantile(samples[name], [0.025, 0.975])
                held[name][1] += low <= value <= high
    return {
        name: (truth[name], ours / sets, theirs / sets if name in HEADLINE else float("nan"))
        for name, (ours, theirs) in held.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sets", type=int, default=1000, help="drawn sets a line")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples per set")
    parser.add_argument("--lesions", type=int, nargs="+", default=[5, 10, 20, 50, 100], help="of the rarest class")
    arguments = parser.parse_args()
    for title, shares in SHARES.items():
        for skill_name, skill in SKILLS.items():
            for rarest in arguments.lesions:
                rows = coverage(shares, rarest, skill, sets=arguments.sets, resamples=arguments.resamples)
                print(f"\n{title}, {skill_name}, {rarest} lesions in the rarest class")
                print(f"{'':22} {'truth':>6} {'held %':>7} {'percentiles %':>14}")
                for name, (truth, ours, theirs) in rows.items():
                    percentiles = "" if np.isnan(theirs) else f"{100 * theirs:14.1f}"
                    print(f"{name:22} {truth:6.3f} {100 * ours:7.1f} {percentiles}", flush=True)


if __name__ == "__main__":
    main()
