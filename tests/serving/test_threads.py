"""Prediction next to other work: a small batch takes few threads, no batch more than the quota, and waiting sleeps."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.models import photograph, save_tiny_model
from helpers.project import ROOT

from exp_tools.cli import main as cli
from exp_tools.serving import engines
from exp_tools.serving.predictor import Predictor


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("threads") / "m.safetensors")


def threads_of(predictor: Predictor, count: int, monkeypatch) -> int:
    """The threads that torch has inside a forward pass of `count` images."""
    seen = []
    network = predictor.engine.network
    monkeypatch.setattr(
        predictor.engine, "network", lambda *given: seen.append(torch.get_num_threads()) or network(*given)
    )
    for name in ("pixel_mean", "pixel_std", "uses_metadata"):
        setattr(predictor.engine.network, name, getattr(network, name))
    predictor.engine.logits(np.zeros((count, 64, 64, 3), np.uint8), np.zeros((count, 3), np.float32))
    monkeypatch.undo()
    return seen[0]


def test_a_small_batch_takes_two_threads_and_a_large_one_what_torch_had(model, four_threads, monkeypatch):
    monkeypatch.setattr(engines, "cores", lambda: 4)
    predictor = Predictor(model)
    with torch.no_grad():
        counter = torch.utils.flop_counter.FlopCounterMode(display=False)
        with counter:
            predictor.engine.network(torch.zeros(1, 3, 64, 64))
    adds = counter.get_total_flops() // 2
    assert predictor.engine.multiply_adds == pytest.approx(adds, rel=0.01)
    monkeypatch.setattr(engines, "SMALL_BATCH", 3 * predictor.engine.multiply_adds)
    expected = {1: 2, 3: 2, 4: 4}
    for count, threads in expected.items():
        monkeypatch.setattr(engines, "SMALL_BATCH", 3 * predictor.engine.multiply_adds)
        assert threads_of(predictor, count, monkeypatch) == threads
        assert torch.get_num_threads() == 4


def test_no_batch_takes_more_threads_than_the_quota(model, four_threads, monkeypatch):
    monkeypatch.setattr(engines, "cores", lambda: 1)
    predictor = Predictor(model)
    monkeypatch.setattr(engines, "SMALL_BATCH", 0)
    assert threads_of(predictor, 4, monkeypatch) == 1


def test_maps_are_computed_within_the_same_bounds(model, four_threads, monkeypatch):
    monkeypatch.setattr(engines, "cores", lambda: 4)
    predictor, seen = Predictor(model), []
    right = engines.grad_cam
    monkeypatch.setattr(engines, "grad_cam", lambda *given: seen.append(torch.get_num_threads()) or right(*given))
    assert predictor.predict(photograph(1), explain=["gradcam"]).maps["gradcam"].shape == (64, 64)
    assert seen == [2]
    assert torch.get_num_threads() == 4


def test_the_number_of_threads_changes_no_probability_by_more_than_the_last_digits(model, four_threads, monkeypatch):
    monkeypatch.setattr(engines, "FEW_THREADS", 1)
    monkeypatch.setattr(engines, "cores", lambda: 4)
    one = Predictor(model)
    monkeypatch.setattr(engines, "SMALL_BATCH", 0)
    two = [one.predict(photograph(seed)) for seed in range(4)]
    monkeypatch.setattr(engines, "SMALL_BATCH", 10**12)
    for seed, other in enumerate(two):
        mine = one.predict(photograph(seed))
        assert list(mine.probabilities.values()) == pytest.approx(list(other.probabilities.values()), abs=1e-5)
        assert mine.diagnosis == other.diagnosis


def test_an_export_computes_within_the_quota_and_its_threads_do_not_spin(tmp_path, four_threads, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    from exp_tools.serving import onnx_engine

    made = []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, file, options, **more):
            spin = options.get_session_config_entry("session.intra_op.allow_spinning")
            made.append((options.intra_op_num_threads, spin))
            raise RuntimeError("seen")

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnx_engine, "cores", lambda: 1)
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(Exception, match="seen"):
        Predictor(tmp_path / "m.onnx")
    assert made == [(1, "0")]


COMMANDS = {
    "predict": ["predict", "none.jpg", "--model", "none.safetensors"],
    "batch": ["batch", "none"],
    "api": ["api", "--model", "none.safetensors", "--port", "0"],
    "app": ["app", "--host", "203.0.113.1"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_serving_command_waits_passively_and_keeps_a_setting_of_the_users(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert cli.main(COMMANDS[name]) == 1
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert cli.main(COMMANDS[name]) == 1
    assert os.environ.pop("OMP_WAIT_POLICY") == "PASSIVE"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="torch for Linux brings GNU's OpenMP")
def test_torchs_openmp_reads_the_setting(tmp_path):
    """It shows what it read when it is loaded: the setting must be there before."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    done = subprocess.run(
        [sys.executable, "-m", "exp_tools.cli", *COMMANDS["predict"]],
        env=environment | {"OMP_DISPLAY_ENV": "true", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr
    assert "OMP_WAIT_POLICY = 'ACTIVE'" not in done.stderr
