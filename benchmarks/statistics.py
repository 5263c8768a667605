"""Do intervals, verdicts, thresholds and calibration keep their promises? Simulations in which the truth is known.

python -m benchmarks.statistics [--sets 1000] [--resamples 500] [--processes 2] [--only coverage verdicts ...]

Writes the tables as Markdown to stdout, for docs/evaluation.md. A drawn network gives logits to images of drawn
lesions: those of a class lie around that class's own, images of one lesion near each other. Its probabilities are
known functions of the logits, so every true score is known from a set of some hundred thousand lesions.
"""

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from exp_tools.evaluation.calibrate import choose_threshold, fit_probabilities
from exp_tools.evaluation.compare.compare import compare_groups
from exp_tools.evaluation.compare.disturbed import chosen_lesions, disturbed_scores
from exp_tools.evaluation.compare.groups import make_group
from exp_tools.evaluation.compare.paired import paired_differences
from exp_tools.evaluation.compare.runs import Run
from exp_tools.evaluation.metrics.bootstrap import bootstrap_intervals, class_intervals
from exp_tools.evaluation.metrics.catalogue import HEADLINE, in_tables
from exp_tools.evaluation.metrics.class_calibration import class_calibration
from exp_tools.evaluation.metrics.classification import class_metrics, headline_metrics
from exp_tools.evaluation.metrics.melanoma import melanoma_report
from exp_tools.evaluation.metrics.prevalence import prevalence_report
from exp_tools.evaluation.metrics.subgroups import subgroup_gaps
from exp_tools.evaluation.metrics.weighted import headline_scorer
from exp_tools.evaluation.predictions import prediction_table
from exp_tools.evaluation.probabilities import Calibration
from exp_tools.evaluation.validation import ranking_scores, softmax

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
SHARES = np.array([0.031, 0.044, 0.097, 0.010, 0.082, 0.723, 0.013])
"""Of the lesions of HAM10000."""
MEL = CLASSES.index("mel")
SKILL, WITHIN, SHARPNESS, STATED = 2.2, 0.5, 1.3, 0.01
"""Distance of a class's centre from the others, spread of a lesion's images, overconfidence, stated prevalence."""
SIZES = (160, 500, 1100)


class Drawn(NamedTuple):
    """Images of drawn lesions: logits [N, C], labels [N] and lesions [N]."""

    logits: NDArray[np.float64]
    labels: NDArray[np.int64]
    lesion: NDArray[np.int64]

    @property
    def probabilities(self) -> NDArray[np.float64]:
        return softmax(SHARPNESS * self.logits)

    @property
    def decided(self) -> NDArray[np.int64]:
        """The class of the highest probability over its share: balanced decisions."""
        return (self.probabilities / SHARES).argmax(axis=1)


def counts_of(lesions: int) -> NDArray[np.int64]:
    """Lesions of each class, at least two; a stratified split keeps the shares."""
    return np.maximum(np.round(SHARES * lesions).astype(int), 2)


def draw(counts: NDArray[np.int64], rng: np.random.Generator, skill: float = SKILL) -> Drawn:
    """Log-posteriors of normal classes, less a constant: softmax of them is calibrated."""
    labels = np.repeat(np.arange(len(counts)), counts)
    centres = skill * np.eye(len(counts))[labels] + rng.normal(size=(labels.size, len(counts)))
    lesion = np.repeat(np.arange(labels.size), rng.choice([1, 2, 3], labels.size, p=[0.7, 0.2, 0.1]))
    seen = centres[lesion] + WITHIN * rng.normal(size=(lesion.size, len(counts)))
    return Drawn(np.log(counts / counts.sum()) + skill * seen / (1 + WITHIN**2), labels[lesion], lesion)


# --------------------------------------------------------------------------------- intervals


def scored(drawn: Drawn, threshold: float, resamples: int, seed: int) -> dict[str, tuple[float, float, float]]:
    """Score -> value, low, high, of everything that the model card prints; NaN bounds without resamples."""
    probabilities, labels, groups, decided = drawn.probabilities, drawn.labels, drawn.lesion, drawn.decided
    draws = {"resamples": max(resamples, 1), "seed": seed}
    found: dict[str, tuple[float, float, float]] = {}

    def add(name: str, value: float, bounds: Sequence[float]) -> None:
        found[name] = (value, *(bounds if resamples else (np.nan, np.nan)))

    values = headline_metrics(probabilities, labels, CLASSES, decided)
    bounds = bootstrap_intervals(probabilities, labels, groups, CLASSES, decided, **draws) if resamples else {}
    for name in in_tables():
        add(HEADLINE[name].label, values[name], bounds.get(name, ()))
    of_class = class_metrics(probabilities, labels, CLASSES, decided)
    spans = class_intervals(probabilities, labels, groups, CLASSES, decided, **draws) if resamples else {}
    for code in ("mel", "nv", "df"):
        for name in ("sensitivity", "specificity", "precision", "auc"):
            span = spans[code][name] if resamples else {}
            add(f"{name} of {code}", of_class[code][name], (span.get("low"), span.get("high")))
    mel = melanoma_report(probabilities[:, MEL], labels == MEL, groups, threshold=threshold, **draws)
    for name, span in mel["intervals"].items():
        add(f"melanoma: {name.replace('_', ' ')}", mel[name], (span["low"], span["high"]))
    use = prevalence_report(
        probabilities[:, MEL], labels == MEL, probabilities[:, MEL] >= threshold, groups, stated=STATED, **draws
    )
    for name in ("ppv", "npv"):
        span = use["intervals"][name]
        add(f"melanoma: {name.upper()} at {STATED:.0%}", use[name], (span["low"], span["high"]))
    for row in use["net_benefit"]:
        if row["threshold"] in (0.01, 0.05):
            add(f"melanoma: net benefit at {row['threshold']:.0%}", row["model"], (row["low"], row["high"]))
    for code, row in class_calibration(probabilities, labels, groups, CLASSES, **draws).items():
        if code in ("mel", "nv", "bcc"):
            for name, span in row["intervals"].items():
                words = "observed / expected" if name == "ratio" else f"calibration {name}"
                add(f"{words} of {code}", row[name], (span["low"], span["high"]))
    return found


def held(seed: int, lesions: int, truth: dict[str, float], threshold: float, resamples: int) -> dict[str, float]:
    """Score -> whether its interval holds the truth; NaN where there is none."""
    drawn = draw(counts_of(lesions), np.random.default_rng([seed, lesions]))
    found = scored(drawn, threshold, resamples, seed)
    answer = {}
    for name, (_, low, high) in found.items():
        none = low != low or high != high
        answer[name] = float("nan") if none else float(low - 1e-9 <= truth[name] <= high + 1e-9)
    other = worse_model(drawn, np.random.default_rng([seed, 7]))
    scorers = [headline_scorer(one.probabilities, one.labels, one.decided) for one in (drawn, other)]
    units = dict.fromkeys(HEADLINE, 2)
    differences = paired_differences(
        *scorers, drawn.lesion, drawn.labels.size, resamples=resamples, seed=seed, units=units
    )
    for name in ("macro_auc", "balanced_accuracy"):
        low, high = differences[name].interval(0.95)
        said = f"difference in {HEADLINE[name].label}"
        answer[said] = float(low <= truth[said] <= high)
    return answer


def worse_model(drawn: Drawn, rng: np.random.Generator) -> Drawn:
    """Another network's logits of the same images: the same evidence with noise."""
    return drawn._replace(logits=drawn.logits + 1.2 * rng.normal(size=drawn.logits.shape))


def coverage(sets: int, resamples: int, spread: Callable) -> Iterable[str]:
    """Of 100 intervals of 95 %, how many hold the truth."""
    columns, threshold = {}, 0.1
    for lesions in SIZES:
        counts = counts_of(lesions)
        many = draw(counts * (700_000 // counts.sum()), np.random.default_rng(2**32))
        truth = {name: value for name, (value, *_) in scored(many, threshold, 0, 0).items()}
        other = worse_model(many, np.random.default_rng(2**33))
        values = [headline_metrics(one.probabilities, one.labels, CLASSES, one.decided) for one in (many, other)]
        truth |= {f"difference in {one.label}": values[0][name] - values[1][name] for name, one in HEADLINE.items()}
        task = partial(held, lesions=lesions, truth=truth, threshold=threshold, resamples=resamples)
        rows = pd.DataFrame(spread(task, range(sets)))
        columns[lesions] = rows.mean(), rows.notna().mean(), truth
    yield "| 95 % interval of | true value | " + " | ".join(f"{lesions:,} lesions" for lesions in SIZES) + " |"
    yield "| --- |" + " ---: |" * (1 + len(SIZES))
    for name in columns[SIZES[0]][0].index:
        true = columns[SIZES[-1]][2][name]
        cells = [percent(columns[lesions][0][name], columns[lesions][1][name]) for lesions in SIZES]
        yield f"| {name} | {true:.3f} | " + " | ".join(cells) + " |"


def percent(share: float, there: float) -> str:
    """A share as a percentage; how often there was an interval, where not always."""
    if share != share:
        return "none given"
    return f"{100 * share:.0f} %" + (f" (given in {100 * there:.0f} %)" if there < 0.995 else "")


# --------------------------------------------------------------------------------- disturbed images

HARMS = (1.2, 1.2, 1.15, 1.0, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
"""Noise that each kind of disturbance puts on the evidence: two are as bad, so that chance makes one the worst."""
OF_DISTURBED = ("balanced_accuracy", "macro_auc", "melanoma_sensitivity")


def disturbed_report(lesions: int, times: int, rng: np.random.Generator, resamples: int, seed: int) -> dict[str, Any]:
    """The robustness report of `lesions` * `times` lesions, chosen from a test set of 1,100 * `times`."""
    drawn = draw(counts_of(1100) * times, rng)
    chosen = chosen_lesions(drawn.lesion, drawn.labels, lesions * times, seed)
    drawn = Drawn(drawn.logits[chosen], drawn.labels[chosen], drawn.lesion[chosen])

    def table(noise: float) -> pd.DataFrame:
        logits = drawn.logits + noise * rng.normal(size=drawn.logits.shape)
        made = prediction_table(images_of(drawn), "test", SHARPNESS * logits, CLASSES, Calibration.none(len(CLASSES)))
        return made.assign(predicted=np.array(CLASSES)[(softmax(SHARPNESS * logits) / SHARES).argmax(axis=1)])

    given = ((str(place), 3, table(noise)) for place, noise in enumerate(HARMS))
    return disturbed_scores(table(0), given, CLASSES, 0.1, resamples=resamples, seed=seed)


def disturbed_held(seed: int, lesions: int, truth: list[dict[str, float]], resamples: int) -> dict[str, float]:
    """Score -> the share of kinds whose interval holds the truth; whether that of the worst holds its kind's truth."""
    found = disturbed_report(lesions, 1, np.random.default_rng([seed, lesions]), resamples, seed)
    pairs = [(row["differences"], true) for row, true in zip(found["rows"], truth, strict=True)]
    answer = {name: float(np.mean([_holds(row[name], true[name]) for row, true in pairs])) for name in OF_DISTURBED}
    worst = found["worst"]
    of_one = found["rows"][int(worst["kind"])]["differences"]["balanced_accuracy"]
    true = truth[int(worst["kind"])]["balanced_accuracy"]
    return answer | {"worst": float(_holds(worst, true)), "worst as one kind": float(_holds(of_one, true))}


def disturbed(sets: int, resamples: int, spread: Callable) -> Iterable[str]:
    """Whether differences of disturbed from clean images hold the truth, and that of the worst kind does."""
    yield "| lesions chosen | " + " | ".join(OF_DISTURBED).replace("_", " ") + " | the worst kind | it, as one kind |"
    yield "| ---: |" + " ---: |" * (len(OF_DISTURBED) + 2)
    for lesions in (100, 300):
        many = disturbed_report(lesions, 100, np.random.default_rng(2**35), 1, 0)
        truth = [{name: row["differences"][name]["difference"] for name in OF_DISTURBED} for row in many["rows"]]
        task = partial(disturbed_held, lesions=lesions, truth=truth, resamples=resamples)
        shares = pd.DataFrame(spread(task, range(sets))).mean()
        yield f"| {lesions} | " + " | ".join(f"{share:.1%}".replace("%", " %") for share in shares) + " |"


# --------------------------------------------------------------------------------- verdicts


def run_of(name: str, drawn: Drawn, rng: np.random.Generator, noise: float) -> Run:
    """One training: its own noise on the evidence, of a strength that differs between seeds."""
    strength = max(noise + SEED_SD * rng.normal(), 0)
    logits = drawn.logits + strength * rng.normal(size=drawn.logits.shape)
    table = prediction_table(images_of(drawn), "test", logits, CLASSES, Calibration.none(len(CLASSES)))
    table["predicted"] = np.array(CLASSES)[(softmax(logits) / SHARES).argmax(axis=1)]
    return Run(name, table, CLASSES, {})


def images_of(drawn: Drawn) -> pd.DataFrame:
    lesion = [f"L{number:05}" for number in drawn.lesion]
    return pd.DataFrame(
        {
            "image_id": [f"I{number:05}" for number in range(drawn.labels.size)],
            "lesion_id": lesion,
            "group_id": lesion,
            "source": "drawn",
            "dx": np.array(CLASSES)[drawn.labels],
        }
    )


METRICS = ("macro_auc", "balanced_accuracy", "macro_f1", "partial_auc:mel", "sensitivity:mel", "specificity:mel")
NOISE, BETTER, SEED_SD = 1.6, 0.95, 0.085
"""Noise of a recipe, of one whose macro AUC is 5 points higher, and its spread between seeds, worth 1 point."""


def true_score(lesions: int, noise: float) -> float:
    """Macro AUC of a recipe, the mean over many seeds on many lesions."""
    counts, rng = counts_of(lesions), np.random.default_rng(2**34)
    many = draw(counts * (30_000 // counts.sum()), rng, 1.8)
    found = []
    for strength in np.maximum(noise + SEED_SD * rng.normal(size=100), 0):
        probabilities = softmax(many.logits + strength * rng.normal(size=many.logits.shape))
        areas = [ranking_scores(probabilities[:, c], many.labels == c)[0] for c in range(len(CLASSES))]
        found.append(np.mean(areas))
    return float(np.mean(found))


def verdicts_of(
    seed: int, seeds: int, lesions: int, other: float, truth: Sequence[float], resamples: int
) -> dict[str, float]:
    """Which verdicts a comparison of two recipes gives, and whether its intervals hold what is true of the recipes."""
    rng = np.random.default_rng([seed, lesions, seeds])
    drawn = draw(counts_of(lesions), rng, 1.8)
    groups = [
        make_group(name, [run_of(f"{name}{n}", drawn, rng, noise) for n in range(seeds)])
        for name, noise in (("a", NOISE), ("b", other))
    ]
    found = compare_groups(groups, groups[0], METRICS, resamples=resamples, seed=seed)["groups"]
    rows = found[1]["differences"]
    return {
        "any": float(any(row["verdict"] for row in rows.values())),
        "primary": float(bool(rows[METRICS[0]]["verdict"])),
        "difference": rows[METRICS[0]]["difference"],
        "sd": found[0]["scores"][METRICS[0]]["sd"],
        "score held": float(_holds(found[0]["scores"][METRICS[0]], truth[0])),
        "difference held": float(_holds(rows[METRICS[0]], truth[1] - truth[0])),
    }


def _holds(bounds: dict, value: float) -> bool:
    return bounds["low"] <= value <= bounds["high"]


def verdicts(sets: int, resamples: int, spread: Callable) -> Iterable[str]:
    """How often equal recipes are told apart, and how often different ones."""
    yield (
        "| `exp-tools compare`, 1,100 lesions | seeds a side | true difference in macro AUC | any verdict | primary | "
        "interval of the score holds | of the difference |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for name, seeds, other in (
        ("equal recipes", 1, NOISE),
        ("equal recipes", 2, NOISE),
        ("equal recipes", 3, NOISE),
        ("5 points apart", 3, BETTER),
    ):
        truth = [true_score(1100, noise) for noise in (NOISE, other)]
        task = partial(verdicts_of, seeds=seeds, lesions=1100, other=other, truth=truth, resamples=resamples)
        rows = pd.DataFrame(spread(task, range(sets if seeds > 1 else max(sets // 10, 1))))
        sd = "" if seeds == 1 else f" (sd between seeds {np.sqrt((rows['sd'] ** 2).mean()):.3f})"
        shares = [
            f"{100 * rows[column].mean():.1f} %" for column in ("any", "primary", "score held", "difference held")
        ]
        yield f"| {name} | {seeds} | {truth[1] - truth[0]:.3f}{sd} | {' | '.join(shares)} |"


# --------------------------------------------------------------------------------- subgroups


def gaps_of(seed: int, lesions: int, gap: float, resamples: int) -> dict[str, float]:
    """Whether a card lists a gap, and one between the sexes, where men's logits are spoilt by `gap`."""
    rng = np.random.default_rng([seed, lesions, int(100 * gap)])
    drawn = draw(counts_of(lesions), rng)
    number = drawn.lesion.max() + 1
    nevus = np.zeros(number, bool)
    nevus[drawn.lesion] = drawn.labels == CLASSES.index("nv")
    people = {
        "sex": rng.choice(["male", "female"], number),
        # As on real skin, the young and the trunk have most of the nevi: no gap, and scores that look like one.
        "age": np.where(nevus, rng.integers(20, 70, number), rng.integers(40, 90, number)),
        "localization": np.where(
            nevus & (rng.random(number) < 0.5),
            "trunk",
            rng.choice(["back", "face", "trunk", "lower extremity"], number),
        ),
    }
    people = {name: values[drawn.lesion] for name, values in people.items()}
    noise = gap * rng.normal(size=drawn.logits.shape) * (people["sex"] == "male")[:, None]
    calibration = Calibration.none(len(CLASSES))
    table = prediction_table(images_of(drawn), "test", drawn.logits + noise, CLASSES, calibration)
    table = table.assign(**people, dx_type="histo")
    found = subgroup_gaps(table, CLASSES, resamples=resamples, seed=seed, melanoma_threshold=0.1)
    right = table["predicted"] == table["dx"]
    return {
        "any": float(any(row["clear"] for row in found)),
        "sex": float(any(row["clear"] and row["attribute"] == "sex" for row in found)),
        "true": float(right[table["sex"] == "female"].mean() - right[table["sex"] == "male"].mean()),
        "families": len(found),
    }


def gaps(sets: int, resamples: int, spread: Callable) -> Iterable[str]:
    """How often a card lists gaps between subgroups that are not there, and that are."""
    yield "| gaps of a model card | lesions | gap in accuracy between the sexes | families | any gap listed | of sex |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for name, lesions, gap in (("none", 1100, 0.0), ("none", 300, 0.0), ("150 lesions a side", 300, 2.19)):
        rows = pd.DataFrame(spread(partial(gaps_of, lesions=lesions, gap=gap, resamples=resamples), range(sets)))
        yield (
            f"| {name} | {lesions:,} | {rows['true'].mean():.3f} | {rows['families'].mean():.0f} | "
            f"{100 * rows['any'].mean():.1f} % | {100 * rows['sex'].mean():.1f} % |"
        )


# --------------------------------------------------------------------------------- threshold and calibration


def achieved(seed: int, melanomas: int, wanted: float) -> dict[str, float]:
    """The sensitivity on new lesions of a threshold that so many melanomas of validation chose."""
    rng = np.random.default_rng([seed, melanomas])
    counts = np.zeros(len(CLASSES), dtype=int)
    counts[MEL], counts[-2] = melanomas, 10
    counts = np.maximum(counts, 1)
    own, new = draw(counts, rng), draw(20 * counts, rng)  # the same mix: it is in the logits
    threshold, *_ = choose_threshold(own.probabilities[:, MEL], own.labels == MEL, own.lesion, wanted)
    of_new = new.labels == MEL
    caught = pd.Series(new.probabilities[of_new, MEL] >= threshold).groupby(new.lesion[of_new]).mean()
    return {"sensitivity": float(caught.mean())}


def thresholds(sets: int, resamples: int, spread: Callable) -> Iterable[str]:
    """The sensitivity that the melanoma threshold reaches on new lesions, on average over validation sets."""
    yield "| melanomas in validation | asked | reached on average | 5 % of sets are below |"
    yield "| ---: | ---: | ---: | ---: |"
    for melanomas, wanted in ((19, 0.95), (30, 0.95), (100, 0.95), (30, 0.9), (100, 0.9)):
        rows = pd.DataFrame(spread(partial(achieved, melanomas=melanomas, wanted=wanted), range(sets)))["sensitivity"]
        yield f"| {melanomas} | {wanted:.0%} | {100 * rows.mean():.1f} % | {100 * rows.quantile(0.05):.0f} % |"


SAMPLERS = ("none", "sqrt", "balanced")


def resplit(seed: int, sampler: str) -> dict[str, float]:
    """Slope and ratio on test, of probabilities fitted on validation, in one random split of the same lesions."""
    power = {"none": 0.0, "sqrt": 0.5, "balanced": 1.0}[sampler]
    counts = counts_of(2200)
    drawn = draw(counts, np.random.default_rng(5))
    shares = counts / counts.sum()
    seen = shares ** (1 - power) / (shares ** (1 - power)).sum()
    # What a network that saw these shares gives out, overconfident.
    logits = 1.8 * (drawn.logits - np.log(shares) + np.log(seen))
    half = np.random.default_rng([seed, 11]).permutation(drawn.lesion.max() + 1) < drawn.lesion.max() / 2
    val = half[drawn.lesion]
    temperature, bias = fit_probabilities(logits[val], drawn.labels[val], np.log(shares / seen))
    probabilities = softmax(logits[~val] / temperature + bias)
    labels, lesion = drawn.labels[~val], drawn.lesion[~val]
    found = class_calibration(probabilities, labels, lesion, CLASSES, resamples=1)
    many = [code for place, code in enumerate(CLASSES) if (labels == place).sum() >= 100]
    return {f"{name} {code}": found[code][name] for code in many for name in ("slope", "ratio")}


def calibrations(sets: int, resamples: int, spread: Callable) -> Iterable[str]:
    """Calibration of classes with 100 cases and more on test, over random splits by lesion."""
    yield "| sampler | class | mean slope | mean observed / expected |"
    yield "| --- | --- | ---: | ---: |"
    for sampler in SAMPLERS:
        rows = pd.DataFrame(spread(partial(resplit, sampler=sampler), range(min(sets, 200)))).mean()
        for code in [name.split()[1] for name in rows.index if name.startswith("slope")]:
            yield f"| {sampler} | {code} | {rows[f'slope {code}']:.3f} | {rows[f'ratio {code}']:.3f} |"


PARTS = {
    "coverage": coverage,
    "verdicts": verdicts,
    "gaps": gaps,
    "thresholds": thresholds,
    "calibration": calibrations,
    "disturbed": disturbed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sets", type=int, default=1000, help="simulated sets a row (default: 1000)")
    parser.add_argument("--resamples", type=int, default=500, help="bootstrap resamples a set (default: 500)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default: all)")
    options = parser.parse_args()
    with ProcessPoolExecutor(options.processes) as pool:
        spread = partial(pool.map, chunksize=max(1, options.sets // (8 * options.processes)))
        for name in options.only:
            for line in PARTS[name](options.sets, options.resamples, spread):
                print(line, flush=True)
            print(flush=True)


if __name__ == "__main__":
    main()
