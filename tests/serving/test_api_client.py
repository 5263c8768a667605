"""A client that a generator makes of /openapi.json uploads images and reads answers."""

import importlib
import json
import subprocess
import sys
from io import BytesIO

import pytest
from helpers.api import running
from helpers.models import photograph, save_tiny_model

from exp_tools.serving.api.access import Access
from exp_tools.serving.api.app import create_app
from exp_tools.serving.api.limits import Limits
from exp_tools.serving.predictor import Patient, Predictor

pytest.importorskip("openapi_python_client")
TOKEN = "a-token-of-this-test"


@pytest.fixture(scope="module")
def predictor(tmp_path_factory) -> Predictor:
    return Predictor(save_tiny_model(tmp_path_factory.mktemp("model") / "model.safetensors", metadata=True))


def test_a_generated_client_uploads(predictor, tmp_path, monkeypatch):
    app = create_app(predictor, access=Access(token=TOKEN))
    (tmp_path / "openapi.json").write_text(json.dumps(app.openapi()), encoding="utf-8")
    (tmp_path / "config.yml").write_text("post_hooks: []\n")  # which format the code, with ruff
    words = ["generate", "--path", "openapi.json", "--config", "config.yml", "--meta", "none"]
    done = subprocess.run(
        [sys.executable, "-m", "openapi_python_client", *words, "--output-path", "made_client", "--fail-on-warning"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    monkeypatch.syspath_prepend(tmp_path)
    made, models, types = (importlib.import_module(f"made_client{name}") for name in ("", ".models", ".types"))
    predict, batch = (
        importlib.import_module(f"made_client.api.default.{name}") for name in ("predict", "predict_batch")
    )
    with running(app, Limits()) as server:
        client = made.AuthenticatedClient(base_url=server.url, token=TOKEN)
        image = types.File(BytesIO(photograph(1)), "photo.jpg", "image/jpeg")
        form = models.PredictBody(image=image, age=60, sex="female")
        answer = predict.sync(client=client, body=form, explain=["gradcam"])
        expected = predictor.predict(photograph(1), Patient(60, "female"))
        assert answer.probabilities.additional_properties == expected.probabilities
        assert list(answer.overlays.additional_properties) == ["gradcam"]
        files = [types.File(BytesIO(photograph(number)), "photo.jpg") for number in (1, 2)]
        answers = batch.sync(client=client, body=models.PredictBatchBody(images=files))
        assert (answers.predicted, answers.refused) == (2, 0)
        refused = predict.sync(client=client, body=models.PredictBody(image=types.File(BytesIO(b"text"), "a.jpg")))
        assert (type(refused).__name__, refused.kind) == ("ProblemFields", "not_an_image")
