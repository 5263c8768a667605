"""The difference of two results on the same test images, with its interval.

Paired: both are scored on the same resamples of lesions, so that what is hard for both cancels out.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exp_tools.evaluation.metrics.bootstrap import weighted_intervals
from exp_tools.evaluation.metrics.catalogue import DIFFERENCE
from exp_tools.evaluation.metrics.weighted import Scorer

FEWEST_DEGREES = 2  # with one (two seeds in all) an interval would reach 13 standard deviations


def paired_differences(
    scorer: Scorer,
    baseline: Scorer,
    groups: ArrayLike,
    num_images: int,
    *,
    level: float,
    resamples: int,
    seed: int,
    units: Mapping[str, int],
    identical: bool = False,
) -> dict[str, dict[str, float]]:
    """The difference of every score from that of the baseline, by a paired bootstrap over lesions.

    Parameters
    ----------
    scorer, baseline : weights [N, R] -> dict name -> [R], of predictions of the same images in the same order
    groups : [N], the lesion group of each image
    num_images : N
    level : share of such intervals that hold the true difference
    resamples, seed : of the bootstrap
    units : on how many lesion groups each name rests
    identical : the predictions are the same, so that there is no difference to be unsure of

    Returns
    -------
    dict name -> {"difference", "low", "high"}, NaN where undefined. Where no resample shows a difference the interval
    is as far as so many lesions of which none differs reach (Clopper and Pearson 1934), for scores from 0 to 1.
    """

    def score(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        own, other = scorer(weights), baseline(weights)
        return {name: own[name] - other[name] for name in own}

    estimates = {name: float(value[0]) for name, value in score(np.ones((num_images, 1))).items()}
    intervals = weighted_intervals(
        score,
        groups,
        num_images,
        resamples=resamples,
        seed=seed,
        level=level,
        scales=dict.fromkeys(estimates, DIFFERENCE),
        units=units,
    )
    table = {}
    for name, difference in estimates.items():
        low, high = intervals[name]
        if low == high and not identical:
            reach = 1 - ((1 - level) / 2) ** (1 / units[name])
            low, high = difference - reach, difference + reach
        table[name] = {"difference": difference, "low": low, "high": high}
    return table


class SeedSpread(NamedTuple):
    """How much scores differ between seeds of training: the standard deviation, and its degrees of freedom."""

    deviation: float
    freedom: int

    def margin(self, trainings: Sequence[int], level: float) -> float:
        """Half the interval of a mean over seeds, or of the difference of two, that is due to the seeds alone.

        Parameters
        ----------
        trainings : how many seeds the mean is of, or each of the two
        level : share of such intervals that hold the truth

        Returns
        -------
        0.0 where fewer than FEWEST_DEGREES say nothing of use about the spread
        """
        from scipy.special import stdtrit

        if self.freedom < FEWEST_DEGREES:
            return 0.0
        quantile = float(stdtrit(self.freedom, (1 + level) / 2))
        return quantile * self.deviation * math.sqrt(sum(1 / count for count in trainings))


def pooled_spread(scores: Iterable[Sequence[float]]) -> SeedSpread:
    """The spread between seeds, taken to be alike for all that is compared, as in an analysis of variance.

    Parameters
    ----------
    scores : of each result the scores of its seeds, any number of them; undefined ones are left out
    """
    several = [np.asarray(seeds) for seeds in scores if len(seeds) > 1 and np.isfinite(seeds).all()]
    freedom = sum(seeds.size - 1 for seeds in several)
    squares = sum(float(((seeds - seeds.mean()) ** 2).sum()) for seeds in several)
    return SeedSpread(math.sqrt(squares / freedom) if freedom else float("nan"), freedom)


def mcnemar(right: ArrayLike, baseline: ArrayLike, *, comparisons: int = 1) -> dict[str, Any]:
    """The exact test of whether one of two is right more often than the other, where they disagree.

    Parameters
    ----------
    right, baseline : bool [N], which cases each has right; the cases should be independent: lesions rather than images
    comparisons : p is multiplied by this (Bonferroni), to 1 at most

    Returns
    -------
    dict with `gained` (cases that only `right` has right), `lost` (only the baseline) and `p`, two-sided; p is 1 where
    they never disagree

    References
    ----------
    McNemar, Psychometrika 12:153, 1947; exact binomial form.
    """
    from scipy.stats import binomtest

    right, baseline = np.asarray(right, dtype=bool), np.asarray(baseline, dtype=bool)
    gained, lost = int((right & ~baseline).sum()), int((baseline & ~right).sum())
    p = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return {"gained": gained, "lost": lost, "p": min(1.0, p * comparisons)}


def remembered(scorer: Scorer) -> Scorer:
    """The scorer, with its answers kept: a run's own interval and its differences ask for the same resamples."""
    from hashlib import md5

    known: dict[bytes, dict[str, NDArray[np.float64]]] = {}

    def answer(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        key = md5(np.ascontiguousarray(weights), usedforsecurity=False).digest()
        if key not in known:
            known[key] = scorer(weights)
        return known[key]

    return answer


def mean_scorer(scorers: Sequence[Scorer]) -> Scorer:
    """The mean of several scorers, name by name."""

    def score(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        answers = [scorer(weights) for scorer in scorers]
        return {name: np.mean([answer[name] for answer in answers], axis=0) for name in answers[0]}

    return score
