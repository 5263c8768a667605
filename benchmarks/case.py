"""A case: our rate against its limit or a rival, both measured in the same run, in turns."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

LEAST_REPEATS = 5


@dataclass(frozen=True)
class Case:
    """One row of the table.

    value, limit : ours, and the limit's or rival's, medians over the repeats, in `unit`
    ratio, spread : how much of the limit is reached (rates: ours / theirs; times: theirs / ours), so that more is
        better; median, least and greatest over the repeats
    target : the ratio that is wanted
    against : what the limit is, in words
    """

    name: str
    value: float
    unit: str
    limit: float
    against: str
    ratio: float
    spread: tuple[float, float]
    target: float

    @property
    def meets_target(self) -> bool:
        return self.ratio >= self.target


def compare(
    name: str,
    unit: str,
    amount: float,
    ours: Callable[[], object],
    rival: Callable[[], object],
    *,
    against: str,
    target: float,
    repeats: int,
    most_seconds: float | None = None,
) -> Case:
    """Time `ours` and `rival` in turns, once each to warm up; rates are `amount` a second.

    most_seconds : after so long, it is enough when there are LEAST_REPEATS
    """
    ours(), rival()
    pairs: list[tuple[float, float]] = []
    while len(pairs) < repeats:
        pairs.append((seconds(ours), seconds(rival)))
        if most_seconds and len(pairs) >= LEAST_REPEATS and sum(map(sum, pairs)) > most_seconds:
            break
    return of_pairs(name, unit, amount, pairs, against=against, target=target)


def of_pairs(
    name: str, unit: str, amount: float, pairs: list[tuple[float, float]], *, against: str, target: float
) -> Case:
    """The case of times (ours, rival's), each for `amount` units of work; the ratio is the median over the pairs."""
    ratios = sorted(theirs / mine for mine, theirs in pairs)
    value = amount / statistics.median(mine for mine, _ in pairs)
    limit = amount / statistics.median(theirs for _, theirs in pairs)
    spread = ratios[0], ratios[-1]
    return Case(name, value, unit, limit, against, statistics.median(ratios), spread, target)


def of_times(name: str, times: list[float], limit: float, against: str) -> Case:
    """The case of times in seconds that may be at most `limit`."""
    median = statistics.median(times)
    spread = limit / max(times), limit / min(times)
    return Case(name, median, "s", limit, against, limit / median, spread, 1)


def seconds(work: Callable[[], object]) -> float:
    """How long a piece of work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
