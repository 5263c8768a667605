"""The model card says what the report says, warns where it must, and holds nothing that would change by itself."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers.predictions import scaled
from helpers.project import Project

from exp_tools.cli import main as cli
from exp_tools.evaluation.metrics.classification import headline_metrics
from exp_tools.evaluation.prediction_sets import set_column, set_members
from exp_tools.evaluation.predictions import as_arrays, prediction_table
from exp_tools.evaluation.report.build import score_set
from exp_tools.evaluation.report.model_card import model_card
from exp_tools.evaluation.report.participants import participants
from exp_tools.evaluation.report.text import summary_text
from exp_tools.io import plain
from exp_tools.models.model_file import ModelFacts

THRESHOLDS = {"melanoma": 0.31, "melanoma_sensitivity": 0.95, "abstain": 0.4, "abstain_share": 0.1}
DIGESTS = {"data/prepared/labels.csv": "0a" * 16, "data/splits.csv": "1b" * 16, "models/model.safetensors": "2c" * 16}


def predictions(classes, images: int = 200, *, rare: str | None = None) -> pd.DataFrame:
    """Random predictions with metadata; `rare` has six images of three lesions, the others about as many each."""
    generator = np.random.default_rng(5)
    dx = np.array([code for code in classes if code != rare])[
        np.arange(images) // 2 % (len(classes) - (rare is not None))
    ]
    if rare:
        dx[:6] = rare
    labels = pd.DataFrame(
        {
            "image_id": [f"I{n:04}" for n in range(images)],
            "lesion_id": [f"L{n // 2:04}" for n in range(images)],
            "group_id": [f"L{n // 2:04}" for n in range(images)],
            "source": "ham10000",
            "dx": dx,
        }
    )
    logits = generator.normal(0, 1, (images, len(classes))) + 2 * (dx[:, None] == np.array(classes))
    table = prediction_table(labels, "test", logits, classes, scaled(len(classes)))
    halves = np.arange(images) // 2 % 2
    return table.assign(
        sex=np.where(halves, "male", "female"),
        age=45.0,
        localization="back",
        dx_type=np.where(halves, "histo", "consensus"),
    )


def facts(classes, **changes) -> ModelFacts:
    given = {
        "architecture": "soft_attention",
        "knobs": {"backbone": "resnet34", "heads": 16},
        "task": "diagnosis",
        "classes": list(classes),
        "preprocessing": {"image_size": 224, "resize": "crop", "hair_removal": True, "clahe": False},
        "pixel_mean": [0.5] * 3,
        "pixel_std": [0.2] * 3,
        "calibration": scaled(len(classes), 1.25).as_dict(),
        "source": "ham10000",
        "thresholds": THRESHOLDS,
        "training": {
            "parameters": {"lr": 0.001, "augment": {"preset": "medium"}},
            "weights": "imagenet",
            "precision": "bf16",
            "device": "cuda",
            "threads": 4,
            "processes": 2,
            "best_epoch": 7,
            "epochs_run": 12,
            "images": 7000,
        },
        "versions": {"torch": "2.8.0"},
    }
    return ModelFacts(**given | changes)


def report_of(table, classes, **changes):
    arguments = {
        "calibration": scaled(len(classes), 1.25),
        "thresholds": THRESHOLDS,
        "costs": None,
        "resamples": 50,
        "seed": 0,
    }
    return score_set(table, classes, **arguments | changes)


SETS = {
    "score": "lac",
    "coverage": 0.9,
    "needed": 9,
    "lesions": {"bkl": 4, "mel": 60, "nv": 300},
    "thresholds": {"bkl": None, "mel": 0.8, "nv": 0.2},
}


@pytest.fixture(scope="module")
def classes():
    return ["bkl", "mel", "nv"]


@pytest.fixture(scope="module")
def report(classes):
    test = report_of(predictions(classes, rare="bkl"), classes, costs={"mel": {"nv": 20}})
    external = report_of(predictions(classes, 60), classes) | {"left_out": {"common_nevus": 3, "scc": 2}}
    return {"test": test, "external": {"ph2": external}}


def cells(card: str, first: str) -> list[str]:
    """The other cells of the table row whose first cell is `first`."""
    (line,) = [line for line in card.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_it_says_how_many_settings_were_tried(classes, report):
    found = {"balanced_accuracy": 0.7, "low": 0.6, "high": 0.8}
    test = report["test"]
    once = model_card(facts(classes), report | {"test": test | {"validation": found | {"trials": 1}}}, DIGESTS)
    assert "(0.600 to 0.800): the best of 12 epochs, so it flatters" in once
    often = model_card(facts(classes), report | {"test": test | {"validation": found | {"trials": 1200}}}, DIGESTS)
    assert "the best of 12 epochs of the best of 1,200 settings that were tried, so it flatters" in often


def test_scores_are_those_of_the_report_with_their_intervals(classes, report):
    card, test = model_card(facts(classes), report, DIGESTS), report["test"]
    bounds, lesions = test["intervals"]["balanced_accuracy"], test["lesion_level"]
    assert cells(card, "balanced accuracy") == [
        f"{test['metrics']['balanced_accuracy']:.3f} *",  # its rarest class has fewer than ten lesions
        f"{bounds['low']:.3f} to {bounds['high']:.3f}",
        f"{lesions['metrics']['balanced_accuracy']:.3f} *",
        "{low:.3f} to {high:.3f}".format(**lesions["intervals"]["balanced_accuracy"]),
    ]
    mel = test["per_class"]["mel"]
    reach = "{low:.3f} to {high:.3f}".format(**mel["intervals"]["sensitivity"])
    assert cells(card, "`mel` Melanoma")[:3] == [
        str(mel["support"]),
        str(mel["lesions"]),
        f"{mel['sensitivity']:.3f} ({reach})",
    ]
    melanoma = test["melanoma"]
    assert cells(card, "at the model's threshold: sensitivity")[0] == f"{melanoma['sensitivity']:.3f}"
    assert cells(card, "calibration error, bins of equal width") == [
        f"{test['calibration'][part]['ece_width']:.3f}" for part in ("before", "after")
    ]
    assert (
        cells(card, "the class of least expected cost")[0] == f"{test['costs']['mean_cost']['least_expected_cost']:.3f}"
    )
    male = next(row for row in test["subgroups"] if row["value"] == "male")
    assert f"| sex | male | {male['images']} | {male['lesions']} |" in card
    sets, melanomas = (line for line in card.splitlines() if line.startswith("| ph2 |"))
    assert sets.endswith("| 5 |")
    scores = report["external"]["ph2"]["melanoma"]
    assert f"| {scores['sensitivity']:.3f}" in melanomas
    assert f"| {scores['specificity']:.3f}" in melanomas
    assert "0.31 or more" in card
    assert "find 95% of new melanomas" in card


def test_the_card_is_the_same_from_memory_and_from_json(classes, report):
    again = json.loads(json.dumps(plain(report)))
    assert model_card(facts(classes), again, DIGESTS) == model_card(facts(classes), report, DIGESTS)


def test_how_to_reproduce_names_parameters_and_checksums_and_neither_commit_nor_date(classes, report):
    card = model_card(facts(classes), report, DIGESTS)
    for path, digest in DIGESTS.items():
        assert cells(card, f"`{path}`") == [f"`{digest}`"]
    assert "augment:\n  preset: medium\nlr: 0.001\n" in card
    assert "Made with precision bf16, device cuda, threads 4, processes 2; torch 2.8.0." in card
    assert re.findall(r"\b[0-9a-f]{40}\b|\b20\d\d-\d\d", card) == []


def test_a_model_that_no_run_gives_again_says_so(classes, report):
    free = facts(classes, training={"parameters": {"deterministic": False}})
    assert "the same command gives another model" in model_card(free, report, DIGESTS)
    fixed = facts(classes, training={"parameters": {"deterministic": True}})
    assert "On the same kind of machine the files are the same" in model_card(fixed, report, DIGESTS)


def test_drawn_images_are_said_in_the_first_line(classes, report):
    first = model_card(facts(classes, source="synthetic"), report, DIGESTS).splitlines()[0]
    assert first.startswith("# Model card: soft_attention, trained on synthetic images: no number here means anything")
    real = model_card(facts(classes), report, DIGESTS)
    assert real.splitlines()[0] == "# Model card: soft_attention, trained on ham10000"
    assert "drawn" not in real
    assert real.splitlines()[2].startswith("**Research and teaching only: not a medical device.**")


def test_limits_come_from_the_numbers(classes, report):
    card = model_card(facts(classes), report, DIGESTS)
    limits = card[card.index("## Limits") : card.index("## How")]
    assert "Fewer than 10 lesions to test of: bkl." in limits
    assert "50% of the test labels were confirmed by histopathology" in limits
    assert "the set it was trained on only" not in limits
    alone = model_card(facts(classes), report | {"external": {}}, DIGESTS)
    assert "Tested on the set it was trained on only" in alone
    assert "## Results on other sets" not in alone
    assert cells(card, "`bkl` Benign keratosis")[2].endswith(" *")
    assert "\\* rests on fewer than 10 lesions" in card


def test_baseline_and_test_time_augmentation_stand_beside_the_scores(classes, report):
    without = headline_metrics(*as_arrays(predictions(classes), classes)[:2], classes)
    test = report["test"] | {"baseline": without, "tta": {"views": 8, "metrics_without": without}}
    card = model_card(facts(classes), report | {"test": test}, DIGESTS)
    assert cells(card, "accuracy")[-1] == f"{without['accuracy']:.3f}"
    assert f"8 times the work; without, the balanced accuracy is {without['balanced_accuracy']:.3f}." in card


def test_the_card_says_the_obvious(classes, report):
    worse = {"after": {"log_loss": 2.0}, "before": {"log_loss": 1.0}}
    calibration = dict(report["test"]["calibration"])
    calibration |= {part: calibration[part] | worse[part] for part in worse}
    above = {"balanced_accuracy": {"difference": -0.1, "low": -0.2, "high": 0.01}}
    above["macro_auc"] = {"difference": 0.2, "low": 0.1, "high": 0.3}
    test = report["test"] | {"baseline": report["test"]["metrics"], "above_baseline": above, "calibration": calibration}
    card = model_card(facts(classes), report | {"test": test}, DIGESTS)
    assert "balanced accuracy is -0.100 (-0.200 to 0.010): **not shown to be better than mean colours**." in card
    assert "macro AUC is +0.200 (0.100 to 0.300)." in card
    assert "**Calibration made the log-loss worse on the test split**" in card
    assert "no patient ids" in card
    assert "made the log-loss worse" not in model_card(
        facts(classes),
        report | {"test": test | {"calibration": calibration | dict.fromkeys(worse, calibration["before"])}},
        DIGESTS,
    )


def test_whose_images_they_are_is_told_by_split(classes, report):
    labels = pd.DataFrame(
        {
            "lesion_id": ["a", "a", "b", "c", "d"],
            "group_id": ["a", "a", "b", "c", "d"],
            "dx": ["mel", "mel", "nv", "nv", "bkl"],
            "sex": ["male", "male", "female", "", "female"],
            "localization": ["back", "back", "upper extremity", "", "back"],
            "age": [50.0, 50.0, 30.0, np.nan, 70.0],
        }
    )
    prepared = {
        "rows_read": 7,
        "rows_left_out": 1,
        "problems": {"damaged_image": {"skipped": 1, "noted": 2}, "bad_age": {"fixed": 3}},
    }
    split = ["train", "train", "val", "test", "test", "unused"]
    found = participants(labels.loc[[*range(5), 4]], split, classes, prepared)
    assert found["splits"]["train"] == {
        "images": 2,
        "lesions": 1,
        "classes": {"bkl": 0, "mel": 2, "nv": 0},
        "sex": {"male": 2},
        "localization": {"back": 2},
        "age": {"median": 50.0, "low": 50.0, "high": 50.0, "unknown": 0},
    }
    assert found["splits"]["test"]["age"] == {"median": 70.0, "low": 70.0, "high": 70.0, "unknown": 1}
    card = model_card(facts(classes), report | {"test": report["test"] | {"participants": found}}, DIGESTS)
    assert (
        "The source has 7 rows; 1 were left out (damaged image 1), which leaves 6 images, 1 in no split. Problems that "
        "were mended or noted (damaged image 2, bad age 3)."
    ) in card
    assert "| lesions | 1 | 1 | 2 |" in card
    assert cells(card, "sex: female") == ["0 (0.0%)", "1 (100.0%)", "1 (50.0%)"]
    assert cells(card, "site: unknown") == ["0 (0.0%)", "0 (0.0%)", "1 (50.0%)"]
    assert cells(card, "age in years: median (quartiles)")[0] == "50 (50 to 50)"
    counted = report["test"]["confusion"]
    assert "| `mel` | 2 (100.0%) | 0 (0.0%) | 0 (0.0%) |" in card
    assert f"| `mel` | {' | '.join(str(count) for count in counted['mel'].values())} |" in card
    assert "takes 139 lesions of a class; no class has as many" in card
    assert "LEAKY" not in card
    assert "The split is by lesion: none is in both." in card


def test_a_split_by_image_is_called_leaky_wherever_it_matters(classes, report):
    labels = pd.DataFrame({"lesion_id": list("abc"), "group_id": list("aab"), "dx": "mel", "sex": "", "age": 1.0})
    prepared = {"rows_read": 3, "rows_left_out": 0, "problems": {}}
    found = participants(labels.assign(localization=""), ["train", "test", "test"], classes, prepared)
    assert found["leak"] == 1
    test = report["test"] | {"participants": found | {"leak": 37}}
    card = model_card(facts(classes), report | {"test": test}, DIGESTS)
    assert card.index("**LEAKY: 37 of 200 test images show a lesion that the model was trained on.") < card.index("##")
    assert "The split is LEAKY, by image: lesions are in both." in card
    assert "split is by lesion" not in card


def test_gaps_between_subgroups_are_told_only_where_clear(classes, report):
    gap = {"attribute": "age", "metric": "melanoma_auc", "best": "20-39", "worst": "80+", "gap": 0.2}
    gap |= {"interval": {"low": 0.05, "high": 0.3}, "clear": True, "compared": 4, "shrunken": 0.12, "p": 0.01}
    with_gap = report | {"test": report["test"] | {"gaps": [gap, gap | {"attribute": "sex", "clear": False}]}}
    card = model_card(facts(classes), with_gap, DIGESTS)
    assert "- age in years: melanoma auc is 0.200 (0.050 to 0.300) lower for 80+ than for 20-39" in card
    assert "- sex: melanoma" not in card
    none = report | {"test": report["test"] | {"gaps": [gap | {"clear": False}]}}
    assert "No gap between groups of at least 10 lesions" in model_card(facts(classes), none, DIGESTS)


def test_a_model_without_melanoma_and_thresholds_has_a_card():
    classes = ["bkl", "nv"]
    test = report_of(predictions(classes), classes, thresholds={})
    card = model_card(facts(classes, thresholds={}), {"test": test, "external": {}}, DIGESTS)
    assert "### Melanoma" not in card
    assert "abstains" not in card
    assert "Mean cost" not in card


def test_prediction_sets_are_explained_and_where_the_promise_fails_is_said(classes):
    def scored(images):
        table = predictions(classes, images, rare="bkl")
        members = set_members(SETS, classes, as_arrays(table, classes)[0])
        return report_of(table.assign(prediction_set=set_column(members, classes)), classes, set_coverage=0.9)

    report = {"test": scored(200), "external": {"ph2": scored(60)}}
    found = report["test"]["prediction_sets"]
    card = model_card(facts(classes, prediction_sets=SETS), report, DIGESTS)
    assert (
        "**In every set**, since validation has fewer than the 9 lesions that such a promise takes: `bkl` (4)." in card
    )
    section = card[card.index("### Prediction sets") : card.index("### Subgroups")]
    assert cells(section, "`mel`")[1].startswith(f"{found['per_class']['mel']['coverage']:.3f} (")
    assert found["per_class"]["nv"]["short"]
    assert "**On the test split the promise does not hold** (asked 0.9)" in section
    assert "`nv` 0." in section
    assert "not ruled out for the person" in section
    assert cells(section, "ph2")[0] == "30"
    assert card == model_card(facts(classes, prediction_sets=SETS), json.loads(json.dumps(plain(report))), DIGESTS)
    text = summary_text(report["test"])
    assert f"prediction sets (asked 0.9): {found['coverage']:.3f} [" in text


def test_a_model_without_prediction_sets_says_so(classes, report):
    card = model_card(facts(classes), report, DIGESTS)
    assert "### Prediction sets\n\nThis model file holds none (`calibration.sets`)." in card
    assert "prediction sets" not in summary_text(report["test"])


def test_what_is_undefined_is_a_dash(report):
    classes = ["bkl", "mel", "nv", "vasc"]
    table = predictions(["bkl", "mel", "nv"]).assign(p_vasc=0.0, logit_vasc=-20.0)
    card = model_card(facts(classes), {"test": report_of(table, classes), "external": {}}, DIGESTS)
    assert cells(card, "`vasc` Vascular lesion")[:3] == ["0", "0", "–"]
    assert "nan" not in card
    assert "None" not in card


@pytest.fixture
def repository(tmp_path, monkeypatch, classes, report):
    project = Project(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "MODEL_CARD.md").write_text(model_card(facts(classes), report, DIGESTS))
    project.run("git", "init", "-q", "-b", "main")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "run", GIT_COMMITTER_DATE="2024-03-05T12:00:00+0000")
    monkeypatch.chdir(tmp_path)
    return project


def test_the_command_prints_the_card_and_adds_the_commit(repository, capsys):
    card = (repository.folder / "MODEL_CARD.md").read_text()
    assert cli.main(["card"]) == 0
    assert capsys.readouterr().out == card
    commit = repository.run("git", "rev-parse", "HEAD").stdout.strip()
    assert cli.main(["card", "--commit"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == f"Commit `{commit}` of 2024-03-05."
    assert [lines[0], *lines[3:]] == card.splitlines()


def lock(model: str, splits: str = "s" * 32) -> str:
    deps = [{"path": "models/model.safetensors", "md5": model}, {"path": "data/splits.csv", "md5": splits}]
    return yaml.safe_dump({"stages": {"evaluate": {"cmd": "x", "deps": deps}}})


def test_models_that_were_scored_on_this_test_split_are_counted(repository, capsys):
    file = repository.folder / "dvc.lock"
    for model, splits in (("a", "s"), ("b", "s"), ("c", "other"), ("b", "s")):
        file.write_text(lock(model, splits))
        repository.run("git", "add", "-A")
        repository.run("git", "commit", "-qm", f"{model} {splits}", "--allow-empty")
    base = repository.run("git", "rev-parse", "HEAD").stdout.strip()
    file.write_text(lock("d", "s"))  # an experiment, which is on no branch
    repository.run("git", "add", "-A")
    tree = repository.run("git", "write-tree").stdout.strip()
    commit = repository.run("git", "commit-tree", tree, "-p", base, "-m", "exp").stdout.strip()
    repository.run("git", "update-ref", f"refs/exps/{base[:2]}/{base[2:]}/mine", commit)
    repository.run("git", "reset", "-q", "--hard")
    assert cli.main(["card", "--commit"]) == 0
    assert (
        capsys.readouterr().out.splitlines()[2].endswith(". 3 models of this checkout were scored on this test split.")
    )
    file.write_text(lock("e", "new"))
    assert cli.main(["card", "--commit"]) == 0
    assert ". One model of this checkout was scored on this test split." in capsys.readouterr().out


def test_a_changed_card_belongs_to_no_commit(repository, capsys):
    card = repository.folder / "MODEL_CARD.md"
    card.write_text(card.read_text() + "more\n")
    assert cli.main(["card", "--commit"]) == 0
    line = capsys.readouterr().out.splitlines()[2]
    assert line.startswith("Not committed yet: MODEL_CARD.md changed after commit `")


def test_without_a_card_or_a_commit_the_remedy_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["card"]) == 1
    assert "dvc repro evaluate" in capsys.readouterr().err
    (tmp_path / "MODEL_CARD.md").write_text("# Model card\n")
    assert cli.main(["card", "--commit"]) == 1
    assert "has no Git commit that the card could belong to" in capsys.readouterr().err
