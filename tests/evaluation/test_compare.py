"""Comparing experiments: what is grouped, what is paired, what is refused, and every number by another way."""

import io
import json
import math

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers.predictions import CLASSES, predictions, scaled
from helpers.project import ROOT, Project
from scipy.stats import norm, t
from sklearn.metrics import average_precision_score, balanced_accuracy_score, brier_score_loss, f1_score, roc_auc_score

from exp_tools.cli import main as cli
from exp_tools.errors import UserError
from exp_tools.evaluation.compare.compare import compare_groups
from exp_tools.evaluation.compare.ensemble import ensemble
from exp_tools.evaluation.compare.forest import draw_forest
from exp_tools.evaluation.compare.groups import group_runs, make_group
from exp_tools.evaluation.compare.paired import mcnemar, paired_differences, pooled_spread
from exp_tools.evaluation.compare.render import as_markdown, as_table, as_text
from exp_tools.evaluation.compare.runs import Run, read_run
from exp_tools.evaluation.compare.scores import check_metrics
from exp_tools.evaluation.predictions import prediction_table
from exp_tools.evaluation.validation import corrected

PREDICTIONS = "data/predictions.csv"


def run(name: str, table: pd.DataFrame | None = None, **params) -> Run:
    table = predictions() if table is None else table
    return Run(name, table.sort_values("image_id", ignore_index=True), CLASSES, params)


def kfold(name: str, fold: int, seed: int = 0, **changes) -> Run:
    table = predictions(seed, images=40, first=40 * fold)
    params = {"train.seed": seed, "split.scheme": "kfold", "split.folds": 3, "split.fold": fold, "train.lr": 0.1}
    return Run(name, table, CLASSES, params | changes)


def single(name: str, table: pd.DataFrame):
    return make_group(name, [run(name, table)])


def sklearn_scores(table: pd.DataFrame) -> dict[str, float]:
    labels = table["dx"].map(CLASSES.index).to_numpy()
    p = table[[f"p_{code}" for code in CLASSES]].to_numpy()
    p = p / p.sum(axis=1, keepdims=True)
    predicted = p.argmax(axis=1)
    return {
        "balanced_accuracy": balanced_accuracy_score(labels, predicted),
        "macro_f1": f1_score(labels, predicted, average="macro"),
        "macro_auc": roc_auc_score(labels, p, multi_class="ovr"),
        "brier": sum(brier_score_loss(labels == c, p[:, c]) for c in range(3)),
        "sensitivity:mel": (predicted[labels == 1] == 1).mean(),
        "auc:mel": roc_auc_score(labels == 1, p[:, 1]),
        "average_precision:nv": average_precision_score(labels == 2, p[:, 2]),
    }


def test_every_score_is_that_of_scikit_learn_and_seeds_are_averaged():
    tables = [predictions(seed) for seed in range(3)]
    group = make_group("seeds", [run(f"s{seed}", table, **{"train.seed": seed}) for seed, table in enumerate(tables)])
    wanted = [sklearn_scores(table) for table in tables]
    row = compare_groups([group], group, list(wanted[0]), resamples=100)["groups"][0]
    assert row["makeup"] == "3 seeds"
    for name, score in row["scores"].items():
        seeds = [scores[name] for scores in wanted]
        assert score["mean"] == pytest.approx(np.mean(seeds), abs=1e-9), name
        assert score["sd"] == pytest.approx(np.std(seeds, ddof=1), abs=1e-9), name
        assert score["low"] < score["mean"] < score["high"], name


def test_one_run_under_two_names_is_no_second_seed():
    with pytest.raises(UserError, match="x: workspace and one are one run, of one seed; name it once"):
        make_group("x", [run("workspace", **{"train.seed": 0}), run("one", **{"train.seed": 0})])
    exact = make_group("probe", [run(f"s{seed}", **{"train.seed": seed}) for seed in range(2)])
    assert exact.makeup == "2 seeds"  # of a fit that draws nothing


def test_folds_are_pooled_with_each_image_once_and_their_spread_is_told():
    runs = [kfold(f"fold-{fold}", fold) for fold in range(3)]
    whole = single("whole", pd.concat([each.table for each in runs]))
    (pooled,) = group_runs([(None, [each]) for each in runs])
    assert (pooled.name, pooled.makeup, pooled.images, pooled.notes) == ("fold", "3 folds", 120, ())
    found = compare_groups([pooled, whole], whole, ["macro_auc", "accuracy", "auc:mel"], resamples=100)["groups"]
    for key in ("mean", "low", "high"):
        assert found[0]["scores"]["accuracy"][key] == pytest.approx(found[1]["scores"]["accuracy"][key], abs=1e-12)
    folds = [sklearn_scores(each.table) for each in runs]  # ranks of one model are not those of another
    for name in ("macro_auc", "auc:mel"):
        assert found[0]["scores"][name]["mean"] == pytest.approx(np.mean([scores[name] for scores in folds]))
    accuracies = [(each.table["predicted"] == each.table["dx"]).mean() for each in runs]
    assert found[0]["scores"]["accuracy"]["sd"] == pytest.approx(np.std(accuracies, ddof=1))
    assert math.isnan(found[1]["scores"]["accuracy"]["sd"])


def test_folds_of_several_seeds_are_pooled_seed_by_seed():
    runs = [kfold(f"f{fold}-s{seed}", fold, seed) for fold in range(3) for seed in (4, 7)]
    (group,) = group_runs([(None, [each]) for each in runs])
    assert (group.makeup, group.images) == ("2 seeds x 3 folds", 120)
    assert [len(table) for table in group.repeats] == [120, 120]
    expected = pd.concat([each.table for each in runs if each.seed == 7])["p_mel"].to_numpy()
    assert group.repeats[1]["p_mel"].to_numpy() == pytest.approx(expected)


def test_folds_that_are_not_there_are_told():
    two = make_group("cv", [kfold("a", 0), kfold("b", 1)])
    assert two.notes == ("cv: 2 of 3 folds: not every image was predicted",)
    ragged = [kfold("a", 0), kfold("b", 1), kfold("c", 2), kfold("d", 0, seed=1)]
    group = make_group("cv", ragged)
    assert len(group.repeats) == 1
    assert group.notes == ("cv: d left out, as the seed has 1 of 3 folds",)


def test_what_is_not_of_one_split_is_not_pooled():
    with pytest.raises(UserError, match=r"a and b share 80 of 120 and 120 test images"):
        make_group("x", [run("a"), run("b", predictions(first=40))])
    other = predictions(first=120).assign(group_id=["LES_00007", *[f"Z{n}" for n in range(119)]])
    with pytest.raises(UserError, match=r"lesion LES_00007 is in the test sets of both a and b \(1 such"):
        make_group("x", [run("a"), run("b", other)])
    relabelled = predictions(1)
    relabelled.loc[3, "dx"] = "mel"
    with pytest.raises(UserError, match=r"1 images have another diagnosis, such as IMG_00003"):
        make_group("x", [run("a", **{"train.seed": 0}), run("b", relabelled, **{"train.seed": 1})])


def test_runs_are_grouped_by_their_parameters_but_seed_and_fold():
    recipe = {"train.lr": 0.1}
    runs = [
        run("sgd-0", **recipe, **{"train.seed": 0}),
        run("adam-0", **{"train.lr": 0.2, "train.seed": 0}),
        run("sgd-1", **recipe, **{"train.seed": 1}),
        run("branch", **recipe, **{"train.seed": 1}),  # a seed that is there: other code
        run("file"),  # nothing known of its parameters
        run("another file"),
    ]
    groups = group_runs([(None, [each]) for each in runs])
    members = {group.name: [each.name for each in group.runs] for group in groups}
    assert members == {
        "sgd": ["sgd-0", "sgd-1"],
        "adam-0": ["adam-0"],
        "branch": ["branch"],
        "file": ["file"],
        "another file": ["another file"],
    }
    named = group_runs([("mine", [runs[0], runs[2]]), (None, [runs[3]])])
    assert [(group.name, len(group.runs)) for group in named] == [("mine", 2), ("branch", 1)]
    with pytest.raises(UserError, match="two of the compared are called 'file'"):
        group_runs([(None, [runs[4]]), (None, [runs[4]])])


def test_a_difference_is_paired_by_lesion():
    """d = +1, 0, -1 in 50, 330, 20 lesions of one image: mean 0.075, standard error sd / 20."""
    before = np.zeros(400)
    before[:200] = 1
    after = before.copy()
    after[:20], after[200:250] = 0, 1

    def scorer(values):
        return lambda weights: {"accuracy": values @ weights / weights.sum(axis=0)}

    found = paired_differences(
        scorer(after), scorer(before), np.arange(400), 400, resamples=4000, seed=0, units={"accuracy": 400}
    )["accuracy"]
    low, high = found.interval(0.95)
    half = 1.96 * (after - before).std() / 20
    assert found.value == pytest.approx(0.075)
    assert low == pytest.approx(0.075 - half, abs=0.05 * half)
    assert high == pytest.approx(0.075 + half, abs=0.05 * half)
    assert found.p() == pytest.approx(2 * norm.sf(0.075 * 20 / (after - before).std()), rel=0.5)
    assert found.interval(1 - found.p())[0] == pytest.approx(0, abs=1e-6)
    assert high - low < 0.6 * 2 * 1.96 * math.sqrt(before.var() / 400 + after.var() / 400)


def test_no_difference_in_n_lesions_is_not_certainty_unless_the_predictions_are_the_same():
    one = predictions(skill=20)
    other = one.assign(p_bkl=one["p_bkl"] * 0.9 + 0.03, p_mel=one["p_mel"] * 0.9 + 0.03, p_nv=one["p_nv"] * 0.9 + 0.04)
    groups = [single("a", one), single("b", other), single("same", one.copy())]
    rows = compare_groups(groups, groups[0], ["accuracy"], resamples=50)
    assert rows["comparisons"] == 1  # the same predictions are no comparison
    reach = 1 - 0.025 ** (1 / 120)
    assert rows["groups"][1]["differences"]["accuracy"]["high"] == pytest.approx(reach)
    assert rows["groups"][2]["differences"]["accuracy"]["high"] == 0
    assert "same predicts exactly what a does" in rows["notes"]


def test_several_comparisons_widen_the_intervals_and_raise_p():
    tables = [predictions(seed, skill=skill) for seed, skill in ((0, 1), (1, 2), (2, 1.5))]
    a, b, c = (single(name, table) for name, table in zip("abc", tables, strict=True))
    two = compare_groups([a, b], a, ["accuracy"], resamples=500)
    three = compare_groups([a, b, c], a, ["accuracy"], resamples=500)
    assert (two["level"], three["level"]) == (pytest.approx(0.95), pytest.approx(0.975))
    narrow, wide = (found["groups"][1]["differences"]["accuracy"] for found in (two, three))
    ratio = (wide["high"] - wide["low"]) / (narrow["high"] - narrow["low"])
    assert ratio == pytest.approx(2.2414 / 1.96, rel=0.02)
    p = [found["groups"][1]["mcnemar"]["lesions"]["p"] for found in (two, three)]
    assert p[1] == pytest.approx(min(1, 2 * p[0]))
    right = [(table["predicted"] == table["dx"]).to_numpy() for table in tables]
    assert two["groups"][1]["mcnemar"]["images"]["gained"] == (right[1] & ~right[0]).sum()


def test_mcnemar_by_hand():
    baseline = np.array([0] * 8 + [1] * 2 + [1] * 30, dtype=bool)
    right = np.array([1] * 8 + [0] * 2 + [1] * 30, dtype=bool)
    p = 2 * (1 + 10 + 45) / 2**10
    assert mcnemar(right, baseline) == {"gained": 8, "lost": 2, "p": pytest.approx(p)}
    assert mcnemar(right, baseline, comparisons=3)["p"] == pytest.approx(3 * p)
    assert mcnemar(right, right) == {"gained": 0, "lost": 0, "p": 1.0}


def test_mcnemar_of_lesions_averages_their_images():
    """Both images of a lesion are told right by one of two models; averaged, each lesion is one case."""
    a = single("a", predictions(0, per_lesion=4))
    b = single("b", predictions(1, per_lesion=4))
    found = compare_groups([a, b], a, ["accuracy"], resamples=50)["groups"][1]["mcnemar"]
    right = []
    for group in (a, b):
        table = group.repeats[0]
        mean = table.groupby("lesion_id")[[f"p_{code}" for code in CLASSES]].mean()
        truth = table.groupby("lesion_id")["dx"].first()
        right.append((mean.idxmax(axis=1).str.removeprefix("p_") == truth).to_numpy())
    assert found["lesions"]["gained"] == (right[1] & ~right[0]).sum()
    assert found["lesions"]["lost"] == (right[0] & ~right[1]).sum()


def test_the_spread_between_seeds_widens_intervals():
    spread = pooled_spread([[0.5, 0.6, 0.7], [0.2, 0.4], [0.9]])
    assert (spread.deviation, spread.freedom) == (pytest.approx(math.sqrt(0.04 / 3)), 3)
    expected = t.ppf(0.975, 3) * math.sqrt(0.04 / 3) * math.sqrt(1 / 3 + 1 / 2)
    assert spread.margin([3, 2], 0.95) == pytest.approx(expected)
    assert pooled_spread([[0.2, 0.4], [0.9]]).margin([2], 0.95) == 0  # two seeds say next to nothing

    seeds = [run(f"s{seed}", predictions(seed), **{"train.seed": seed}) for seed in range(3)]
    group, alone = make_group("seeds", seeds), single("alone", predictions(9))
    rows = compare_groups([group, alone], group, ["accuracy"], resamples=200)
    apart = compare_groups([alone], alone, ["accuracy"], resamples=200)["groups"][0]["scores"]["accuracy"]
    score = rows["groups"][1]["scores"]["accuracy"]
    margin = t.ppf(0.975, 2) * rows["groups"][0]["scores"]["accuracy"]["sd"]
    assert score["high"] - score["mean"] == pytest.approx(math.hypot(apart["high"] - score["mean"], margin))
    assert any("other seeds of training; the spread" in note for note in rows["notes"])
    assert rows["groups"][1]["mcnemar"] is None  # which of three seeds would it be?


def with_validation(name: str, seed: int = 0, shift: float = 0.0, skill: float = 2.0, **params) -> Run:
    """A run with rows of validation; `shift` is added to every melanoma logit."""
    tables = [predictions(seed, images=count, first=first, skill=skill) for count, first in ((600, 0), (300, 600))]
    whole = pd.concat(tables, ignore_index=True).assign(split=["test"] * 600 + ["val"] * 300)
    logits = whole[[f"logit_{code}" for code in CLASSES]].to_numpy() + np.array([0, shift, 0])
    whole = prediction_table(whole, whole["split"].to_numpy(), logits, CLASSES, scaled(3))
    parts = {split: whole[whole["split"] == split].reset_index(drop=True) for split in ("test", "val")}
    return Run(name, parts["test"], CLASSES, {"train.seed": seed} | params, parts["val"])


def seeds_of(name: str, first: int = 0, count: int = 3, **kwargs):
    return make_group(name, [with_validation(f"{name}{n}", first + n, **kwargs) for n in range(count)])


def test_a_moved_threshold_is_a_trade_off_and_not_better():
    plain, moved = seeds_of("plain"), seeds_of("moved", shift=1.2)
    metrics = check_metrics(["sensitivity:mel", "sensitivity@specificity_90:mel"], [plain], "sensitivity:mel")
    assert metrics == [f"{rate}{at}:mel" for at in ("", "@specificity_90") for rate in ("sensitivity", "specificity")]
    found = compare_groups([plain, moved], plain, metrics, resamples=200)["groups"][1]["differences"]
    assert found["sensitivity:mel"]["difference"] > 0.1
    assert found["specificity:mel"]["difference"] < -0.05
    assert [found[name]["verdict"] for name in metrics[:2]] == ["trade-off", "trade-off"]
    assert [found[name]["difference"] for name in metrics[2:]] == [pytest.approx(0, abs=0.04)] * 2
    both = compare_groups([plain, seeds_of("good", skill=4.0)], plain, metrics, resamples=200)["groups"][1]
    assert [both["differences"][name]["verdict"] for name in metrics[:2]] == ["better", "better"]


def test_operating_points_are_chosen_on_validation():
    group = make_group("one", [with_validation("one")])
    (run,) = group.runs
    val, p = run.validation, run.validation["p_mel"]
    for point, allowed in (("specificity_90", 0.1), ("specificity_95", 0.05)):
        negatives = p[val["dx"] != "mel"]
        at = run.threshold(point, "mel")
        assert (negatives >= at).mean() <= allowed < (negatives >= at - 1e-9).mean() + 1 / 200
        names = [f"{rate}@{point}:mel" for rate in ("sensitivity", "specificity")]
        scores = compare_groups([group], group, names, resamples=50)["groups"][0]["scores"]
        flagged, is_mel = run.table["p_mel"] >= at, run.table["dx"] == "mel"
        assert scores[names[0]]["mean"] == pytest.approx(flagged[is_mel].mean())
        assert scores[names[1]]["mean"] == pytest.approx((~flagged)[~is_mel].mean())
    assert (p[val["dx"] == "mel"] >= run.threshold("threshold", "mel")).sum() == math.ceil(0.95 * 101)
    low = with_validation("low", **{"calibration.melanoma_sensitivity": 0.5})
    assert (p[val["dx"] == "mel"] >= low.threshold("threshold", "mel")).sum() == math.ceil(0.5 * 101)


def test_one_seed_a_side_has_no_verdict_whatever_the_others_have():
    groups = [seeds_of("plain"), seeds_of("a", 5, 1, skill=9.0), seeds_of("b", 6, 1)]
    found = compare_groups(groups, groups[2], ["macro_auc"], resamples=100)
    assert found["groups"][1]["differences"]["macro_auc"]["low"] > 0
    assert found["groups"][1]["differences"]["macro_auc"]["verdict"] == ""
    assert "no verdict on a: one seed a side: differences of seeds are not in this interval" in found["notes"]
    found = compare_groups(groups[:2], groups[0], ["macro_auc"], resamples=100)
    assert found["groups"][1]["differences"]["macro_auc"]["verdict"] == "better"


def test_other_scores_are_judged_only_where_the_primary_is_clear():
    plain, good = seeds_of("plain"), seeds_of("good", skill=4.0)
    metrics = ["macro_auc", "accuracy", "log_loss"]
    found = compare_groups([plain, good], plain, metrics, resamples=200)["groups"][1]["differences"]
    assert [found[name]["verdict"] for name in metrics] == ["better"] * 3
    # Temperature changes the log-loss and not the order: the primary is silent, so the others are.
    metrics = ["accuracy", "log_loss"]
    runs = []
    for run in plain.runs:
        logits = run.table[[f"logit_{code}" for code in CLASSES]].to_numpy() / 9
        runs.append(Run(run.name, prediction_table(run.table, "test", logits, CLASSES, scaled(3)), CLASSES, {}))
    soft = make_group("soft", runs)
    found = compare_groups([plain, soft], plain, metrics, resamples=200)["groups"][1]["differences"]
    assert found["log_loss"]["low"] > 0.3
    assert found["log_loss"]["p"] >= found["accuracy"]["p"] > 0.05
    assert found["log_loss"]["verdict"] == ""
    found = compare_groups([plain, soft], plain, ["log_loss", "accuracy"], resamples=200)["groups"][1]["differences"]
    assert (found["log_loss"]["verdict"], found["accuracy"]["verdict"]) == ("worse", "")


def test_holm_by_hand():
    assert corrected({"a": 0.01, "b": 0.04, "c": 0.02, "d": float("nan")}) == {
        "a": pytest.approx(0.03),
        "b": pytest.approx(0.04),
        "c": pytest.approx(0.04),
        "d": pytest.approx(float("nan"), nan_ok=True),
    }


def test_an_ensemble_is_no_comparison_and_weighs_recipes_alike():
    groups = [seeds_of("three"), seeds_of("one", 5, 1)]
    made = ensemble("all", groups)
    mean = np.mean(
        [
            np.mean([table["p_mel"] for table in groups[0].repeats], axis=0),
            groups[1].repeats[0]["p_mel"],
        ],
        axis=0,
    )
    assert made.repeats[0]["p_mel"].to_numpy() == pytest.approx(mean, abs=2e-6)
    assert len(made.mean.validation) == 300
    metrics = ["macro_auc", "sensitivity@threshold:mel", "specificity@threshold:mel"]
    found = compare_groups([*groups, made], groups[0], metrics, resamples=100)
    assert found["comparisons"] == 1
    assert found["groups"][2]["unjudged"].startswith("an average of models is one more model")
    assert {row["verdict"] for row in found["groups"][2]["differences"].values()} == {""}


def test_an_ensemble_decides_as_most_of_its_models_do():
    tables = [predictions(seed) for seed in range(3)]
    for table, decision in zip(tables, ("nv", "nv", "mel"), strict=True):
        table["predicted"] = decision
    made = ensemble("all", [single(name, table) for name, table in zip("abc", tables, strict=True)])
    assert set(made.repeats[0]["predicted"]) == {"nv"}
    pair = ensemble("two", [single("b", tables[1]), single("c", tables[2])]).repeats[0]
    expected = np.where(pair["p_mel"] > pair["p_nv"], "mel", "nv")
    assert (pair["predicted"] == expected).all()


def test_the_cost_of_decisions_is_compared():
    group = single("a", predictions())
    table = group.repeats[0]
    missed = ((table["dx"] == "mel") & (table["predicted"] != "mel")).sum()
    wrong = (table["dx"] != table["predicted"]).sum()
    costs = {"mel": {"nv": 5, "bkl": 5}}
    score = compare_groups([group], group, ["cost"], costs=costs, resamples=50)["groups"][0]["scores"]["cost"]
    assert score["mean"] == pytest.approx((wrong + 4 * missed) / len(table))


def test_other_test_images_are_not_paired_but_listed():
    groups = [single("a", predictions()), single("b", predictions(1, first=100))]
    found = compare_groups(groups, groups[0], ["accuracy", "sensitivity:mel"], resamples=50)
    other = found["groups"][1]
    assert other["differences"] is None
    assert other["mcnemar"] is None
    assert other["unpaired"] == (
        "the test images differ: 20 in both, 100 in a alone, 100 in b alone (such as IMG_00000, in a)"
    )
    assert 0 < other["scores"]["accuracy"]["mean"] < 1
    assert "not paired" in as_text(found)
    assert f"b is not compared with a: {other['unpaired']}" in found["notes"]
    regrouped = single("c", predictions(1).assign(group_id="one"))
    reason = compare_groups([groups[0], regrouped], groups[0], ["accuracy"], resamples=50)["groups"][1]["unpaired"]
    assert reason.startswith("120 images have another lesion group")


def test_other_classes_are_not_paired():
    table = predictions().rename(columns=lambda name: name.replace("_bkl", "_df")).replace("bkl", "df")
    other = make_group("b", [Run("b", table, ("df", "mel", "nv"), {})])
    a = single("a", predictions())
    found = compare_groups([a, other], a, ["accuracy", "sensitivity:df"], resamples=50)
    assert found["groups"][1]["unpaired"] == "the classes differ: bkl, mel, nv in a, df, mel, nv in b"
    assert [list(group["scores"]) for group in found["groups"]] == [["accuracy"], ["accuracy", "sensitivity:df"]]


def test_an_ensemble_is_the_mean_of_the_probabilities():
    tables = [predictions(seed) for seed in range(3)]
    groups = [single(name, table) for name, table in zip("abc", tables, strict=True)]
    mean = np.mean([table[[f"p_{code}" for code in CLASSES]].to_numpy() for table in tables], axis=0)
    made = ensemble("all", groups)
    assert made.repeats[0][[f"p_{code}" for code in CLASSES]].to_numpy() == pytest.approx(mean, abs=2e-6)
    row = compare_groups([*groups, made], groups[0], ["accuracy"], resamples=50)["groups"][3]
    assert row["scores"]["accuracy"]["mean"] == pytest.approx((made.repeats[0]["predicted"] == tables[0]["dx"]).mean())
    assert row["makeup"] == "mean of 3"
    with pytest.raises(UserError, match="d and a cannot be averaged: the test images differ"):
        ensemble("all", [groups[0], single("d", predictions(first=1))])


def test_few_lesions_are_marked():
    table = predictions()
    few = table[(table["dx"] != "mel") | (table.groupby("dx").cumcount() < 9)]
    group = single("few", few)
    found = compare_groups([group], group, ["accuracy", "macro_f1", "sensitivity:mel", "auc:nv"], resamples=50)
    small = {name: score["small"] for name, score in found["groups"][0]["scores"].items()}
    assert small == {"accuracy": False, "macro_f1": True, "sensitivity:mel": True, "auc:nv": False}
    assert "* rests on fewer than 10 lesions: a hint at most" in found["notes"]


def test_metrics_are_checked():
    group = single("a", predictions())
    three = ["macro_auc", "balanced_accuracy", "macro_f1"]
    assert check_metrics(None, [group], split="val") == [*three, "partial_auc:mel"]
    own = [f"{rate}@threshold:mel" for rate in ("sensitivity", "specificity")]
    assert check_metrics(None, [make_group("a", [with_validation("a")])]) == [*three, *own]
    assert check_metrics(["ece", "auc:nv", "ece"], [group], "aurc") == ["aurc", "ece", "auc:nv"]
    with pytest.raises(UserError, match="no prediction table has rows of validation"):
        check_metrics(own, [group])
    with pytest.raises(UserError, match="validation chose this operating point"):
        check_metrics(own, [group], split="val")
    with pytest.raises(UserError, match="a model has a threshold for mel only"):
        check_metrics(["sensitivity@threshold:nv"], [make_group("a", [with_validation("a")])])
    with pytest.raises(UserError, match=r"no metric 'balanced_acuracy' \(did you mean 'balanced_accuracy'"):
        check_metrics(["balanced_acuracy"], [group])
    with pytest.raises(UserError, match="no metric 'auc:xyz'"):
        check_metrics(["auc:xyz"], [group])


@pytest.fixture
def found():
    groups = [
        make_group("control", [run(f"c{s}", predictions(s), **{"train.seed": s, "lr": 0.1}) for s in range(3)]),
        single("one", predictions(5, skill=3)),
        single("elsewhere", predictions(2, first=60).assign(source="synthetic")),
        make_group("torn", [run("t", predictions(9, first=90), **{"train.seed": 0, "split.scheme": "image"})]),
    ]
    return compare_groups(groups, groups[0], ["accuracy", "log_loss"], resamples=100)


def test_text_markdown_and_csv_say_the_same(found):
    score, difference = found["groups"][1]["scores"]["accuracy"], found["groups"][1]["differences"]["accuracy"]
    numbers = [f"{score['mean']:.3f}", f"[{score['low']:.3f}, {score['high']:.3f}]", f"{difference['difference']:+.3f}"]
    text, markdown = as_text(found), as_markdown(found)
    line = next(line for line in text.splitlines() if line.startswith("one ") and numbers[0] in line)
    assert all(number in text and number in markdown for number in numbers)
    assert [part for part in numbers if part not in line] == []
    assert line.endswith("better")
    assert text.splitlines()[0] == (
        "synthetic images in elsewhere: their scores mean nothing for real skin; LEAKY: torn split by image, so "
        "their scores are too good"
    )
    assert "| one | " in markdown
    table = pd.read_csv(io.StringIO(as_table(found).to_csv(index=False)))
    row = table[(table["name"] == "one") & (table["metric"] == "accuracy")].iloc[0]
    assert (row["mean"], row["difference_low"]) == pytest.approx((score["mean"], difference["low"]), abs=1e-6)
    assert table[table["name"] == "elsewhere"]["difference"].isna().all()
    assert json.dumps(found)


def test_the_forest_plot_is_the_same_bytes_for_the_same_numbers(found, tmp_path):
    draw_forest(tmp_path / "a.png", found)
    draw_forest(tmp_path / "b.png", found)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    found["groups"][1]["scores"]["accuracy"]["mean"] += 0.05
    draw_forest(tmp_path / "c.png", found)
    assert (tmp_path / "c.png").read_bytes() != (tmp_path / "a.png").read_bytes()


# ------------------------------------------------------------------------------------------------- DVC experiments

MAKER = """
import sys
import yaml
sys.path[:0] = [{tests!r}]
from helpers.predictions import predictions
params = yaml.safe_load(open("params.yaml"))
fold = params["split"]["fold"]
table = predictions(params["train"]["seed"], images=60, first=60 * fold, skill=params["train"]["skill"])
table.to_csv("data/predictions.csv", index=False)
"""


@pytest.fixture(scope="module")
def experiments(tmp_path_factory, request) -> Project:
    """A project of one stage, with runs committed on a branch and as DVC experiments."""
    folder = tmp_path_factory.mktemp("experiments")
    project = Project(folder)
    params = {"split": {"scheme": "kfold", "folds": 2, "fold": 0}, "train": {"seed": 0, "skill": 1.0}}
    stage = {"cmd": "python make.py", "params": ["split", "train"], "outs": [PREDICTIONS]}
    (folder / "data").mkdir()
    (folder / "make.py").write_text(MAKER.format(tests=str(ROOT / "tests")))
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"evaluate": stage}}))
    (folder / ".gitignore").write_text(f"/{PREDICTIONS}\n")
    project.run("git", "init", "-q", "-b", "main")
    project.run("dvc", "init", "-q")
    project.run("dvc", "repro", "-q")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "run")
    for name, changes in {"cv-1": ["split.fold=1"], "seed-1": ["train.seed=1"], "good": ["train.skill=9"]}.items():
        project.run("dvc", "exp", "run", "-q", "-n", name, *(word for one in changes for word in ("-S", one)))
        project.run("git", "checkout", "-q", ".")
        project.run("dvc", "checkout", "-q")
    return project


def compare(project: Project, monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    monkeypatch.chdir(project.folder)
    split = [] if "--split" in words else ["--split", "test"]
    status = cli.main(["compare", *words, *split, "--resamples", "100"])
    return status, *capsys.readouterr()


def test_experiments_branches_commits_and_the_workspace_are_read(experiments):
    commit = experiments.run("git", "rev-parse", "HEAD").stdout.strip()
    seeds = {"main": 0, commit[:10]: 0, "HEAD": 0, "workspace": 0, "seed-1": 1}
    for word, seed in seeds.items():
        read = read_run(word, experiments.folder, PREDICTIONS, "test")
        assert read.seed == seed, word
        pd.testing.assert_series_equal(read.table["p_mel"], predictions(seed, images=60)["p_mel"])
    assert read_run("cv-1", experiments.folder, PREDICTIONS, "test").fold == 1


def test_the_command_compares_experiments(experiments, monkeypatch, capsys):
    status, out, err = compare(
        experiments, monkeypatch, capsys, "main", "good", "--metric", "accuracy", "--out", "reports/result"
    )
    assert (status, err) == (0, "written: reports/result.md, .csv and .png\n")
    assert "good: train.skill 9 (not 1.0)" in out
    row = next(line for line in out.splitlines() if line.startswith("good") and "0." in line)
    assert "better" not in out
    assert "no verdict on good: one seed a side" in out
    expected = predictions(0, images=60, skill=9)
    assert f"{(expected['predicted'] == expected['dx']).mean():.3f}" in row
    assert (experiments.folder / "reports/result.md").read_text().startswith("## Comparison")
    assert (experiments.folder / "reports/result.png").read_bytes().startswith(b"\x89PNG")
    table = pd.read_csv(experiments.folder / "reports/result.csv")
    assert table["name"].tolist() == ["main", "main", "good", "good"]
    assert table["metric"].tolist() == ["macro_auc", "accuracy"] * 2


def test_folds_and_seeds_of_one_recipe_find_together(experiments, monkeypatch, capsys):
    status, out, _ = compare(experiments, monkeypatch, capsys, "main", "cv-1", "--format", "csv", "--metric", "ece")
    assert status == 0
    row = pd.read_csv(io.StringIO(out)).iloc[0]
    assert (row["made_from"], row["runs"], row["images"]) == ("2 folds", "main cv-1", 120)
    status, out, _ = compare(
        experiments,
        monkeypatch,
        capsys,
        "good",
        "main",
        "seed-1",
        "--baseline",
        "main",
        "--ensemble",
        "--format",
        "csv",
    )
    table = pd.read_csv(io.StringIO(out)).drop_duplicates("name").set_index("name")
    assert table["made_from"].to_dict() == {
        "good": "1 run",
        "main and 1 more": "2 seeds",
        "main and 1 more, averaged": "mean of 2",
        "all averaged": "mean of 3",
    }
    assert table.loc["good", "baseline"] == "main and 1 more"


def test_a_baseline_that_is_not_listed_is_read_too(experiments, monkeypatch, capsys):
    status, out, _ = compare(
        experiments, monkeypatch, capsys, "good", "--baseline", "both=main,seed-1", "--metric", "accuracy"
    )
    assert status == 0
    assert "differences from both" in out
    assert "both is main, seed-1" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["goood"], "'goood' is not a file, experiment, branch, tag or commit"),
        (["goood"], "did you mean 'good'?"),
        (["nowhere.csv"], "there is no file nowhere.csv"),
        (["main", "--split", "external:ph2"], "the predictions of main have no split 'external:ph2'; they have test"),
        (["x=main,main"], "'x=main,main' names a run twice"),
        (["=main"], "'=main' names no group"),
        (["main", "--ensemble"], "nothing to average"),
        (["main", "good", "--metric", "acuracy"], "did you mean 'accuracy'?"),
        (["before"], "before has no data/predictions.csv: it was not evaluated"),
    ],
)
def test_what_cannot_be_compared_is_said(experiments, monkeypatch, capsys, words, message):
    if words == ["before"]:
        tree = experiments.run("git", "hash-object", "-t", "tree", "-w", "--stdin").stdout.strip()
        commit = experiments.run("git", "commit-tree", tree, "-m", "empty").stdout.strip()
        experiments.run("git", "tag", "-f", "before", commit)
    status, out, err = compare(experiments, monkeypatch, capsys, *words)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err


def test_predictions_of_an_earlier_model_are_no_result(experiments, tmp_path, monkeypatch, capsys):
    """What `dvc exp run … calibrate` leaves: a new model beside the predictions of the one before."""
    copy = experiments.copy(tmp_path / "copy")
    lock = yaml.safe_load((copy.folder / "dvc.lock").read_text())
    model = {"path": "models/model.safetensors", "hash": "md5", "md5": "a" * 32, "size": 1}
    lock["stages"]["calibrate"] = {"cmd": "x", "outs": [model]}
    for name, used in (("stale", "b"), ("fresh", "a")):
        lock["stages"]["evaluate"]["deps"] = [model | {"md5": used * 32}]
        (copy.folder / "dvc.lock").write_text(yaml.safe_dump(lock))
        copy.run("git", "commit", "-qam", name)
        copy.run("git", "tag", name)
    status, _, err = compare(copy, monkeypatch, capsys, "main", "stale")
    assert status == 1
    assert "the predictions of stale are of an earlier model than its own" in err
    assert compare(copy, monkeypatch, capsys, "main~2", "fresh")[0] == 0


def test_predictions_that_left_the_cache_are_said_to_be_fetched(experiments, tmp_path, monkeypatch, capsys):
    copy = experiments.copy(tmp_path / "copy")
    for file in (copy.folder / ".dvc" / "cache").rglob("*"):
        if file.is_file():
            file.unlink()
    status, _, err = compare(copy, monkeypatch, capsys, "seed-1")
    assert status == 1
    assert "data/predictions.csv of seed-1 is neither in DVC's cache nor in its remote" in err
    assert "dvc exp pull REMOTE seed-1" in err


def test_outside_git_only_files_are_compared(tmp_path, monkeypatch, capsys):
    predictions(0).to_csv(tmp_path / "one.csv", index=False)
    status, out, _ = compare(Project(tmp_path), monkeypatch, capsys, "one.csv", "--metric", "accuracy")
    assert status == 0
    assert "one.csv" in out
    status, _, err = compare(Project(tmp_path), monkeypatch, capsys, "main")
    assert status == 1
    assert "is no Git repository" in err
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    status, _, err = compare(Project(tmp_path), monkeypatch, capsys, "bad.csv")
    assert "bad.csv is not a prediction table" in err
