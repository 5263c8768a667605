"""A submission to the ISIC challenge: the official score of it is that of the model's decisions."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.models import photograph, save_tiny_model, write_model
from sklearn.metrics import roc_auc_score

from exp_tools.cli import main as cli
from exp_tools.errors import UserError
from exp_tools.evaluation.metrics.classification import headline_metrics
from exp_tools.evaluation.predictions import as_arrays, decisions, read_predictions
from exp_tools.evaluation.probabilities import Calibration, balanced_costs, cost_matrix
from exp_tools.models.model_file import save_model
from exp_tools.models.registry import load_model
from exp_tools.serving.batch import predict_batch
from exp_tools.serving.batch_inputs import batch_inputs
from exp_tools.serving.predictor import Predictor
from exp_tools.serving.submission import check_submission, decision_scores, submission_columns
from exp_tools.taxonomy import DIAGNOSES

torch.set_num_threads(1)
SEVEN = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
SHARES = [0.03, 0.05, 0.11, 0.01, 0.11, 0.67, 0.02]
SCORER = ("isic-challenge-scoring==5.6.0", "pandas<2.1", "numpy<2")
"""The official scorer uses what pandas 2.1 deprecated, so it has an environment of its own."""
NOT_SCORED = "ISIC_0035068"
"""An image to which the official scorer gives weight 0."""


@pytest.fixture
def table(tmp_path):
    """A table of 84 pictures with a diagnosis each, one of them of the image that is not scored."""
    codes = list(DIAGNOSES)
    (tmp_path / "images").mkdir()
    names = [*(f"ISIC_{number:07}" for number in range(83)), NOT_SCORED]
    for number, name in enumerate(names):
        (tmp_path / "images" / f"{name}.jpg").write_bytes(photograph(number))
    rows = [f"{name},{codes[number % 7]}" for number, name in enumerate(names)]
    (tmp_path / "images/table.csv").write_text("\n".join(["image_id,dx", *rows]) + "\n")
    return tmp_path / "images/table.csv"


@pytest.fixture
def predictor(table, tmp_path):
    """A model of the seven classes that finds each in some of the pictures, and decides for balanced accuracy."""
    network, facts = load_model(save_tiny_model(tmp_path / "tiny.safetensors"))
    predict_batch(Predictor(tmp_path / "tiny.safetensors"), batch_inputs(table), tmp_path / "tiny.csv", threads=1)
    logits = pd.read_csv(tmp_path / "tiny.csv")[[f"logit_{code}" for code in facts.classes]]
    temperature = float(logits.std().mean()) / 2
    bias = (-logits.mean() / temperature).tolist()
    calibration = Calibration(temperature, bias, "balanced", balanced_costs(SHARES, 0.5).tolist())
    save_model(tmp_path / "m.safetensors", network, replace(facts, calibration=calibration.as_dict()))
    return Predictor(tmp_path / "m.safetensors")


def largest(submitted: pd.DataFrame) -> list[str]:
    """The prediction of each row as the scorer takes it: the largest value, and none where two are."""
    scores = submitted.drop(columns="image")
    best = scores.eq(scores.max(axis=1), axis=0)
    assert (best.sum(axis=1) == 1).all()
    return scores.idxmax(axis=1).str.lower().tolist()


def test_the_largest_score_of_a_row_is_the_decision(table, predictor, tmp_path):
    predict_batch(predictor, batch_inputs(table), tmp_path / "p.csv", threads=1)
    predict_batch(predictor, batch_inputs(table), tmp_path / "s.csv", threads=1, isic=True)
    predicted, submitted = pd.read_csv(tmp_path / "p.csv"), pd.read_csv(tmp_path / "s.csv")
    assert list(submitted) == ["image", *SEVEN]
    assert submitted["image"].tolist() == predicted["image_id"].tolist()
    assert largest(submitted) == predicted["predicted"].tolist()
    probabilities = predicted[[f"p_{code.lower()}" for code in SEVEN]].to_numpy()
    assert (probabilities.argmax(axis=1) != submitted[SEVEN].to_numpy().argmax(axis=1)).any()
    weights = submitted[SEVEN].to_numpy() / probabilities
    assert weights == pytest.approx(np.broadcast_to(weights[0], weights.shape))
    assert weights[0, SEVEN.index("DF")] == pytest.approx(1.0)
    assert weights[0, SEVEN.index("NV")] == pytest.approx((0.01 / 0.67) ** 0.5)


def test_with_the_rule_frequent_the_scores_are_the_probabilities():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(7), 50)
    scores = decision_scores(probabilities, probabilities.argmax(axis=1), Calibration.none(7))
    assert scores == pytest.approx(probabilities)


def test_costs_decide_in_the_scores_too_and_a_tie_has_one_winner():
    costs = cost_matrix({"mel": {"nv": 20}, "nv": {"mel": 0.5}}, ["bcc", "mel", "nv"])
    calibration = Calibration(1.0, [0.0] * 3, "costs", costs.tolist())
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), 500)
    probabilities[0] = [0.5, 0.5, 0.0]  # mel and bcc cost the same
    decided = calibration.decisions(probabilities)
    scores = decision_scores(probabilities, decided, calibration)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert (scores.argmax(axis=1) == decided).all()
    assert ((scores == scores.max(axis=1, keepdims=True)).sum(axis=1) == 1).all()
    same = np.full((1, 7), 1 / 7)
    assert decision_scores(same, np.array([3]), Calibration.none(7)).argmax() == 3


def test_other_classes_and_equal_names_are_refused_before_anything_is_predicted(table, tmp_path, monkeypatch):
    write_model(tmp_path / "three.safetensors")
    three = Predictor(tmp_path / "three.safetensors")
    monkeypatch.setattr(three.engine, "logits", None)
    with pytest.raises(UserError, match=r"ISIC 2018 \(mel, .*ISIC 2019 \(mel, .*this model's are bcc, mel, nv\. Omit"):
        predict_batch(three, batch_inputs(table), tmp_path / "p.csv", threads=1, isic=True)
    assert not list(tmp_path.glob(".p.csv*"))
    with pytest.raises(UserError, match=r"a/x\.jpg and b/x\.png are both x \(1 such\)"):
        check_submission(list(DIAGNOSES), ["a/x.jpg", "a/y.jpg", "b/x.png"])
    with pytest.raises(UserError, match="non_mel, mel"):
        check_submission(["non_mel", "mel"], [])


def test_the_classes_choose_the_challenge():
    later = ["bcc", "bkl", "df", "mel", "nv", "vasc", "ak", "scc"]
    nine = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")
    assert submission_columns(later) == submission_columns([*later, "unk"]) == nine
    assert submission_columns(list(DIAGNOSES)) == tuple(SEVEN)
    with pytest.raises(UserError):
        submission_columns([*DIAGNOSES, "unk"])


def test_a_model_without_unknown_gives_it_no_score(tmp_path, table):
    network, facts = load_model(save_tiny_model(tmp_path / "tiny.safetensors"))
    classes = ["ak", "bcc", "bkl", "df", "mel", "nv", "scc", "vasc"]
    network.classifier = torch.nn.Linear(network.classifier.in_features, 8)
    calibration = Calibration.none(8).as_dict()
    save_model(tmp_path / "m.safetensors", network, replace(facts, classes=classes, calibration=calibration))
    predict_batch(Predictor(tmp_path / "m.safetensors"), batch_inputs(table), tmp_path / "s.csv", threads=1, isic=True)
    submitted = pd.read_csv(tmp_path / "s.csv")
    assert submitted["UNK"].dtype == float
    assert (submitted["UNK"] == 0).all()
    assert submitted.drop(columns="image").sum(axis=1).to_numpy() == pytest.approx(1.0)


def test_a_submission_resumes_what_a_table_began(table, predictor, tmp_path, monkeypatch):
    predict_batch(predictor, batch_inputs(table), tmp_path / "whole.csv", threads=1, isic=True)
    right, passes = predictor.engine.logits, []

    def stopping(pixels, metadata):
        passes.append(len(pixels))
        if len(passes) == 3:
            raise KeyboardInterrupt
        return right(pixels, metadata)

    monkeypatch.setattr(predictor.engine, "logits", stopping)
    with pytest.raises(KeyboardInterrupt):
        predict_batch(predictor, batch_inputs(table), tmp_path / "s.csv", threads=1)
    outcome = predict_batch(predictor, batch_inputs(table), tmp_path / "s.csv", threads=1, isic=True)
    assert outcome.resumed == 64
    assert (tmp_path / "s.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_the_command_writes_a_submission(table, predictor, tmp_path, capsys):
    arguments = ["batch", str(table), "--out", str(tmp_path / "s.csv"), "--format", "isic"]
    assert cli.main([*arguments, "--model", str(predictor.path)]) == 0
    assert f"{tmp_path / 's.csv'}: 84 images predicted\n" in capsys.readouterr().out
    first = (tmp_path / "s.csv").read_text()
    assert first.startswith("image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\nISIC_")
    assert cli.main([*arguments, "--model", str(predictor.path)]) == 0
    assert (tmp_path / "s.csv").read_text() == first
    truth = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\nISIC_0000000,0.0,1.0,0.0,0.0,0.0,0.0,0.0\n"
    (tmp_path / "s.csv").write_text(truth)
    assert cli.main([*arguments, "--model", str(predictor.path)]) == 1
    assert (tmp_path / "s.csv").read_text() == truth


@pytest.mark.sweep
def test_the_official_scorer_gives_our_balanced_accuracy(table, predictor, tmp_path):
    python = official_python(tmp_path / "official")
    predict_batch(predictor, batch_inputs(table), tmp_path / "p.csv", threads=1)
    predict_batch(predictor, batch_inputs(table), tmp_path / "s.csv", threads=1, isic=True)
    predicted, classes = read_predictions(tmp_path / "p.csv")
    truth = pd.DataFrame({"image": predicted["image_id"]})
    truth = truth.assign(**{code: (predicted["dx"] == code.lower()).astype(float) for code in SEVEN})
    truth.to_csv(tmp_path / "truth.csv", index=False)
    command = [python, "-m", "isic_challenge_scoring", "-o", "json", "classification"]
    done = subprocess.run(
        [*command, tmp_path / "truth.csv", tmp_path / "s.csv"], capture_output=True, text=True, check=True
    )
    official = json.loads(done.stdout)
    scored = predicted[predicted["image_id"] != NOT_SCORED]
    probabilities, labels, _ = as_arrays(scored, classes)
    ours = headline_metrics(probabilities, labels, classes, decisions(scored, classes))["balanced_accuracy"]
    assert official["overall"] == pytest.approx(ours, abs=1e-6)
    assert official["aggregate"]["balanced_accuracy"] == pytest.approx(ours, abs=1e-6)
    most_probable = headline_metrics(probabilities, labels, classes)["balanced_accuracy"]
    with_all = headline_metrics(*as_arrays(predicted, classes)[:2], classes, decisions(predicted, classes))
    assert abs(ours - most_probable) > 1e-3
    assert abs(ours - with_all["balanced_accuracy"]) > 1e-3
    for place, code in enumerate(classes):
        expected = roc_auc_score(labels == place, probabilities[:, place])
        assert official["per_category"]["auc"][code.upper()] == pytest.approx(expected, abs=1e-6)


def official_python(folder):
    """An interpreter with the official scorer; skips the test where no registry of packages can be reached."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    found = subprocess.run([python, "-m", "pip", "install", "-q", *SCORER], capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"the official scorer cannot be installed: {found.stderr.strip().splitlines()[-1]}")
    return python
