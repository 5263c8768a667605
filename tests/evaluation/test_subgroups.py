"""Subgroups: equal to filtering and scoring, small ones marked, gaps that are sure told from gaps that are noise."""

import math

import numpy as np
import pandas as pd
import pytest
from helpers.predictions import scaled
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, recall_score, roc_auc_score

from exp_tools.errors import UserError
from exp_tools.evaluation.metrics.bootstrap import bootstrap_intervals, class_intervals
from exp_tools.evaluation.metrics.subgroups import subgroup_gaps, subgroup_points, subgroup_report
from exp_tools.evaluation.plots.subgroups import draw_subgroups
from exp_tools.evaluation.predictions import as_arrays, prediction_table

CLASSES = ["bkl", "mel", "nv"]
DRAWS = {"resamples": 100, "seed": 3}


def predictions(images=400, seed=0, classes=CLASSES, skill=1.5, **columns):
    """A table with metadata, two images per lesion; `columns` replace those that are drawn."""
    rng = np.random.default_rng(seed)
    lesion = np.arange(images) // 2
    labels = rng.choice(len(classes), images // 2 + 1)[lesion]
    logits = rng.normal(size=(images, len(classes))) + skill * np.eye(len(classes))[labels]
    ids = [f"L_{number}" for number in lesion]
    table = pd.DataFrame({"image_id": [f"I_{n}" for n in range(images)], "lesion_id": ids, "group_id": ids})
    table = table.assign(dx=np.array(classes)[labels], source="ham10000")
    table = prediction_table(table, "test", logits, classes, scaled(len(classes)))
    drawn = {
        "sex": rng.choice(["male", "female", "unknown"], images, p=[0.6, 0.35, 0.05]),
        "age": rng.choice([5.0, 35, 55, 75, 85, np.nan], images),
        "localization": rng.choice(["back", "ear"], images, p=[0.97, 0.03]),
        "dx_type": "histo",
    }
    return table.assign(**drawn | columns)


def perfect(labels, right, **columns):
    """One image per lesion, classes bkl and nv, predicted right or wrong with certainty."""
    labels, right = np.asarray(labels), np.asarray(right)
    ids = [f"L_{number}" for number in range(labels.size)]
    table = pd.DataFrame({"image_id": ids, "lesion_id": ids, "group_id": ids, "source": "synthetic"})
    table = table.assign(dx=np.array(["bkl", "nv"])[labels])
    logits = 9.0 * np.eye(2)[np.where(right, labels, 1 - labels)]
    table = prediction_table(table, "test", logits, ["bkl", "nv"], scaled(2))
    rest = {"sex": "male", "age": 50.0, "localization": "back", "dx_type": "histo"}
    return table.assign(**rest | columns)


def test_each_row_is_the_score_of_the_filtered_table():
    table = predictions()
    report = subgroup_report(table, CLASSES, melanoma_threshold=0.3, **DRAWS)
    values = {(row["attribute"], row["value"]): row for row in report}
    assert len(values) == len(report)
    for attribute in ("sex", "localization", "source", "dx_type"):
        for value, part in table.groupby(attribute):
            row = values.pop((attribute, value))
            assert (row["images"], row["lesions"]) == (len(part), part["lesion_id"].nunique())
            probabilities, labels, _ = as_arrays(part, CLASSES)
            predicted = probabilities.argmax(axis=1)
            assert row["accuracy"] == pytest.approx((part["dx"] == part["predicted"]).mean(), abs=1e-12)
            assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-12)
            auc = roc_auc_score(labels, probabilities, multi_class="ovr", labels=range(3))
            assert row["macro_auc"] == pytest.approx(auc, abs=1e-9)
            melanoma, positive = row["melanoma"], labels == 1
            flagged = probabilities[:, 1] >= 0.3
            assert (melanoma["images"], melanoma["lesions"]) == (
                positive.sum(),
                part.loc[positive, "lesion_id"].nunique(),
            )
            assert melanoma["sensitivity"] == pytest.approx(recall_score(positive, predicted == 1))
            assert melanoma["specificity"] == pytest.approx(recall_score(~positive, predicted != 1))
            assert melanoma["sensitivity_at_threshold"] == pytest.approx(recall_score(positive, flagged))
            assert melanoma["specificity_at_threshold"] == pytest.approx(recall_score(~positive, ~flagged))
            assert melanoma["auc"] == pytest.approx(roc_auc_score(positive, probabilities[:, 1]), abs=1e-9)
    assert {attribute for attribute, _ in values} == {"all", "age"}


def test_intervals_are_those_of_the_filtered_table():
    table = predictions()
    row = next(row for row in subgroup_report(table, CLASSES, **DRAWS) if row["value"] == "female")
    part = table[table["sex"] == "female"]
    probabilities, labels, _ = as_arrays(part, CLASSES)
    expected = bootstrap_intervals(probabilities, labels, part["group_id"], CLASSES, **DRAWS)
    of_class = class_intervals(probabilities, labels, part["group_id"], CLASSES, **DRAWS)["mel"]
    for metric in ("accuracy", "balanced_accuracy", "macro_auc"):
        interval = row["intervals"][metric]
        assert (interval["low"], interval["high"]) == pytest.approx(expected[metric], abs=1e-9)
    for metric in ("sensitivity", "specificity", "auc"):
        assert row["melanoma"]["intervals"][metric] == pytest.approx(of_class[metric], abs=1e-9)


def test_order_age_bands_and_what_is_unknown():
    ages = [19.9, 20, 39, 40, 59.5, 60, 79, 80, 120, 0, np.nan, 20]
    sexes = ["male"] * 3 + ["female"] * 4 + ["unknown", "", None, " ", np.nan]
    table = predictions(12, age=ages, sex=sexes, localization=["b", "a"] * 6)
    report = subgroup_report(table, CLASSES, **DRAWS)
    counts = [(row["attribute"], row["value"], row["images"]) for row in report]
    assert counts == [
        ("all", "all", 12),
        ("sex", "female", 4),
        ("sex", "male", 3),
        ("sex", "unknown", 5),
        ("age", "0-19", 2),
        ("age", "20-39", 3),
        ("age", "40-59", 2),
        ("age", "60-79", 2),
        ("age", "80+", 2),
        ("age", "unknown", 1),
        ("localization", "a", 6),
        ("localization", "b", 6),
        ("source", "ham10000", 12),
        ("dx_type", "histo", 12),
    ]


def test_small_means_few_lesions_of_what_the_metric_needs():
    sex = np.repeat(["male", "female"], [380, 20])  # 20 images of women are 10 lesions, of three classes
    rows = {row["value"]: row for row in subgroup_report(predictions(sex=sex), CLASSES, **DRAWS)}
    male, female = rows["male"], rows["female"]
    assert (male["small"], female["small"]) == (False, False)
    assert not any(interval["small"] for interval in male["intervals"].values())
    small = {metric: interval["small"] for metric, interval in female["intervals"].items()}
    assert small == {"accuracy": False, "balanced_accuracy": True, "macro_auc": True}
    assert female["melanoma"]["intervals"]["sensitivity"]["small"]
    few = subgroup_report(predictions(18), CLASSES, **DRAWS)
    assert few[0]["small"]


def test_undefined_scores_are_nan_and_have_no_interval():
    table = perfect([1, 1, 1], [True, True, False])
    everyone = subgroup_report(table, ["bkl", "nv"], **DRAWS)[0]
    assert everyone["melanoma"] is None
    assert everyone["balanced_accuracy"] == pytest.approx(2 / 3)
    assert math.isnan(everyone["macro_auc"])
    assert math.isnan(everyone["intervals"]["macro_auc"]["low"])
    benign = predictions(40, seed=1)
    benign = benign[benign["dx"] != "mel"]
    melanoma = subgroup_report(benign, CLASSES, **DRAWS)[0]["melanoma"]
    assert (melanoma["images"], melanoma["lesions"]) == (0, 0)
    assert math.isnan(melanoma["sensitivity"])
    assert 0 < melanoma["specificity"] <= 1
    alone = subgroup_report(table.iloc[:1], ["bkl", "nv"], **DRAWS)[0]
    assert alone["accuracy"] == 1
    assert math.isnan(alone["intervals"]["accuracy"]["low"])


def test_gap_by_hand_without_a_mistake_on_either_side():
    # 20 women all right, 20 men all wrong: each interval reaches 1 - 0.025^(1/20) in (Clopper and Pearson).
    table = perfect([1] * 40, [True] * 20 + [False] * 20, sex=["female"] * 20 + ["male"] * 20)
    gaps = subgroup_gaps(table, ["bkl", "nv"], **DRAWS)
    reach = 1 - 0.025 ** (1 / 20)
    assert gaps == [gaps[0]]
    assert 0.95 < gaps[0].pop("shrunken") <= 1
    assert gaps[0].pop("p") < 1e-6
    assert gaps[0] == {
        "attribute": "sex",
        "metric": "standardised_accuracy",
        "over": ["nv"],
        "best": "female",
        "worst": "male",
        "gap": 1.0,
        "interval": {"low": pytest.approx(1 - math.hypot(reach, reach)), "high": pytest.approx(1.0)},
        "clear": True,
        "compared": 2,
    }


def test_a_sure_gap_is_not_drowned_by_a_larger_one_of_few():
    # 200 of back: 90 %; 200 of face: 75 %; 10 of scalp: 70 %. Back against scalp is wider, but no surer.
    sites = ["back"] * 200 + ["face"] * 200 + ["scalp"] * 10 + ["ear"] * 9 + ["unknown"] * 50
    right = [True] * 180 + [False] * 20 + [True] * 150 + [False] * 50 + [True] * 7 + [False] * 3
    right += [False] * 9 + [True] * 50
    gaps = subgroup_gaps(perfect([1] * 469, right, localization=sites), ["bkl", "nv"], resamples=500, seed=0)
    gap = next(gap for gap in gaps if (gap["attribute"], gap["metric"]) == ("localization", "standardised_accuracy"))
    assert (gap["best"], gap["worst"], gap["compared"]) == ("back", "face", 3)  # neither nine ears nor the unknown
    assert gap["clear"]
    assert gap["gap"] == pytest.approx(0.15)
    assert 0.05 < gap["shrunken"] < 0.15
    # Tukey's value for three groups is 3.314 / sqrt(2) standard errors, of 0.0373 here; a little for unequal tails.
    assert gap["interval"]["low"] == pytest.approx(0.15 - 2.344 * 0.0373, abs=0.01)
    assert gap["interval"]["high"] == pytest.approx(0.15 + 2.344 * 0.0373, abs=0.01)


def card_of(seed, lesions, right=0.8, **columns):
    """A set of two diagnoses in which sex, age, site and source say nothing of who is predicted right."""
    rng = np.random.default_rng(seed)
    values = {
        "sex": rng.choice(["male", "female"], lesions),
        "age": rng.choice([10.0, 30, 50, 70, 85], lesions),
        "localization": rng.choice(list("abcdefgh"), lesions),
        "source": rng.choice(["one", "two"], lesions),
    }
    return perfect(rng.integers(2, size=lesions), rng.random(lesions) < right, **values | columns)


def test_chance_is_seldom_called_a_clear_gap():
    """Of a whole card without any gap: at most one in twenty (give or take) may have one."""
    found = [
        any(gap["clear"] for gap in subgroup_gaps(card_of(seed, 400), ["bkl", "nv"], resamples=200, seed=seed))
        for seed in range(40)
    ]
    assert np.mean(found) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 40)


def test_a_true_gap_is_found():
    """15 points with 150 lesions on each side, among eight sites, five ages, and two sources without any."""
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        sex = np.repeat(["male", "female"], 150)
        right = rng.random(300) < np.where(sex == "male", 0.75, 0.9)
        table = card_of(seed, 300, sex=sex)
        table = perfect(
            rng.integers(2, size=300),
            right,
            **{name: table[name].to_numpy() for name in ("age", "localization", "source")},
            sex=sex,
        )
        gaps = subgroup_gaps(table, ["bkl", "nv"], resamples=200, seed=seed)
        found.append(any(gap["clear"] and gap["attribute"] == "sex" for gap in gaps))
    assert np.mean(found) > 0.6


def test_other_diagnoses_are_no_gap_and_neither_is_how_they_were_confirmed():
    """Nevi are easy and commoner among the young: accuracy differs by construction, standardised accuracy does not."""
    rng = np.random.default_rng(0)
    young = rng.random(3000) < 0.5
    labels = (rng.random(3000) < np.where(young, 0.9, 0.3)).astype(int)
    right = rng.random(3000) < np.where(labels == 1, 0.95, 0.6)
    table = perfect(labels, right, age=np.where(young, 30.0, 70.0), dx_type=np.where(labels == 1, "follow_up", "histo"))
    report = {row["value"]: row["accuracy"] for row in subgroup_report(table, ["bkl", "nv"], resamples=50)}
    assert report["20-39"] > report["60-79"] + 0.15
    gaps = subgroup_gaps(table, ["bkl", "nv"], resamples=200)
    assert [gap["attribute"] for gap in gaps] == ["age"]
    assert gaps[0]["gap"] < 0.05
    assert not gaps[0]["clear"]


def of_two_ages(seed, lesions=1500):
    """A model that treats everybody alike; the old have fewer nevi, which are easy to tell from melanomas."""
    rng = np.random.default_rng(seed)
    old = rng.random(lesions) < 0.5
    labels = np.where(rng.random(lesions) < 0.2, 1, np.where(rng.random(lesions) < np.where(old, 0.2, 0.8), 2, 0))
    melanoma = np.array([0.0, 1.5, -3.0])[labels] + rng.normal(size=lesions)
    logits = np.stack([np.zeros(lesions), melanoma, 3.0 * (labels == 2)], axis=1)
    ids = [f"L_{number}" for number in range(lesions)]
    table = pd.DataFrame({"image_id": ids, "lesion_id": ids, "group_id": ids, "dx": np.array(CLASSES)[labels]})
    table = prediction_table(table.assign(source="ham10000"), "test", logits, CLASSES, scaled(3))
    return table.assign(age=np.where(old, 70.0, 50.0), sex="male", localization="back", dx_type="histo")


def test_other_diagnoses_are_no_gap_in_specificity_and_auc():
    draws = {"resamples": 200, "seed": 0, "melanoma_threshold": 0.3}
    rows = {row["value"]: row["melanoma"] for row in subgroup_report(of_two_ages(0), CLASSES, **draws)}
    assert rows["40-59"]["specificity_at_threshold"] > rows["60-79"]["specificity_at_threshold"] + 0.15
    assert rows["40-59"]["auc"] > rows["60-79"]["auc"] + 0.03
    found = [gap for seed in range(10) for gap in subgroup_gaps(of_two_ages(seed), CLASSES, **draws)]
    names = ["sensitivity_at_threshold", "standardised_specificity_at_threshold", "standardised_auc"]
    assert {gap["metric"] for gap in found} == {"standardised_accuracy", *(f"melanoma_{name}" for name in names)}
    assert not any(gap["clear"] for gap in found if gap["metric"].startswith("melanoma_standardised"))


def test_standardised_scores_are_those_of_each_class_with_the_shares_of_the_whole_set():
    table = of_two_ages(0)
    gaps = {gap["metric"]: gap for gap in subgroup_gaps(table, CLASSES, resamples=50, seed=0, melanoma_threshold=0.3)}
    others = table[table["dx"] != "mel"]
    shares = others["dx"].value_counts(normalize=True)
    scores = {"melanoma_standardised_specificity_at_threshold": {}, "melanoma_standardised_auc": {}}
    for age, part in table.groupby("age"):
        passed = {code: (part.loc[part["dx"] == code, "p_mel"] < 0.3).mean() for code in shares.index}
        areas = {}
        for code in shares.index:
            pair = part[part["dx"].isin(["mel", code])]
            areas[code] = roc_auc_score(pair["dx"] == "mel", pair["p_mel"])
        for values, by_class in zip(scores.values(), (passed, areas), strict=True):
            values[age] = sum(shares[code] * by_class[code] for code in shares.index)
    assert gaps["melanoma_sensitivity_at_threshold"]["over"] == []
    for metric, values in scores.items():
        assert gaps[metric]["over"] == ["bkl", "nv"]
        assert gaps[metric]["gap"] == pytest.approx(abs(values[50.0] - values[70.0]))


def test_a_gap_in_specificity_within_the_classes_is_found():
    table = of_two_ages(1)
    spoilt = (table["age"] == 70.0) & (table["dx"] == "bkl") & (np.arange(len(table)) % 3 == 0)
    table.loc[spoilt, ["p_bkl", "p_mel", "p_nv"]] = 0.1, 0.8, 0.1
    gaps = {gap["metric"]: gap for gap in subgroup_gaps(table, CLASSES, resamples=100, seed=0, melanoma_threshold=0.3)}
    gap = gaps["melanoma_standardised_specificity_at_threshold"]
    assert (gap["worst"], gap["clear"]) == ("60-79", True)


def test_the_shrunken_gap_is_nearer_the_truth_than_the_largest():
    raw, shrunken = [], []
    for seed in range(30):
        gap = next(
            gap
            for gap in subgroup_gaps(card_of(seed, 400), ["bkl", "nv"], resamples=100, seed=seed)
            if gap["attribute"] == "localization"
        )
        raw.append(gap["gap"])
        shrunken.append(gap["shrunken"])
    assert np.mean(raw) > 0.1  # of a true 0
    assert np.mean(shrunken) < np.mean(raw) / 3


def test_same_seed_same_report():
    table = predictions(60)
    assert repr(subgroup_report(table, CLASSES, **DRAWS)) == repr(subgroup_report(table, CLASSES, **DRAWS))
    other = subgroup_report(table, CLASSES, resamples=100, seed=4)
    assert other[0]["intervals"] != subgroup_report(table, CLASSES, **DRAWS)[0]["intervals"]


def test_long_table_for_plots():
    report = subgroup_report(predictions(60, sex="male"), CLASSES, melanoma_threshold=0.3, **DRAWS)
    points = subgroup_points(report)
    assert list(points) == ["attribute", "value", "metric", "score", "low", "high", "images", "small"]
    male = points[points["value"] == "male"].set_index("metric")
    assert len(male) == 8
    row = report[1]
    assert male.loc["accuracy", "score"] == pytest.approx(row["accuracy"], abs=1e-6)
    assert male.loc["melanoma_auc", "low"] == pytest.approx(row["melanoma"]["intervals"]["auc"]["low"], abs=1e-6)
    assert (male["images"] == 60).all()
    binary = subgroup_points(subgroup_report(perfect([1, 1], [True, True]), ["bkl", "nv"], **DRAWS))
    assert "macro_auc" not in set(binary["metric"])  # undefined: no row


def test_bad_input_is_named():
    table = predictions(20)
    with pytest.raises(UserError, match="set is empty"):
        subgroup_report(table.iloc[:0], CLASSES, **DRAWS)
    with pytest.raises(UserError, match="does not know: mel"):
        subgroup_gaps(table, ["bkl", "nv"], **DRAWS)


@pytest.mark.parametrize(
    ("threshold", "labels"),
    [
        (0.3, ["melanoma sensitivity\nat the model's threshold", "melanoma specificity\nat the model's threshold"]),
        (None, ["melanoma sensitivity", "melanoma specificity"]),
    ],
)
def test_picture(tmp_path, monkeypatch, threshold, labels):
    kept = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda *given, **named: (kept.append(given[0]), savefig(*given, **named)))
    report = subgroup_report(predictions(120), CLASSES, melanoma_threshold=threshold, **DRAWS)
    for name in ("a.png", "b.png"):
        draw_subgroups(tmp_path / name, report, "sample data, test split")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    panels = kept[0].axes
    assert [axes.get_xlabel() for axes in panels] == ["accuracy", *labels, "melanoma AUC"]
    names = [text.get_text() for text in panels[0].get_yticklabels()]
    assert names[0] == "all images  (n=120)"
    assert len(names) == len(report)
    with Image.open(tmp_path / "a.png") as image:
        pixels = np.asarray(image.convert("L"))
    assert all((edge == 255).all() for edge in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]))


def test_picture_without_melanoma_shows_what_is_small_hollow(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: (kept.append(figure), path.touch()))
    table = perfect([0, 1] * 15, [True] * 29 + [False], sex=["male"] * 25 + ["female"] * 5)
    draw_subgroups(tmp_path / "a.png", subgroup_report(table, ["bkl", "nv"], **DRAWS), "t")
    accuracy, *others = kept[0].axes
    assert [axes.get_xlabel() for axes in others] == ["balanced accuracy", "macro AUC"]
    points = [line for line in accuracy.get_lines() if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() == "white" for line in points[:3]] == [False, False, True]  # all, male, female
    assert points[2].get_xdata() == pytest.approx([0.8])
