"""Prediction sets where a model is used: the same set from every door, and words that promise no more than it does."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.models import CLASSES, photograph, write_model
from starlette.testclient import TestClient

from exp_tools.cli import main as cli
from exp_tools.evaluation.prediction_sets import set_members
from exp_tools.evaluation.predictions import read_predictions
from exp_tools.evaluation.probabilities import Calibration
from exp_tools.models.model_file import copy_model, read_facts
from exp_tools.serving.api.app import create_app
from exp_tools.serving.predictor import Patient, Predictor, name_of
from exp_tools.serving.set_words import NO_SETS, set_note

torch.set_num_threads(1)
NAMES = {code: name_of(code) for code in CLASSES}
SETS = {
    "score": "lac",
    "coverage": 0.9,
    "needed": 9,
    "lesions": {"bcc": 4, "mel": 60, "nv": 300},
    "thresholds": {"bcc": None, "mel": 0.75, "nv": 0.5},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model of HAM10000, so to speak, with sets."""
    path = tmp_path_factory.mktemp("sets") / "m.safetensors"
    write_model(path, source="ham10000")
    copy_model(path, path, replace(read_facts(path), prediction_sets=SETS))
    return path


def test_the_predictor_applies_the_thresholds(model, monkeypatch):
    predictor = Predictor(model)
    rows = np.log([[0.1, 0.3, 0.6], [0.1, 0.2, 0.7], [0.5, 0.2, 0.3]]).astype(np.float32)
    monkeypatch.setattr(predictor.engine, "logits", lambda pixels, metadata: rows)
    found = predictor.predict_pixels(np.zeros((3, 96, 96, 3), np.uint8), [Patient()] * 3)
    assert [one.prediction_set for one in found] == [["bcc", "mel", "nv"], ["bcc", "nv"], ["bcc"]]
    assert found[0].set_note.startswith("melanoma cannot be excluded: the set holds every diagnosis")
    assert all("fewer lesions than the 9 needed: Basal cell carcinoma (4)" in one.set_note for one in found)
    content = json.loads(json.dumps(found[1].as_dict(), allow_nan=False))
    assert content["prediction_set"] == ["bcc", "nv"]
    assert content["set_note"] == found[1].set_note


def said(held, decided="nv", source="ham10000", **changes):
    return set_note(SETS | {"thresholds": dict.fromkeys(CLASSES, 0.5)} | changes, NAMES, held, decided, source)


def test_the_words_of_each_kind_of_set():
    assert said(["mel", "nv"]) == "melanoma cannot be excluded: the set holds Melanoma, Melanocytic nevus"
    assert said([]).startswith("melanoma cannot be excluded: the set is empty")
    assert said(CLASSES).startswith("melanoma cannot be excluded: the set holds every diagnosis")
    absent = said(["nv"])
    assert "the set holds Melanocytic nevus; Melanoma is not in it, at a coverage of 90 %" in absent
    assert "up to 10 % of the melanomas in dermoscopic images like those of ham10000 are missed this way" in absent
    assert "no all-clear" in absent
    assert "synthetic images" in said(["nv"], source="synthetic")
    assert "a coverage of 95 %: on average, up to 5 % of the melanomas in dermoscopic images like those" in said(
        ["nv"], coverage=0.95
    )
    assert "the diagnosis, Melanoma, is not in the set" in said(["nv"], decided="mel")
    own = set_note(SETS | {"thresholds": {"a": 0.1, "b": 0.2}}, {"a": "a", "b": "b"}, ["b"], "b", "mine")
    assert own == "the set holds b"  # a model that knows no melanoma says nothing of it


@pytest.mark.parametrize("held", [[], ["nv"], ["bcc"], ["bcc", "nv"], ["mel"], ["mel", "nv"], CLASSES])
def test_no_set_is_called_safe(held):
    note = said(held)
    assert not re.search(r"\b(safe|harmless|benign|healthy|no melanoma|ruled out|certain)\b", note)
    assert ("cannot be excluded" in note) != ("no all-clear" in note)


def test_api_command_and_batch_say_what_the_predictor_says(model, tmp_path, capsys):
    content = photograph(1)
    (tmp_path / "own").mkdir()
    (tmp_path / "own/a.jpg").write_bytes(content)
    expected = Predictor(model).predict(content)
    client = TestClient(create_app(Predictor(model)))
    answer = client.post("/predict", files={"image": ("a.jpg", content)}).json()
    assert (answer["prediction_set"], answer["set_note"]) == (expected.prediction_set, expected.set_note)
    assert client.get("/model").json()["prediction_sets"] == SETS
    assert cli.main(["predict", str(tmp_path / "own/a.jpg"), "--model", str(model)]) == 0
    assert f"prediction set: {expected.set_note}\n" in capsys.readouterr().out
    out = tmp_path / "p.csv"
    assert cli.main(["batch", str(tmp_path / "own"), "--model", str(model), "--out", str(out)]) == 0
    assert pd.read_csv(out, keep_default_na=False)["prediction_set"].tolist() == [" ".join(expected.prediction_set)]


def test_a_file_without_sets_is_read_and_says_so(tmp_path, capsys):
    write_model(tmp_path / "m.safetensors")
    content = photograph(1)
    (tmp_path / "a.jpg").write_bytes(content)
    found = Predictor(tmp_path / "m.safetensors").predict(content)
    assert (found.prediction_set, found.set_note) == (None, None)
    client = TestClient(create_app(Predictor(tmp_path / "m.safetensors")))
    answer = client.post("/predict", files={"image": ("a.jpg", content)}).json()
    assert (answer["prediction_set"], answer["set_note"]) == (None, None)
    assert client.get("/model").json()["prediction_sets"] == {}
    assert cli.main(["predict", str(tmp_path / "a.jpg"), "--model", str(tmp_path / "m.safetensors")]) == 0
    assert f"prediction set: {NO_SETS}\n" in capsys.readouterr().out


def test_the_table_holds_the_sets_of_its_probabilities(model, tmp_path):
    from exp_tools.evaluation.predictions import prediction_table

    ids = [f"i{number}" for number in range(50)]
    labels = pd.DataFrame({"image_id": ids, "lesion_id": ids, "group_id": ids, "source": "x", "dx": "nv"})
    logits = np.random.default_rng(0).normal(size=(50, 3))
    calibration = Calibration.none(3)
    table = prediction_table(labels, "test", logits, CLASSES, calibration, SETS)
    table.to_csv(tmp_path / "p.csv", index=False)
    again, _ = read_predictions(tmp_path / "p.csv")
    members = set_members(SETS, CLASSES, calibration.probabilities(logits.round(6)))
    for cell, row in zip(again["prediction_set"], members, strict=True):
        assert cell.split() == [code for code, held in zip(CLASSES, row, strict=True) if held]
    assert "prediction_set" not in prediction_table(labels, "test", logits, CLASSES, calibration, {})
