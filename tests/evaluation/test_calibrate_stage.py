"""The stage between train and evaluate: the same weights, and what validation says of them."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers.models import some_fit, write_model
from helpers.project import ROOT
from safetensors.numpy import load_file

from exp_tools.errors import UserError
from exp_tools.evaluation.probabilities import Calibration
from exp_tools.io import write_csv
from exp_tools.models.model_file import copy_model, read_facts
from exp_tools.ood.fit import write_fit
from exp_tools.serving.predictor import Predictor
from stages import calibrate

CLASSES = ["bcc", "mel", "nv"]
SHARES = [0.1, 0.2, 0.7]


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """What `train` leaves behind: a network without calibration, and its logits; a function that runs the stage."""
    write_model(tmp_path / "whole.safetensors")
    facts = read_facts(tmp_path / "whole.safetensors")
    training = {"best_epoch": 2, "epochs_run": 5, "class_shares": SHARES, "seen_shares": [1 / 3] * 3}
    network = tmp_path / "models/network.safetensors"
    network.parent.mkdir()
    facts = type(facts)(**{**facts.__dict__, "calibration": {}, "thresholds": {}, "training": training})
    copy_model(tmp_path / "whole.safetensors", network, facts)
    rng = np.random.default_rng(0)
    labels = rng.choice(3, 300, p=SHARES)
    logits = rng.normal(size=(300, 3)) + 1.5 * np.eye(3)[labels]
    ids = [f"i{number}" for number in range(300)]
    table = pd.DataFrame({"image_id": ids, "lesion_id": ids, "group_id": ids, "dx": np.array(CLASSES)[labels]})
    (tmp_path / "data").mkdir()
    write_csv(
        tmp_path / "data/validation.csv", table.assign(**{f"logit_{c}": logits[:, k] for k, c in enumerate(CLASSES)})
    )
    write_fit(tmp_path / "models/ood.safetensors", some_fit(96))
    monkeypatch.chdir(tmp_path)

    def run(**changes):
        content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        content["calibration"] |= changes
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        calibrate.main()
        facts = read_facts(tmp_path / "models/model.safetensors")
        return facts, json.loads((tmp_path / "metrics/validation.json").read_text())

    return run


def test_the_weights_stay_and_the_bytes_are_the_same_again(trained, tmp_path):
    facts, scores = trained()
    first = (tmp_path / "models/model.safetensors").read_bytes()
    network, model = (load_file(tmp_path / f"models/{name}.safetensors") for name in ("network", "model"))
    assert network.keys() == {name for name in model if not name.startswith("ood.")} < model.keys()
    assert all(np.array_equal(network[name], model[name]) for name in network)
    assert facts.calibration["decide"] == "balanced"
    assert facts.calibration["bias"][2] > 0 > facts.calibration["bias"][0]  # nevi are commoner than they were shown
    assert set(scores) == {"best_epoch", "loss", "accuracy", "balanced_accuracy", "macro_f1", "macro_auc"}
    trained()
    assert (tmp_path / "models/model.safetensors").read_bytes() == first
    Predictor(tmp_path / "models/model.safetensors")
    with pytest.raises(UserError, match="dvc repro calibrate"):
        Predictor(tmp_path / "models/network.safetensors")


def test_an_image_may_be_called_na(trained, tmp_path):
    path = tmp_path / "data/validation.csv"
    table = pd.read_csv(path)
    table.loc[0, ["image_id", "lesion_id", "group_id"]] = "NA"
    write_csv(path, table)
    facts, _ = trained()
    assert sum(facts.prediction_sets["lesions"].values()) == 300


def test_the_rule_decides_and_the_probabilities_stay(trained):
    found = {rule: trained(decide=rule, costs={"mel": {"nv": 20}}) for rule in ("frequent", "balanced", "costs")}
    facts, scores = ({rule: one[part] for rule, one in found.items()} for part in (0, 1))
    assert len({(one.calibration["temperature"], *one.calibration["bias"]) for one in facts.values()}) == 1
    assert len({one["loss"] for one in scores.values()}) == len({one["macro_auc"] for one in scores.values()}) == 1
    assert scores["frequent"]["accuracy"] == max(one["accuracy"] for one in scores.values())
    assert scores["balanced"]["balanced_accuracy"] == max(one["balanced_accuracy"] for one in scores.values())
    costs = Calibration.from_dict(facts["costs"].calibration)
    assert costs.decisions(np.array([[0.0, 0.1, 0.9]])).tolist() == [1]  # a missed melanoma costs 20


def test_the_fit_that_is_asked_for(trained):
    none, temperature = trained(fit="none")[0].calibration, trained(fit="temperature")[0].calibration
    assert (none["temperature"], none["bias"]) == (1.0, [0.0] * 3)
    assert temperature["temperature"] != 1.0
    assert temperature["bias"] == [0.0] * 3


def test_a_sensitivity_that_validation_cannot_promise_is_said(trained, capsys):
    facts, _ = trained(melanoma_sensitivity=0.995)
    assert "melanomas; 199 are needed for a sensitivity of 0.995" in capsys.readouterr().err
    assert facts.thresholds["melanoma_promised"] < 0.995


def test_sets_are_fitted_by_lesion_and_a_rare_class_is_said(trained, tmp_path, capsys):
    facts, _ = trained(sets="lac", coverage=0.9)
    table = pd.read_csv(tmp_path / "data/validation.csv")
    probabilities = Calibration.from_dict(facts.calibration).probabilities(table[[f"logit_{c}" for c in CLASSES]])
    for place, code in enumerate(CLASSES):
        own = np.sort(1 - probabilities[table["dx"] == code, place])
        wanted = own[int(np.ceil(0.9 * (own.size + 1))) - 1]
        assert 0 <= facts.prediction_sets["thresholds"][code] - wanted < 1e-6
        assert facts.prediction_sets["lesions"][code] == own.size
    assert json.loads((tmp_path / "metrics/calibration.json").read_text())["prediction_sets"] == facts.prediction_sets
    assert "prediction set" not in capsys.readouterr().err
    found = {score: trained(sets=score)[0].prediction_sets for score in ("aps", "raps", "none")}
    assert (found["aps"]["score"], found["raps"]["score"], found["none"]) == ("aps", "raps", {})
    capsys.readouterr()
    facts, _ = trained(sets="lac", coverage=0.99)
    lesions = facts.prediction_sets["lesions"]
    assert facts.prediction_sets["thresholds"]["bcc"] is None
    warning = f"in every prediction set: bcc ({lesions['bcc']}), mel ({lesions['mel']}); validation has fewer"
    assert warning in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [{"sets": "lca"}, {"coverage": 1.0}, {"coverage": 0}, {"coverage": "most"}])
def test_a_wrong_wish_for_sets_is_refused_in_words(trained, wrong):
    (key,) = wrong
    with pytest.raises(UserError, match=rf"calibration\.{key} is"):
        trained(**wrong)


def test_costs_of_an_unknown_class_are_refused(trained):
    with pytest.raises(UserError, match=r"calibration\.costs names 'mell'.*did you mean 'mel'"):
        trained(decide="costs", costs={"mell": {"nv": 2}})
