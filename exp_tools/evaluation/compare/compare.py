"""Scores of several results side by side, and whether they differ by more than chance: `exp-tools compare`.

Two things make a score uncertain: the lesions that happen to be in the test set, and the seed of training. The first is
bootstrapped over lesions, the second measured where there are several seeds; half-widths of the two are combined as the
root of the sum of their squares (Zou and Donner, Statistics in Medicine 27:1693, 2008). The spread between seeds is
pooled over everything compared on the same images: two or three seeds of one recipe alone say too little about it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from exp_tools.evaluation.compare.groups import Group, why_unpaired
from exp_tools.evaluation.compare.judge import FEW_SEEDS, ONE_SEED, SAME, differences, judge, why_unjudged
from exp_tools.evaluation.compare.paired import (
    FEWEST_DEGREES,
    SeedSpread,
    mcnemar,
    pooled_spread,
)
from exp_tools.evaluation.compare.runs import LEAKY, SCHEME, Run
from exp_tools.evaluation.compare.scores import LEVEL, Scored
from exp_tools.evaluation.metrics.catalogue import label_of
from exp_tools.evaluation.predictions import lesion_view
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
    costs: Mapping[str, Mapping[str, float]] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Score every group, and each against the baseline where both are of the same test images.

    Parameters
    ----------
    groups : what to compare; the baseline is one of them
    baseline : what the others are compared with
    metrics : as `check_metrics` gives them, the first is the primary score
    split : what the images are called
    costs : of mistakes, for the metric `cost`
    resamples, seed : of the bootstrap

    Returns
    -------
    dict with
        split, baseline, metrics, comparisons (groups judged against the baseline), drawn (groups with synthetic images)
        leaky : groups with a run that was split by image
        level : of each interval of a difference: those of all comparisons in a metric hold at once with 95 %
        groups : a dict each, with
            name, makeup, runs (their names), images, lesions
            scores : metric -> {"mean" (over seeds), "sd" (between seeds, else between folds; NaN for one run), "low",
                "high", "small"}, 95 %; {} entries are missing for a class that the group does not know
            unpaired : why it is not compared with the baseline; "" for the baseline itself and where it is
            unjudged : why there is no verdict although it is paired; "" where there is one
            differences : metric -> {"difference", "low", "high", "p", "verdict"}, or None. verdict: better, worse,
                trade-off (of a sensitivity and its specificity), or "". p is corrected, see `judge.judge`; NaN where
                unjudged
            mcnemar : {"images", "lesions"} -> {"gained", "lost", "p"}, p corrected for the number of comparisons; None
                where a side has several seeds, or unpaired
            changed : parameter -> [value of the baseline, own value], of the first run of each; {} where unknown
        notes : what to keep in mind

    Raises
    ------
    UserError : what the scores themselves refuse
    """
    draws = {"resamples": resamples, "seed": seed}
    reasons = {group.name: why_unpaired(group, baseline) for group in groups}
    every = {group.name: Scored(group, metrics, costs) for group in groups}
    alike = [scored for name, scored in every.items() if not reasons[name] and scored.group.averaged == 1]
    known = all(spread.freedom >= FEWEST_DEGREES for spread in _spreads(alike, metrics).values())
    unjudged = {group.name: reasons[group.name] or why_unjudged(group, baseline, known) for group in groups}
    others = [group for group in groups if group is not baseline and not reasons[group.name]]
    comparisons = sum(unjudged[group.name] in ("", ONE_SEED, FEW_SEEDS) for group in others)
    level = 1 - (1 - LEVEL) / max(comparisons, 1)
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
            "unjudged": "",
            "differences": None,
            "mcnemar": None,
            "changed": {},
        }
        if group is not baseline:
            row["changed"] = _changed(baseline.runs[0], group.runs[0])
            if not reasons[group.name]:
                row["unjudged"] = unjudged[group.name]
                found = differences(scored, every[baseline.name], spreads, **draws)
                row["differences"] = judge(found, level, comparisons if not row["unjudged"] else 0)
                row["mcnemar"] = _mcnemar(group, baseline, comparisons)
        rows.append(row)
    drawn = [group.name for group in groups if group.repeats[0]["source"].map(is_drawn).any()]
    return {
        "split": split,
        "baseline": baseline.name,
        "metrics": list(metrics),
        "comparisons": comparisons,
        "level": level,
        "drawn": drawn,
        "leaky": [group.name for group in groups if any(run.params.get(SCHEME) == LEAKY for run in group.runs)],
        "groups": rows,
        "notes": [*([OF_VALIDATION] if split == "val" else []), *_notes(groups, rows, baseline)],
    }


def _spreads(alike: Sequence[Scored], metrics: Sequence[str]) -> dict[str, SeedSpread]:
    return {name: pooled_spread(scored.of_seeds.get(name, []) for scored in alike) for name in metrics}


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


def _notes(groups: Sequence[Group], rows: Sequence[Mapping[str, Any]], baseline: Group) -> list[str]:
    notes = [note for group in groups for note in group.notes]
    judged = [row for row in rows if row["differences"] is not None and not row["unjudged"]]
    for group, row in zip(groups, rows, strict=True):
        if len(group.runs) > 1:
            notes.append(f"{group.name} is {', '.join(row['runs'])}")
        if row["unpaired"]:
            notes.append(f"{group.name} is not compared with {baseline.name}: {row['unpaired']}")
        elif row["unjudged"] == SAME:
            notes.append(f"{group.name} predicts exactly what {baseline.name} does")
        elif _same_recipe(group, baseline):
            notes.append(
                f"{group.name} has the parameters of {baseline.name}: any difference is of seed, fold, code or data"
            )
        if row["unjudged"] and row["unjudged"] != SAME:
            notes.append(f"no verdict on {group.name}: {row['unjudged']}")
    if judged:
        notes.append(
            "intervals cover other lesions and other seeds of training; the spread between seeds is taken to be alike "
            "for all that have these test images"
        )
        first = label_of(next(iter(judged[0]["differences"])))
        notes.append(
            f"verdicts: {first} is the primary score (`--primary`, to be chosen before looking); the others are judged "
            "only where it is clear, corrected for their number (Holm). All verdicts together are false 5 % of the "
            "time where nothing differs"
        )
    if any(row["mcnemar"] for row in rows):
        notes.append(
            "McNemar's p is of these two trained models on other lesions, not of their recipes; images of one lesion "
            "are not independent, so the test of lesions is the sound one"
        )
    if len(judged) > 1:
        notes.append(
            f"{len(judged)} comparisons with {baseline.name}: intervals of differences are widened so that all hold at "
            "once with 95 %, and p is multiplied by their number (Bonferroni)"
        )
    if any(score["small"] for row in rows for score in row["scores"].values()):
        notes.append("* rests on fewer than 10 lesions: a hint at most")
    return notes


def _same_recipe(group: Group, baseline: Group) -> bool:
    first, own = baseline.runs[0], group.runs[0]
    return group is not baseline and group.averaged == 1 and bool(own.params) and own.settings == first.settings
