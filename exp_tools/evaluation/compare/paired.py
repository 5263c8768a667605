"""The difference of two results on the same test images, with its interval.

Paired: both are scored on the same resamples of lesions, so that what is hard for both cancels out.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exp_tools.evaluation.metrics.bootstrap import Spread, weighted_spreads
from exp_tools.evaluation.metrics.catalogue import DIFFERENCE
from exp_tools.evaluation.metrics.weighted import Scorer

FEWEST_DEGREES = 2  # with one (two seeds in all) an interval would reach 13 standard deviations


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


@dataclass(frozen=True)
class Difference:
    """By how much a score differs from that of the baseline, and how far chance could have made it so.

    spread : of the difference over lesions
    identical : the predictions are the same, so that there is no difference to be unsure of
    seeds, trainings : the spread between seeds of training, and of how many seeds each side is the mean
    """

    spread: Spread
    identical: bool = False
    seeds: SeedSpread | None = None
    trainings: tuple[int, ...] = ()

    @property
    def value(self) -> float:
        return self.spread.estimate

    def interval(self, level: float) -> tuple[float, float]:
        """(low, high), (nan, nan) where undefined; `level` is the share of such intervals that hold the truth.

        Where no resample shows a difference it is as far as so many lesions of which none differs reach (Clopper and
        Pearson 1934), for scores from 0 to 1. Lesions and seeds are independent: their margins add up as squares.
        """
        low, high = self.spread.interval(level)
        if low == high and not self.identical:
            reach = 1 - ((1 - level) / 2) ** (1 / max(self.spread.units, 1))
            low, high = self.value - reach, self.value + reach
        if self.seeds is None:
            return low, high
        return widened(self.value, low, high, self.seeds.margin(self.trainings, level))

    def p(self) -> float:
        """One less the highest level at which 0 lies outside the interval, two-sided; NaN where undefined."""
        if math.isnan(self.interval(0.5)[0]):
            return float("nan")
        outside, inside = 0.0, 30.0  # of -log(1 - level)
        for _ in range(40):
            middle = (outside + inside) / 2
            low, high = self.interval(-math.expm1(-middle))
            outside, inside = (middle, inside) if low > 0 or high < 0 else (outside, middle)
        return math.exp(-outside)


def widened(centre: float, low: float, high: float, margin: float) -> tuple[float, float]:
    """An interval with one more source of uncertainty, independent of the first: margins add up as squares."""
    return centre - math.hypot(centre - low, margin), centre + math.hypot(high - centre, margin)


def paired_differences(
    scorer: Scorer,
    baseline: Scorer,
    groups: ArrayLike,
    num_images: int,
    *,
    resamples: int,
    seed: int,
    units: Mapping[str, int],
    identical: bool = False,
) -> dict[str, Difference]:
    """The difference of every score from that of the baseline, by a paired bootstrap over lesions.

    Parameters
    ----------
    scorer, baseline : weights [N, R] -> dict name -> [R], of predictions of the same images in the same order
    groups : [N], the lesion group of each image
    num_images : N
    resamples, seed : of the bootstrap
    units : on how many lesion groups each name rests
    identical : the predictions are the same
    """

    def score(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        own, other = scorer(weights), baseline(weights)
        return {name: own[name] - other[name] for name in own}

    scales = dict.fromkeys(units, DIFFERENCE)
    spreads = weighted_spreads(score, groups, num_images, resamples=resamples, seed=seed, scales=scales, units=units)
    return {name: Difference(spread, identical) for name, spread in spreads.items()}


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
