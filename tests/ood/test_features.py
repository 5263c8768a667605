"""What the network's features are for every architecture, and how the judgement gets from the file to the answer."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.models import KNOBS, encoded, photograph, write_judging_model, write_model
from PIL import Image

from exp_tools.cli import main as cli
from exp_tools.errors import UserError
from exp_tools.evaluation.predict import predict_views
from exp_tools.models.architectures._ensemble import Ensemble
from exp_tools.models.model_file import copy_model, read_facts, read_ood
from exp_tools.models.pretrained import load_weights
from exp_tools.models.registry import build_model, list_models, load_model
from exp_tools.ood.features import FeatureTap, features_of, map_moments
from exp_tools.ood.sets import judging
from exp_tools.serving.batch import predict_batch
from exp_tools.serving.batch_inputs import batch_inputs
from exp_tools.serving.export.half import export_half
from exp_tools.serving.predictor import CANNOT_TELL, Patient, Predictor

OTHERS = {"emas": {}, "efficientnet_v2": {}}


def test_statistics_are_those_of_torch_in_every_layout():
    maps = torch.randn(2, 5, 7, 6)
    expected = torch.stack([maps.mean((2, 3)), maps.var((2, 3), correction=0) + maps.mean((2, 3)) ** 2])
    for given in (maps, maps.permute(0, 2, 3, 1).contiguous(), maps.flatten(2).transpose(1, 2), [maps]):
        assert torch.allclose(torch.stack(map_moments(given, 5)), expected, atol=1e-6)


@pytest.mark.parametrize("name", list_models())
def test_every_architecture_has_features_that_no_metadata_change(name):
    knobs = OTHERS.get(name) if name in OTHERS else {"backbone": "test_resnet", **KNOBS[name]}
    if name == "probe":
        knobs = {**KNOBS[name], "encoders": [{"backbone": "test_resnet"}, {"backbone": "test_vit"}]}
    device = "meta" if name in OTHERS else "cpu"
    with torch.device(device):
        model = build_model(name, knobs, 3).eval()
    tap, x, found = FeatureTap(model), torch.randn(2, 3, 96, 96, device=device), []
    with torch.no_grad():
        for numbers in ([0.0, 0.0, 0.0], [2.0, 1.0, 1.0]):
            model(*([x, torch.tensor([numbers] * 2)] if model.uses_metadata else [x]))
            found.append(tap.take())
    assert found[0].shape == found[1].shape
    assert found[0].shape[1] >= 64
    if name not in OTHERS:
        assert torch.equal(*found)
        assert not torch.equal(found[0][0], found[0][1])
    tap.remove()
    with torch.no_grad():
        model(*([x, torch.zeros(2, 3, device=x.device)] if model.uses_metadata else [x]))
    with pytest.raises(KeyError):
        tap.take()


def test_of_an_ensemble_they_are_those_of_its_first_member():
    one, other = (build_model("timm", {"backbone": "test_resnet"}, 3).eval() for _ in range(2))
    pixels = torch.rand(2, 3, 32, 32)
    features = []
    for model in (one, Ensemble([one, other], [1.0, 1.0], [[0.0] * 3] * 2).eval()):
        tap = FeatureTap(model)
        with torch.inference_mode():
            model(pixels)
        features.append(tap.take())
        tap.remove()
    assert torch.equal(*features)


def test_a_network_without_stages_says_so():
    with pytest.raises(UserError, match="Linear has no backbone whose stages are known"):
        FeatureTap(torch.nn.Linear(2, 2))


def test_a_model_file_keeps_its_weights_its_bytes_and_its_judgement(tmp_path):
    plain, judging_file = tmp_path / "plain.safetensors", tmp_path / "judging.safetensors"
    write_model(plain)
    write_judging_model(judging_file)
    first = judging_file.read_bytes()
    write_judging_model(judging_file)
    assert judging_file.read_bytes() == first
    one, other = load_model(plain)[0].state_dict(), load_model(judging_file)[0].state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert read_ood(plain) == {}
    assert set(read_ood(judging_file)) == {"mean", "scale", "basis", "outside"}
    squares = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    export_half(judging_file, tmp_path / "half.safetensors", squares, np.zeros((2, 3), np.float32))
    assert read_facts(tmp_path / "half.safetensors").ood == read_facts(judging_file).ood
    before, after = read_ood(judging_file), read_ood(tmp_path / "half.safetensors")
    assert all(np.array_equal(before[name], after[name]) for name in before)
    load_weights(load_model(plain)[0], str(judging_file))


@pytest.mark.parametrize(
    "change", [{"limit": 0.0}, {"method": "guess"}, {"quantile": 1.5}, {"more": 1}, {"checks": {"skin": None}}]
)
def test_a_header_whose_judgement_cannot_be_used_is_refused(change, tmp_path):
    write_judging_model(tmp_path / "m.safetensors")
    facts = read_facts(tmp_path / "m.safetensors")
    copy_model(tmp_path / "m.safetensors", tmp_path / "bad.safetensors", replace(facts, ood=facts.ood | change))
    with pytest.raises(UserError, match=r"no usable .*ood"):
        read_facts(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("name", ["timm", "multimodal", "probe"])
def test_predictor_batch_and_evaluation_say_the_same(name, tmp_path):
    model = tmp_path / "m.safetensors"
    write_judging_model(model, name)
    (tmp_path / "in").mkdir()
    for seed in (3, 200):
        (tmp_path / f"in/{seed}.jpg").write_bytes(photograph(seed))
    flat = np.full((90, 120, 3), 128, np.uint8)
    predictor = Predictor(model)
    usual, foreign = (predictor.predict(one, Patient(age=90)) for one in ((tmp_path / "in/3.jpg").read_bytes(), flat))
    assert (usual.unlike_training, usual.unlike_why) == (usual.unlike_score > 1, usual.unlike_why)
    assert foreign.unlike_training is True
    assert "nearly of one colour" in foreign.unlike_why
    assert sum(foreign.probabilities.values()) == pytest.approx(1)
    predict_batch(predictor, batch_inputs(tmp_path / "in"), tmp_path / "out.csv", threads=1)
    table = pd.read_csv(tmp_path / "out.csv", dtype={"image_id": str}).set_index("image_id")
    assert table["unlike_score"]["3"] == pytest.approx(usual.unlike_score, rel=0.01)
    assert bool(table["unlike_training"]["3"]) == usual.unlike_training
    squares = np.stack([predictor.prepare((tmp_path / f"in/{seed}.jpg").read_bytes()) for seed in (3, 200)])
    np.save(tmp_path / "images.npy", squares)
    network, facts = load_model(model)
    rows = np.array([1, 0, 1])
    metadata = np.zeros((2, 3), np.float32)
    run = {"batch_size": 2, "device": torch.device("cpu"), "metadata": metadata, "tta": "flips"}
    with judging(network, facts.ood, model) as judge:
        views = predict_views(network, tmp_path / "images.npy", rows, **run)
        columns = judge.columns(tmp_path / "images.npy", rows, len(views))
    expected = [table["unlike_score"][str(seed)] for seed in (200, 3, 200)]
    assert columns["unlike_score"].tolist() == pytest.approx(expected, rel=0.01, abs=1e-5)
    del run["tta"]
    found = features_of(network, tmp_path / "images.npy", rows, **run)
    assert np.allclose(found[0], found[2])


def test_without_a_judgement_that_is_said(tmp_path):
    write_model(tmp_path / "m.safetensors")
    found = Predictor(tmp_path / "m.safetensors").predict(np.zeros((90, 120, 3), np.uint8))
    assert (found.unlike_training, found.unlike_score, found.unlike_why) == (None, None, CANNOT_TELL)


def test_each_thread_gets_its_own_features(tmp_path):
    write_judging_model(tmp_path / "m.safetensors")
    predictor = Predictor(tmp_path / "m.safetensors")
    images = [photograph(seed) for seed in range(12)]
    alone = [predictor.predict(image).unlike_score for image in images]
    with ThreadPoolExecutor(4) as pool:
        assert [one.unlike_score for one in pool.map(predictor.predict, images)] == pytest.approx(alone, rel=1e-4)


def test_the_command_says_it_first(tmp_path, capsys):
    write_judging_model(tmp_path / "m.safetensors")
    (tmp_path / "flat.png").write_bytes(encoded(Image.new("RGB", (90, 90), (180, 140, 120)), "PNG"))
    assert cli.main(["predict", str(tmp_path / "flat.png"), "--model", str(tmp_path / "m.safetensors")]) == 0
    assert capsys.readouterr().out.startswith("Unlike the images this model was trained on: it is nearly of one colour")
    assert cli.main(["predict", str(tmp_path / "flat.png"), "--model", str(tmp_path / "m.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unlike_training"] is True
