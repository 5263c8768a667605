"""Whether a difference is more than chance, and what may be said of it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exp_tools.evaluation.compare.groups import Group
from exp_tools.evaluation.compare.paired import Difference, SeedSpread, paired_differences
from exp_tools.evaluation.compare.scores import LEVEL, Scored, partner_of
from exp_tools.evaluation.metrics.catalogue import metric_of
from exp_tools.evaluation.metrics.weighted import Scorer
from exp_tools.evaluation.validation import corrected

ONE_SEED = "one seed a side: differences of seeds are not in this interval"
FEW_SEEDS = "too few seeds of training to say how much they differ"
AN_AVERAGE = "an average of models is one more model, and how much such averages differ is unknown"
SAME = "the same predictions"


def why_unjudged(group: Group, baseline: Group, spread_known: bool) -> str:
    """Why there is no verdict on a group that is paired with the baseline; empty: there is one."""
    if group is baseline:
        return ""
    if group.averaged > 1 or baseline.averaged > 1:
        return AN_AVERAGE
    if identical(group, baseline):
        return SAME
    if group.trainings == 1 and baseline.trainings == 1:
        return ONE_SEED
    return "" if spread_known else FEW_SEEDS


def differences(
    own: Scored, baseline: Scored, spreads: Mapping[str, SeedSpread], **draws: int
) -> dict[str, Difference]:
    """The difference of a group from the baseline in each metric that both have, by lesions and by seeds."""
    shared = [name for name in own.metrics if name in baseline.metrics]
    units = {name: min(own.units[name], baseline.units[name]) for name in shared}
    found = paired_differences(
        _only(own.scorer, shared),
        _only(baseline.scorer, shared),
        own.lesions,
        len(own.lesions),
        units=units,
        identical=identical(own.group, baseline.group),
        **draws,
    )
    trainings = (own.group.trainings, baseline.group.trainings)
    return {name: replace(one, seeds=spreads[name], trainings=trainings) for name, one in found.items()}


def _only(scorer: Scorer, names: Sequence[str]) -> Scorer:
    def score(weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        found = scorer(weights)
        return {name: found[name] for name in names}

    return score


def judge(found: Mapping[str, Difference], level: float, comparisons: int) -> dict[str, dict[str, Any]]:
    """Intervals and verdicts of one comparison; no verdict where there are 0 comparisons.

    Any verdict of a comparison of equals is false with 5 % at most, over all comparisons: each has its share of the
    5 % (Bonferroni); within it the first score is judged first, and the others only where that one is clear, corrected
    for their number (Holm). A sensitivity counts with its specificity: better only where the other is no lower.
    """
    names = list(found)
    p = {name: one.p() for name, one in found.items()} if comparisons else dict.fromkeys(names, float("nan"))
    first = p[names[0]]
    p = {names[0]: first} | {
        name: max(first, value) for name, value in corrected({name: p[name] for name in names[1:]}).items()
    }
    p = {name: min(1.0, value * comparisons) if comparisons else value for name, value in p.items()}
    table = {}
    for name, one in found.items():
        low, high = one.interval(level)
        widest = metric_of(name).high - metric_of(name).low
        low, high = (max(low, -widest), min(high, widest)) if low == low else (low, high)
        table[name] = {"difference": one.value, "low": low, "high": high, "p": p[name], "verdict": ""}
        if p[name] < 1 - LEVEL:
            better = (one.value > 0) != metric_of(name).lower_is_better
            table[name]["verdict"] = "better" if better else "worse"
    for name, row in table.items():
        other = table.get(partner_of(name))
        if row["verdict"] and other and row["difference"] * other["difference"] < 0:
            row["verdict"] = "trade-off"
    return table


def identical(group: Group, baseline: Group) -> bool:
    """Whether both have the same probabilities for the same images, repeat by repeat."""
    columns = ["image_id", "dx", *(f"p_{code}" for code in group.classes)]
    if len(group.repeats) != len(baseline.repeats):
        return False
    pairs = zip(group.repeats, baseline.repeats, strict=True)
    return all(one[columns].equals(other[columns]) for one, other in pairs)
