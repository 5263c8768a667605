"""Scores of several results side by side, and whether they differ by more than chance: `exp-tools compare`.

Two things make a score uncertain: the lesions that happen to be in the test set, and the seed of training. The first is
bootstrapped over lesions, the second measured where there are several seeds; half-widths of the two are combined as the
root of the sum of their squares (Zou and Donner, Statistics in Medicine 27:1693, 2008). The spread between seeds is
pooled over everything compared on the same images: two or three seeds of one recipe alone say too little about it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from exp_tools.errors import UserError
from exp_tools.evaluation.compare.groups import Group, difference_of_sets
from exp_tools.evaluation.compare.runs import Run
from exp_tools.evaluation.compare.scores import LEVEL, Scored, widened
from exp_tools.evaluation.metrics.catalogue import metric_of
from exp_tools.evaluation.metrics.paired import FEWEST_DEGREES, SeedSpread, mcnemar, paired_differences, pooled_spread
from exp_tools.evaluation.predictions import as_arrays, lesion_view, prediction_table
from exp_tools.evaluation.probabilities import Calibration
from exp_tools.taxonomy import is_drawn

OF_VALIDATION = (
    "these are scores on validation, which chose epoch, calibration and thresholds: for choosing between runs, not for "
    "quoting; quote `--split test`, once"
)


def compare_groups(
    groups: Sequence[Group],
    baseline: Group,
    metrics: Sequence[str],
    *,
    split: str = "test",
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Score every group, and each against the baseline where both are of the same test images.

    Parameters
    ----------
    groups : what to compare; the baseline is one of them
    baseline : what the others are compared with
    metrics : as `check_metrics` gives them
    split : what the images are called
    resamples, seed : of the bootstrap

    Returns
    -------
    dict with
        split, baseline, metrics, comparisons (groups paired with the baseline), drawn (groups with synthetic images)
        level : of each interval of a difference: those of all comparisons in a metric hold at once with 95 %
        groups : a dict each, with
            name, makeup, runs (their names), images, lesions
            scores : metric -> {"mean" (over seeds), "sd" (between seeds, else between folds; NaN for one run), "low",
                "high", "small"}, 95 %; {} entries are missing for a class that the group does not know
            unpaired : why it is not compared with the baseline; "" for the baseline itself and where it is
            differences : metric -> {"difference", "low", "high", "clear"}, or None; clear: 0 lies outside, and the
                spread between seeds of training is known and in the interval
            mcnemar : {"images", "lesions"} -> {"gained", "lost", "p"}, p corrected for the number of comparisons; None
                where a side has several seeds, or unpaired
            changed : parameter -> [value of the baseline, own value], of the first run of each; {} where unknown
        notes : what to keep in mind

    Raises
    ------
    UserError : what the scores themselves refuse
    """
    draws = {"resamples": resamples, "seed": seed}
    reasons = {group.name: _why_unpaired(group, baseline) for group in groups}
    comparisons = sum(not reason for reason in reasons.values()) - 1
    level = 1 - (1 - LEVEL) / max(comparisons, 1)
    every = {group.name: Scored(group, metrics) for group in groups}
    alike = [scored for name, scored in every.items() if not reasons[name]]
    rows = []
    for group in groups:
        scored = every[group.name]
        spreads = _spreads([scored] if reasons[group.name] else alike, metrics)
        row: dict[str, Any] = {
            "name": group.name,
            "makeup": group.makeup,
            "runs": [run.name for run in group.runs],
            "images": group.images,
            "lesions": group.lesions,
            "scores": scored.scores(spreads, **draws),
            "unpaired": reasons[group.name],
            "differences": None,
            "mcnemar": None,
            "changed": {},
        }
        if group is not baseline:
            row["changed"] = _changed(baseline.runs[0], group.runs[0])
            if not reasons[group.name]:
                row["differences"] = _differences(scored, every[baseline.name], spreads, level, **draws)
                row["mcnemar"] = _mcnemar(group, baseline, comparisons)
        rows.append(row)
    drawn = [group.name for group in groups if group.repeats[0]["source"].map(is_drawn).any()]
    known = all(spread.freedom >= FEWEST_DEGREES for spread in _spreads(alike, metrics).values())
    return {
        "split": split,
        "baseline": baseline.name,
        "metrics": list(metrics),
        "comparisons": comparisons,
        "level": level,
        "drawn": drawn,
        "groups": rows,
        "notes": [*([OF_VALIDATION] if split == "val" else []), *_notes(groups, rows, baseline, known)],
    }


def ensemble(name: str, groups: Sequence[Group]) -> Group:
    """A group of one repeat: the mean probabilities of every repeat of the groups.

    Raises
    ------
    UserError : the groups know other classes or have other test images
    """
    tables = [(group, table) for group in groups for table in group.repeats]
    first = groups[0]
    for group in groups[1:]:
        if reason := _why_unpaired(group, first):
            raise UserError(f"--ensemble: {group.name} and {first.name} cannot be averaged: {reason}")
    mean = np.mean([as_arrays(table, first.classes)[0] for _, table in tables], axis=0)
    base = first.repeats[0]
    plain = Calibration.none(len(first.classes))
    # Logits whose softmax is the mean, so that the ensemble is a prediction table like any other.
    table = prediction_table(
        base, base["split"].to_numpy(), np.log(np.clip(mean, np.finfo(float).tiny, 1)), first.classes, plain
    )
    runs = tuple(run for group in groups for run in group.runs)
    return Group(name, runs, (table,), 1, first.classes, averaged=len(tables))


def _spreads(alike: Sequence[Scored], metrics: Sequence[str]) -> dict[str, SeedSpread]:
    return {name: pooled_spread(scored.of_seeds.get(name, []) for scored in alike) for name in metrics}


def _why_unpaired(group: Group, baseline: Group) -> str:
    if group.classes != baseline.classes:
        return (
            f"the classes differ: {', '.join(baseline.classes)} in {baseline.name}, "
            f"{', '.join(group.classes)} in {group.name}"
        )
    return difference_of_sets(baseline.repeats[0], group.repeats[0], (baseline.name, group.name))


def _differences(
    own: Scored, baseline: Scored, spreads: Mapping[str, SeedSpread], level: float, **draws: int
) -> dict[str, dict[str, Any]]:
    units = {name: min(own.units[name], baseline.units[name]) for name in own.metrics}
    found = paired_differences(
        own.scorer,
        baseline.scorer,
        own.lesions,
        len(own.lesions),
        level=level,
        units=units,
        identical=_identical(own.group, baseline.group),
        **draws,
    )
    table = {}
    for name, row in found.items():
        margin = spreads[name].margin([own.group.trainings, baseline.group.trainings], level)
        low, high = widened(row["difference"], row["low"], row["high"], margin)
        if low == low:
            widest = metric_of(name).high - metric_of(name).low
            low, high = max(low, -widest), min(high, widest)
        judged = spreads[name].freedom >= FEWEST_DEGREES
        clear = judged and (low > 0 or high < 0)
        table[name] = {"difference": row["difference"], "low": low, "high": high, "clear": clear}
    return table


def _identical(group: Group, baseline: Group) -> bool:
    columns = ["image_id", "dx", *(f"p_{code}" for code in group.classes)]
    if len(group.repeats) != len(baseline.repeats):
        return False
    pairs = zip(group.repeats, baseline.repeats, strict=True)
    return all(one[columns].equals(other[columns]) for one, other in pairs)


def _mcnemar(group: Group, baseline: Group, comparisons: int) -> dict[str, Any] | None:
    if len(group.repeats) > 1 or len(baseline.repeats) > 1:
        return None
    tables = [group.repeats[0], baseline.repeats[0]]
    by_image = [(table["predicted"] == table["dx"]).to_numpy() for table in tables]
    views = [lesion_view(table, group.classes) for table in tables]
    by_lesion = [predicted == labels for _, labels, _, predicted in views]
    return {
        "images": mcnemar(*by_image, comparisons=comparisons),
        "lesions": mcnemar(*by_lesion, comparisons=comparisons),
    }


def _changed(baseline: Run, own: Run) -> dict[str, list[Any]]:
    if not (baseline.params and own.params):
        return {}
    before, after = baseline.settings, own.settings
    other_model = before.get("model.name") != after.get("model.name")
    return {
        key: [before.get(key), after.get(key)]
        for key in dict.fromkeys([*before, *after])
        if before.get(key, ...) != after.get(key, ...)
        # Of another architecture every knob differs: its name says it all.
        and not (other_model and key.startswith("model.") and not (key in before and key in after))
    }


def _notes(
    groups: Sequence[Group], rows: Sequence[Mapping[str, Any]], baseline: Group, spread_known: bool
) -> list[str]:
    notes = [note for group in groups for note in group.notes]
    for group, row in zip(groups, rows, strict=True):
        if len(group.runs) > 1:
            notes.append(f"{group.name} is {', '.join(row['runs'])}")
        if row["unpaired"]:
            notes.append(f"{group.name} is not compared with {baseline.name}: {row['unpaired']}")
        elif group is not baseline and _identical(group, baseline):
            notes.append(f"{group.name} predicts exactly what {baseline.name} does")
        elif _same_recipe(group, baseline):
            notes.append(
                f"{group.name} has the parameters of {baseline.name}: any difference is of seed, fold, code or data"
            )
    comparisons = sum(row["differences"] is not None for row in rows)
    if spread_known:
        notes.append(
            "intervals cover other lesions and other seeds of training; the spread between seeds is taken to be alike "
            "for all that have these test images"
        )
    else:
        notes.append(
            "no verdict: there are too few seeds of training, whose differences are not in these intervals; queue more "
            "with `dvc exp run --queue -S 'train.seed=range(0,3)'`"
        )
    if any(row["mcnemar"] for row in rows):
        notes.append(
            "images of one lesion are not independent: of the two McNemar tests that of lesions is the sound one"
        )
    if comparisons > 1:
        notes.append(
            f"{comparisons} comparisons with {baseline.name}: intervals of differences are widened so that all hold at "
            "once with 95 %, and p is multiplied by their number (Bonferroni)"
        )
    if any(score["small"] for row in rows for score in row["scores"].values()):
        notes.append("* rests on fewer than 10 lesions: a hint at most")
    return notes


def _same_recipe(group: Group, baseline: Group) -> bool:
    first, own = baseline.runs[0], group.runs[0]
    return group is not baseline and group.averaged == 1 and bool(own.params) and own.settings == first.settings
