"""Scores of disturbed images: of which lesions, against which scores, in which intervals, and what the card says."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers.models import write_model
from helpers.predictions import predictions, scaled
from helpers.project import ROOT, Project, merge

from benchmarks import statistics
from exp_tools.data.images.preprocess import Preprocessing
from exp_tools.data.sources.registry import SourceOptions
from exp_tools.evaluation.compare import disturbed
from exp_tools.evaluation.compare.disturbed import chosen_lesions, disturbed_scores, robustness_report
from exp_tools.evaluation.compare.paired import paired_differences
from exp_tools.evaluation.metrics.catalogue import HEADLINE
from exp_tools.evaluation.metrics.classification import headline_metrics
from exp_tools.evaluation.metrics.weighted import headline_scorer
from exp_tools.evaluation.plots.robustness import draw_disturbed, draw_robustness
from exp_tools.evaluation.predictions import as_arrays, decisions, prediction_table
from exp_tools.evaluation.report.robustness import disturbed as card_of
from exp_tools.evaluation.report.robustness import worst_line
from exp_tools.evaluation.report.text import summary_text
from exp_tools.evaluation.standalone.dataset import TrainingSet, evaluate_standalone
from exp_tools.models.registry import load_model
from exp_tools.params import parse_params

CLASSES = ["bkl", "mel", "nv"]
DRAWS = {"resamples": 200, "seed": 1}


@pytest.fixture(scope="module")
def clean() -> pd.DataFrame:
    return predictions(1, skill=2.0, per_lesion=2)


def noisier(table: pd.DataFrame, strength: float, seed: int = 0) -> pd.DataFrame:
    """The same images with noise on their logits."""
    logits = as_arrays(table, CLASSES)[2]
    noise = strength * np.random.default_rng(seed).normal(size=logits.shape)
    return prediction_table(table, "test", logits + noise, CLASSES, scaled(3))


def test_lesions_stay_whole_and_rare_classes_keep_theirs():
    rng = np.random.default_rng(0)
    lesion = rng.integers(0, 400, 900)
    kinds = np.array([0] * 300 + [1] * 80 + [2] * 15 + [3] * 5)[lesion]
    groups = np.array([f"G{number}" for number in lesion])
    found = chosen_lesions(groups, kinds, 100, seed=3)
    assert not set(groups[found]) & set(groups[~found])
    counts = [np.unique(groups[found & (kinds == c)]).size for c in range(4)]
    every = [np.unique(groups[kinds == c]).size for c in range(4)]
    assert counts[2:] == every[2:]  # the rare ones have all of theirs, the others as many each
    assert sum(counts) == 100
    assert counts[0] == counts[1]
    order = rng.permutation(900)
    assert (chosen_lesions(groups[order], kinds[order], 100, seed=3) == found[order]).all()
    assert (chosen_lesions(groups, kinds, 100, seed=4) != found).any()
    assert not (chosen_lesions(groups, kinds, 60, seed=3) & ~found).any()
    assert chosen_lesions(groups, kinds, 900, seed=3).all()
    fewest = chosen_lesions(groups, kinds, 1, seed=3)
    assert [np.unique(groups[fewest & (kinds == c)]).size for c in range(4)] == [1] * 4


def test_scores_are_the_headline_scores_and_differences_the_paired_ones(clean):
    worse = noisier(clean, 1.5)
    report = disturbed_scores(clean, [("hair", 3, worse)], CLASSES, 0.3, **DRAWS)
    (row,) = report["rows"]
    values, scorers = [], []
    for table in (clean, worse):
        probabilities, labels, _ = as_arrays(table, CLASSES)
        values.append(headline_metrics(probabilities, labels, CLASSES, decisions(table, CLASSES)))
        scorers.append(headline_scorer(probabilities, labels, decisions(table, CLASSES)))
    expected = paired_differences(
        scorers[1], scorers[0], clean["group_id"], 120, units=dict.fromkeys(HEADLINE, 20), **DRAWS
    )
    for name in ("balanced_accuracy", "macro_auc"):
        assert report["clean"][name] == pytest.approx(values[0][name], abs=1e-12)
        assert row[name] == pytest.approx(values[1][name], abs=1e-12)
        low, high = expected[name].interval(0.95)
        found = row["differences"][name]
        assert found["difference"] == pytest.approx(values[1][name] - values[0][name], abs=1e-12)
        assert (found["low"], found["high"]) == pytest.approx((low, high), abs=1e-9)
    melanomas = clean["dx"] == "mel"
    assert report["clean"]["melanoma_sensitivity"] == (clean.loc[melanomas, "p_mel"] >= 0.3).mean()
    assert row["melanoma_sensitivity"] == (worse.loc[melanomas, "p_mel"] >= 0.3).mean()
    decided = disturbed_scores(clean, [("hair", 3, worse)], CLASSES, None, **DRAWS)
    assert decided["clean"]["melanoma_sensitivity"] == (clean.loc[melanomas, "predicted"] == "mel").mean()
    assert (report["images"], report["lesions"], report["counts"]) == (120, 60, dict.fromkeys(CLASSES, 20))


def test_the_worst_kind_is_named_with_a_wider_interval(clean):
    given = [("hair", 3, noisier(clean, 0.5)), ("blur", 3, noisier(clean, 4.0)), ("crop", 5, noisier(clean, 9.0))]
    report = disturbed_scores(clean, given, CLASSES, 0.3, **DRAWS)
    worst, alone = report["worst"], report["rows"][1]["differences"]["balanced_accuracy"]
    assert (worst["kind"], worst["kinds"], worst["severity"]) == ("blur", 2, 3)
    assert worst["difference"] == alone["difference"]
    assert worst["low"] < alone["low"] < alone["high"] < worst["high"] < 0
    line = worst_line(report)
    lost = f"{-100 * worst['difference']:.1f} points"
    assert line.startswith(f"It loses {lost} of balanced accuracy under defocus of severity 3")
    assert "for all 2 kinds together" in line
    same = disturbed_scores(clean, [("hair", 3, clean)], CLASSES, 0.3, **DRAWS)
    assert worst_line(same).startswith("No kind is shown to cost balanced accuracy at severity 3; the worst is hair")
    without = disturbed_scores(clean, [("hair", 5, clean)], CLASSES, 0.3, **DRAWS)
    assert without["worst"] is None


def report_of(clean: pd.DataFrame, kinds, monkeypatch=None, **changes) -> dict:
    images = np.random.default_rng(0).integers(0, 256, (len(clean), 16, 16, 3), dtype=np.uint8)
    rows = clean.assign(row=np.arange(len(clean))[::-1])
    seen = []

    def predict(path, places):
        packed = np.load(path)
        seen.append(packed)
        noise = packed.astype(float).mean(axis=(1, 2, 3)) - images[places].astype(float).mean(axis=(1, 2, 3))
        logits = as_arrays(rows.set_index("row").loc[places].reset_index(), CLASSES)[2]
        table = rows.set_index("row").loc[places].reset_index()
        return prediction_table(table, "test", logits + noise[:, None] * [1, 0, 0], CLASSES, scaled(3))

    given = {"preprocessing": Preprocessing(16), "kinds": kinds, "lesions": 30, "threshold": 0.3, **DRAWS} | changes
    report = robustness_report(rows, images, CLASSES, predict, **given)
    return {"report": report, "seen": seen, "images": images, "rows": rows}


def test_severity_zero_has_exactly_the_clean_scores(clean, monkeypatch):
    monkeypatch.setattr(disturbed, "SEVERITIES", (0,))
    made = report_of(clean, ["hair", "motion"])
    chosen = chosen_lesions(clean["group_id"], clean["dx"].map(CLASSES.index).to_numpy(), 30, DRAWS["seed"])
    assert (made["seen"][0] == made["images"][made["rows"].loc[chosen, "row"]]).all()
    for row in made["report"]["rows"]:
        for name, bounds in row["differences"].items():
            assert row[name] == made["report"]["clean"][name]
            assert bounds["difference"] == 0


def test_each_image_is_disturbed_by_its_own_name_and_filtered_again(clean):
    first, again = report_of(clean, ["hair"]), report_of(clean.iloc[::-1], ["hair"])
    by_name = [dict(zip(made["rows"]["image_id"], made["rows"]["row"], strict=True)) for made in (first, again)]
    assert by_name[0] != by_name[1]
    assert first["report"]["clean"] == again["report"]["clean"]
    assert first["report"]["lesions"] == 30
    assert len(first["seen"]) == 5
    plain = report_of(clean, ["brightness"])["seen"][0]
    even = Preprocessing(16, colour_constancy=True, clahe=True)
    assert (plain != report_of(clean, ["brightness"], preprocessing=even)["seen"][0]).any()


def test_nothing_is_done_without_kinds(clean):
    assert report_of(clean, [])["report"] is None
    assert card_of({}) == card_of({"robustness": None}) == []


def test_the_card_has_a_table_and_a_line(clean):
    given = [(kind, s, noisier(clean, s * 0.4, seed=s)) for kind in ("motion", "jpeg") for s in (1, 2, 3, 4, 5)]
    report = json.loads(json.dumps(disturbed_scores(clean, given, CLASSES, 0.3, **DRAWS)))
    lines = card_of({"robustness": report})
    (row,) = [line for line in lines if line.startswith("| motion blur |")]
    changes = [one["differences"]["balanced_accuracy"] for one in report["rows"][:5]]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:4] == [
        f"{changes[s]['difference']:+.3f} ({changes[s]['low']:.3f} to {changes[s]['high']:.3f})" for s in (0, 2, 4)
    ]
    assert worst_line(report) in lines
    assert any("120 test images of 60 lesions" in line for line in lines)
    assert not any("a hint at most" in line for line in lines)
    report["counts"]["bkl"] = 4
    assert "Fewer than 10 lesions of bkl: means over classes are a hint at most." in card_of({"robustness": report})


def test_figures_are_the_same_bytes_for_the_same_report(clean, tmp_path):
    given = [(kind, s, noisier(clean, s * 0.4, seed=s)) for kind in ("motion", "jpeg") for s in (1, 2, 3, 4, 5)]
    report = disturbed_scores(clean, given, CLASSES, 0.3, **DRAWS) | {"seed": 0}
    images = np.random.default_rng(0).integers(0, 256, (120, 32, 32, 3), dtype=np.uint8)
    table = clean.assign(row=np.arange(120))
    for name in ("a", "b"):
        draw_robustness(tmp_path / f"{name}.png", report, "drawn")
        draw_disturbed(tmp_path / f"{name}-sheet.png", images, table, report, "drawn")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a-sheet.png").read_bytes() == (tmp_path / "b-sheet.png").read_bytes()
    other = disturbed_scores(clean, given[:5], CLASSES, 0.3, **DRAWS)
    draw_robustness(tmp_path / "c.png", other, "drawn")
    assert (tmp_path / "c.png").read_bytes() != (tmp_path / "a.png").read_bytes()


@pytest.mark.parametrize(
    ("architecture", "tta"), [("timm", "none"), ("timm", "flips"), ("multimodal", "none"), ("probe", "none")]
)
def test_networks_of_every_kind_see_the_disturbed_images(architecture, tta, tmp_path, monkeypatch):
    """With disturbances that do nothing each image has its clean score, metadata and views included; else not."""
    from stages import evaluate

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(disturbed, "SEVERITIES", (3,))
    write_model(tmp_path / "model.safetensors", architecture)
    model, facts = load_model(tmp_path / "model.safetensors")
    rng = np.random.default_rng(0)
    evaluate.IMAGES.parent.mkdir(parents=True)
    np.save(evaluate.IMAGES, rng.integers(0, 256, (24, 96, 96, 3), dtype=np.uint8))
    labels = pd.DataFrame({"image_id": [f"I{n:02}" for n in range(24)], "dx": np.resize(facts.classes, 24)})
    labels["lesion_id"] = labels["group_id"] = [f"L{n % 12:02}" for n in range(24)]
    labels = labels.assign(
        source="synthetic", dx_type="histo", sex=np.resize(["female", "male", "unknown"], 24), localization="back"
    ).assign(age=np.linspace(10, 90, 24))
    rows = np.arange(4, 24)
    own = evaluate.TestSet(evaluate.IMAGES, labels, rows, np.full(20, "test"))
    run = {"model": model, "batch_size": 8, "device": torch.device("cpu"), "precision": "fp32", "tta": tta}
    test = evaluate.predict(own, facts, run)[0]
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    merge(content, {"evaluate": {"robustness": ["dark_corner"], "robustness_lesions": 6, "resamples": 100}})
    params = parse_params(content).evaluate

    assert evaluate.robustness_of(test, own, facts, run, params)["lesions"] == 6
    seen = []

    def scores(clean, given, *_, **__):
        seen.append([clean, *(table for _, _, table in given)])
        return {}

    monkeypatch.setattr(disturbed, "disturbed_scores", scores)
    evaluate.robustness_of(test, own, facts, run, params)
    monkeypatch.setattr(disturbed, "disturb", lambda image, kind, severity, **about: image)
    evaluate.robustness_of(test, own, facts, run, params)
    columns = [f"logit_{code}" for code in facts.classes]
    apart = [np.abs(again[columns].to_numpy() - clean[columns].to_numpy()).max() for clean, again in seen]
    assert apart[0] > 1e-3
    assert apart[1] < 1e-4
    assert seen[1][0]["lesion_predicted"].tolist() == seen[1][1]["lesion_predicted"].tolist()


@pytest.fixture(scope="module")
def asked(ran_project, tmp_path_factory) -> Project:
    """The project with two kinds asked for, evaluated."""
    project = ran_project.copy(tmp_path_factory.mktemp("asked") / "project")
    content = yaml.safe_load((project.folder / "params.yaml").read_text())
    merge(content, {"evaluate": {"robustness": ["crop", "noise"], "robustness_lesions": 8}})
    (project.folder / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    project.run("dvc", "repro", "evaluate")
    return project


@pytest.mark.sweep
def test_the_pipeline_reports_them_where_they_were_asked_for(asked, ran_project):
    report = json.loads((asked.folder / "metrics/report.json").read_text())["test"]
    before = json.loads((ran_project.folder / "metrics/report.json").read_text())["test"]
    assert before["robustness"] is None
    assert "Image corruptions" not in (ran_project.folder / "MODEL_CARD.md").read_text()
    assert report | {"robustness": None} == before  # nothing else changes
    found = report["robustness"]
    assert [(row["kind"], row["severity"]) for row in found["rows"]] == [
        (kind, severity) for kind in ("crop", "noise") for severity in (1, 2, 3, 4, 5)
    ]
    assert "### Image corruptions" in (asked.folder / "MODEL_CARD.md").read_text()
    assert worst_line(found) in summary_text(report)
    figures = {path.name for path in (asked.folder / "plots/figures").iterdir()}
    old = {path.name for path in (ran_project.folder / "plots/figures").iterdir()}
    assert figures - old == {"robustness.png", "disturbed.png"}
    test = pd.read_csv(asked.folder / "data/predictions.csv").query("split == 'test'")
    classes = [column.removeprefix("p_") for column in test if column.startswith("p_")]
    labels = test["dx"].map(classes.index).to_numpy()
    chosen = test[chosen_lesions(test["group_id"], labels, 8, 0)]
    probabilities, labels, _ = as_arrays(chosen, classes)
    exact = headline_metrics(probabilities, labels, classes, decisions(chosen, classes))
    assert found["images"] == len(chosen)
    assert found["clean"]["balanced_accuracy"] == pytest.approx(exact["balanced_accuracy"], abs=1e-6)


def test_a_set_outside_the_pipeline_is_disturbed_too(content, tmp_path):
    write_model(tmp_path / "model.safetensors", "multimodal")
    folder = tmp_path / "set"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        picture = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (160, 120), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"I{number:02}.png"), picture)
    labels = pd.DataFrame({"image_id": [f"I{n:02}" for n in range(12)], "dx": np.resize(["bcc", "mel", "nv"], 12)})
    labels["lesion_id"] = [f"L{n % 6}" for n in range(12)]
    labels.assign(age=50, sex="male", localization="back").to_csv(folder / "t.csv", index=False)
    asked = {"robustness": ["crop", "noise"], "robustness_lesions": 3, "resamples": 100}
    merge(content, {"evaluate": asked, "machine": {"threads": 1, "device": "cpu"}})
    result = evaluate_standalone(
        tmp_path / "model.safetensors",
        "table",
        SourceOptions(dir=str(folder)),
        tmp_path / "out",
        parse_params(content),
        root=tmp_path,
        known=TrainingSet(tmp_path / "none", tmp_path / "none.csv", "table"),
        processes=1,
        figures=True,
    )
    found = result.report["robustness"]
    assert {row["kind"] for row in found["rows"]} == {"crop", "noise"}
    assert (found["lesions"], found["images"]) == (3, 6)
    assert worst_line(found) in summary_text(result.report)
    assert json.loads((tmp_path / "out/report.json").read_text())["robustness"]["rows"][0]["severity"] == 1
    assert {"robustness.png", "disturbed.png"} <= {path.name for path in (tmp_path / "out/figures").iterdir()}


@pytest.mark.parametrize("sets", [12, pytest.param(300, marks=pytest.mark.sweep)])
def test_intervals_of_disturbed_images_hold_the_truth(sets, monkeypatch):
    """Also that of the worst of several kinds, which one made for a single kind does less often."""
    many = statistics.disturbed_report(300, 40, np.random.default_rng(2**35), 1, 0)
    truth = [{name: row["differences"][name]["difference"] for name in statistics.OF_DISTURBED} for row in many["rows"]]
    held = pd.DataFrame([statistics.disturbed_held(seed, 300, truth, 150) for seed in range(sets)]).mean()
    chance = 3 * np.sqrt(0.05 * 0.95 / sets)
    assert (held[["balanced_accuracy", "macro_auc", "melanoma_sensitivity", "worst"]] > 0.95 - chance).all(), held
