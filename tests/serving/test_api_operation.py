"""The API in operation: compressed answers, probes, numbers for Prometheus, and another model while it runs."""

import gzip
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import requests
from helpers.models import photograph, save_tiny_model
from helpers.project import ROOT
from starlette.testclient import TestClient

from exp_tools.io import file_sha256
from exp_tools.serving.api import serving
from exp_tools.serving.api.app import create_app
from exp_tools.serving.api.limits import Limits
from exp_tools.serving.api.schemas import ReadyAnswer
from exp_tools.serving.predictor import SCOPE, Predictor

TOKEN = "a-token-of-this-test"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def client(predictor) -> TestClient:
    return TestClient(create_app(predictor))


def upload() -> dict:
    return {"files": {"image": ("photo.jpg", photograph(1), "image/jpeg")}}


def test_gzip_for_those_who_take_it(client):
    assert client.get("/model", headers={"Accept-Encoding": "br, gzip"}).headers["content-encoding"] == "gzip"
    for refused in ("identity", "gzip;q=0", "br, gzip; q=0.0 , x"):
        assert "content-encoding" not in client.get("/model", headers={"Accept-Encoding": refused}).headers
    with client.stream("GET", "/model", headers={"Accept-Encoding": "gzip;q=0.5"}) as answer:
        assert json.loads(gzip.decompress(b"".join(answer.iter_raw()))) == client.get("/model").json()


def test_memory_is_given_back_now_and_then(client, monkeypatch):
    given_back = []
    monkeypatch.setattr(serving, "give_back_memory", lambda: given_back.append(True))
    monkeypatch.setattr(serving, "TIDY", 3)
    for _ in range(6):
        client.post("/predict", **upload())
    assert len(given_back) == 2


def test_ready_where_the_next_request_would_be_taken(predictor, model):
    app = create_app(predictor, Limits(at_once=1, waiting=0))
    client = TestClient(app)
    body = client.get("/ready").json()
    ReadyAnswer.model_validate(body)
    assert (body["model"]["name"], body["model"]["sha256"]) == ("model.safetensors", file_sha256(model))
    with app.state.serving.gate.place():
        answer = client.get("/ready")
        assert (answer.status_code, answer.json()["kind"], answer.headers["retry-after"]) == (503, "not_ready", "1")
        assert client.get("/health").status_code == 200


def test_every_answer_names_model_checksum_and_data_and_what_is_not_recognised(client, model):
    body = client.post("/predict", **upload()).json()
    checksum = file_sha256(model)
    assert body["model"] == {
        "name": "model.safetensors",
        "architecture": "timm",
        "sha256": checksum,
        "trained_on": "ham10000",
        "warning": None,
    }
    assert body["notice"] == SCOPE
    batch = client.post("/predict/batch", files=[("images", ("a.jpg", photograph(1)))]).json()
    assert (batch["model"], batch["notice"]) == (body["model"], SCOPE)
    for answer in (client.get("/health"), client.get("/none"), client.post("/predict")):
        assert answer.headers["x-model-sha256"] == checksum


def test_metrics_are_answered_where_they_are_asked_for(predictor):
    client = TestClient(create_app(predictor, metrics=True))
    client.post("/predict", **upload())
    client.get("/patients/Miller")
    client.post("/predict")
    text = client.get("/metrics").text
    for line in (
        'lesion_api_requests_total{method="POST",page="/predict",status="200"} 1.0',
        'lesion_api_requests_total{method="POST",page="/predict",status="415"} 1.0',
        'lesion_api_requests_total{method="GET",page="(other)",status="404"} 1.0',
        'lesion_api_request_seconds_count{page="/predict"} 2.0',
        "lesion_api_inside 0.0",
        'lesion_api_reloads_total{result="refused"} 0.0',
    ):
        assert line in text.splitlines()
    assert "Miller" not in text
    assert TestClient(create_app(predictor)).get("/metrics").status_code == 404


def test_a_reload_takes_the_new_model_or_keeps_the_old_one_and_says_which(tmp_path, caplog):
    path = save_tiny_model(tmp_path / "model.safetensors")
    app = create_app(Predictor(path), metrics=True)
    client, reload = TestClient(app), app.state.serving.reload
    first = client.post("/predict", **upload()).json()
    good = path.read_bytes()
    caplog.set_level(logging.INFO, "exp_tools.api")
    reload()
    for bad in (b"", b"no model", good[:-100], b"\xff" * 8 + good[8:]):
        path.write_bytes(bad)
        reload()
        assert client.post("/predict", **upload()).json() == first
        assert "\n" not in caplog.messages[-2]
        assert f"the model in use stays, sha256 {first['model']['sha256']}" in caplog.messages[-2]
    path.unlink()
    reload()
    save_tiny_model(path, source="synthetic")
    reload()
    second = client.post("/predict", **upload()).json()
    assert second["model"]["sha256"] == file_sha256(path) != first["model"]["sha256"]
    assert (second["model"]["trained_on"], first["model"]["trained_on"]) == ("synthetic", "ham10000")
    counted = re.findall(r'reloads_total\{result="(\w+)"\} (\d+)', client.get("/metrics").text)
    assert counted == [("loaded", "1"), ("unchanged", "1"), ("refused", "5")]
    assert "Traceback" not in caplog.text


def test_a_request_in_work_has_numbers_and_checksum_of_one_model(tmp_path, monkeypatch):
    path = save_tiny_model(tmp_path / "model.safetensors")
    predictor = Predictor(path)
    app = create_app(predictor)
    before, original = file_sha256(path), predictor.predict

    def meanwhile(*arguments, **named):
        save_tiny_model(path, source="synthetic")
        app.state.serving.reload()
        return original(*arguments, **named)

    monkeypatch.setattr(predictor, "predict", meanwhile)
    client = TestClient(app)
    answer = client.post("/predict", **upload())
    assert (answer.json()["model"]["sha256"], answer.json()["model"]["trained_on"]) == (before, "ham10000")
    assert answer.headers["x-model-sha256"] == before
    assert client.get("/health").headers["x-model-sha256"] == file_sha256(path) != before


def test_sighup_and_the_options_of_the_command(tmp_path):
    path = save_tiny_model(tmp_path / "model.safetensors")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    words = ["api", "--model", str(path), "--port", "0", "--token-file", str(tmp_path / "token"), "--metrics"]
    words += ["--public-url", "https://example.org/lesions", "--cors-origin", "https://clinic.example"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "exp_tools.cli", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        url = re.search(r"http://[\d.:]+", process.stdout.readline())[0]
        page = BEARER | {"Origin": "https://clinic.example"}
        answer = requests.get(f"{url}/lesions/metrics", headers=page, timeout=20)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://clinic.example")
        assert requests.get(f"{url}/model", timeout=20).status_code == 401
        assert requests.get(f"{url}/docs", headers={"Host": "evil.example"}, timeout=20).status_code == 421
        fresh = save_tiny_model(tmp_path / "new.safetensors", source="synthetic")
        checksum = file_sha256(fresh)
        fresh.replace(path)
        process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 30
        while requests.get(f"{url}/ready", timeout=20).json()["model"]["sha256"] != checksum:
            assert time.monotonic() < end
            time.sleep(0.1)
    finally:
        process.terminate()
        assert process.wait(40) == 0
    said = (tmp_path / "log").read_text()
    assert f"reload: serving the new model, sha256 {checksum}" in said
    assert "Traceback" not in said
    assert TOKEN not in said
