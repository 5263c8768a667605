"""`exp-tools ensemble`: what it serves is what its members' tables say, and it knows what is left to test it."""

import numpy as np
import pandas as pd
import pytest
from helpers.project import TINY, clone

from exp_tools.errors import UserError
from exp_tools.evaluation.calibrate import fit_probabilities
from exp_tools.evaluation.prediction_sets import fit_sets
from exp_tools.evaluation.predictions import as_arrays, read_predictions
from exp_tools.models.model_file import is_ensemble, read_facts
from exp_tools.params import load_params
from exp_tools.serving.predictor import NOBODY, Predictor
from exp_tools.studies.ensemble import make_ensemble

STAGES = ("--single-item", "train", "ood", "calibrate", "evaluate")
COMMAND = ("python", "-m", "exp_tools.cli", "ensemble")


@pytest.fixture
def seeds(ran_project, tmp_path):
    """A project that ran with seed 0 in the workspace and with seed 1 as an experiment."""
    project = ran_project.copy(tmp_path / "project")
    project.run("dvc", "exp", "run", "--temp", "-n", "one", "-S", "train.seed=1", *STAGES)
    return project


def test_what_it_serves_is_the_mean_of_its_members(seeds):
    root = seeds.folder
    done = seeds.run(*COMMAND, "workspace", "one", "--out", "models/both.safetensors")
    assert "2 members" in done.stdout
    table, classes = read_predictions(root / "models/both.csv")
    assert set(table["split"]) == {"val", "test"}
    known = table[table["split"] == "val"]
    wanted = fit_sets("lac", 0.9, classes, *as_arrays(known, classes)[:2], known["lesion_id"])
    sets = read_facts(root / "models/both.safetensors").prediction_sets
    assert sets["lesions"] == wanted["lesions"]
    for code, limit in sets["thresholds"].items():
        assert (limit is None) == (sets["lesions"][code] < 9)
        assert limit is None or limit == pytest.approx(wanted["thresholds"][code], abs=3e-6)
    held = [code for code, limit in sets["thresholds"].items() if limit is None]
    assert all(set(held) <= set(cell.split()) for cell in table["prediction_set"])
    rows = table[table["split"] == "test"]
    labels = pd.read_csv(root / "data/prepared/labels.csv")
    images = np.load(root / "data/prepared/images.npy", mmap_mode="r")
    places = labels.reset_index().set_index("image_id").loc[rows["image_id"], "index"].to_numpy()
    served = Predictor(root / "models/both.safetensors").predict_pixels(images[places], [NOBODY] * len(places))
    probabilities = np.array([list(one.probabilities.values()) for one in served])
    assert np.abs(probabilities - as_arrays(rows, classes)[0]).max() < 1e-5  # tables hold six decimals of a logit
    assert [one.diagnosis for one in served] == rows["predicted"].tolist()
    seeds.run(
        "exp-tools", "export", "--format", "onnx", "--model", "models/both.safetensors", "--out", "models/both.onnx"
    )
    exported = Predictor(root / "models/both.onnx").predict_pixels(images[places], [NOBODY] * len(places))
    assert np.abs(np.array([list(one.probabilities.values()) for one in exported]) - probabilities).max() < 1e-4
    # Foreign pictures are told by the first member.
    member, _ = read_predictions(root / "data/predictions.csv")
    alone = member[member["split"] == "test"].set_index("image_id").loc[rows["image_id"]]
    assert rows["unlike_training"].tolist() == alone["unlike_training"].tolist()
    for told in (served, exported):
        assert [one.unlike_training for one in told] == alone["unlike_training"].tolist()
        assert np.abs([one.unlike_score for one in told] - alone["unlike_score"]).max() < 1e-3
    assert "| test |" in (root / "models/both.md").read_text(encoding="utf-8")
    # Before its own calibration it is the mean, and that calibration is fitted on validation.
    facts = read_facts(root / "models/both.safetensors")
    first, _ = read_predictions(root / "data/predictions.csv")
    assert facts.training["members"][1]["seed"] == 1
    assert facts.training["members"][0]["md5"] != facts.training["members"][1]["md5"]
    validation = table[table["split"] == "val"].sort_values("image_id")
    assert set(validation["image_id"]) == set(first.loc[first["split"] == "val", "image_id"])
    logits, truth = validation[[f"logit_{code}" for code in classes]].to_numpy(), as_arrays(validation, classes)[1]
    temperature, bias = fit_probabilities(logits, truth, np.zeros(len(classes)))
    assert facts.calibration["temperature"] == pytest.approx(temperature, rel=1e-3)
    assert facts.calibration["bias"] == pytest.approx(bias.tolist(), abs=1e-3)
    card = (root / "models/both.md").read_text(encoding="utf-8")
    assert "the mean of the probabilities of 2 networks" in card
    assert "`one`: `soft_attention`" in card
    assert "Out of fold" not in card
    assert "balanced accuracy" in seeds.run("exp-tools", "score", "models/both.csv", "--resamples", "50").stdout
    again = seeds.run(*COMMAND, "workspace", "one", "--out", "models/again.safetensors")
    assert again.returncode == 0
    assert (root / "models/again.safetensors").read_bytes() == (root / "models/both.safetensors").read_bytes()
    mine = root / "models/mine.csv"
    mine.write_text("my table\n", encoding="utf-8")
    refused = seeds.run(*COMMAND, "workspace", "one", "--out", "models/mine.safetensors", check=False)
    assert refused.returncode == 1
    assert "this command did not write it" in refused.stderr
    assert not (root / "models/mine.safetensors").exists()
    for words, said in [
        (["one"], "two or more"),
        (["one", "one"], "two or more"),
        (["one", "on"], "did you mean 'one'"),
    ]:
        with pytest.raises(UserError, match=said):
            make_ensemble(words, root / "models/x.safetensors", root, load_params(root / "params.yaml"), root / "runs")


@pytest.mark.sweep
def test_of_folds_no_image_is_left_to_test_it(tmp_path):
    project = clone(tmp_path / "project", TINY | {"data": {"sample_images": 300}})
    project.run("dvc", "repro", "split", "external", "features")
    for fold in range(3):
        words = [f"split.{key}" for key in ("scheme=kfold", "folds=3", f"fold={fold}")]
        project.run(
            "dvc",
            "exp",
            "run",
            "--temp",
            "-n",
            f"fold{fold}",
            *(part for word in words for part in ("-S", word)),
            "--single-item",
            "split",
            *STAGES[1:],
        )
    done = project.run(*COMMAND, "fold0", "fold1", "fold2", "--out", "models/folds.safetensors")
    assert "no test image is left" in done.stdout
    root = project.folder
    assert is_ensemble(root / "models/folds.safetensors")
    assert read_facts(root / "models/folds.safetensors").training["ensemble_of"] == "folds"
    assert len(pd.read_csv(root / "models/folds.csv")) == 0
    card = (root / "models/folds.md").read_text(encoding="utf-8")
    assert "**Out of fold.**" in card
    assert "300 images of" in card
    scored = project.run("exp-tools", "score", "models/folds.csv", check=False)
    assert "has no split 'test'" in scored.stderr
    project.run("dvc", "repro", "evaluate")
    mixed = project.run(*COMMAND, "fold0", "workspace", "--out", "models/mixed.safetensors", check=False)
    assert mixed.returncode == 1
    assert not (root / "models/mixed.safetensors").exists()
