"""The JSON API answers as the predictor does, in the documented shapes, and only as many at once as it should."""

import base64
import json
import logging
import sys
from io import BytesIO

import anyio
import httpx2
import numpy as np
import pytest
import torch
from fastapi import FastAPI, Request
from helpers.models import SERVED_VOCABULARY, noise, photograph, save_tiny_model
from helpers.pictures import PIXELS, dicom, heic
from PIL import Image
from starlette.testclient import TestClient

from exp_tools.errors import UserError
from exp_tools.explain.picture import explained
from exp_tools.serving.api import middleware
from exp_tools.serving.api.app import create_app
from exp_tools.serving.api.limits import Limits
from exp_tools.serving.api.problems import KINDS
from exp_tools.serving.api.schemas import BatchAnswer, HealthAnswer, ModelAnswer, PredictionAnswer, prediction_example
from exp_tools.serving.predictor import DISCLAIMER, Patient, Predictor


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory) -> Predictor:
    return Predictor(save_tiny_model(tmp_path_factory.mktemp("model") / "model.safetensors"))


@pytest.fixture(scope="module")
def with_metadata(tmp_path_factory) -> Predictor:
    folder = tmp_path_factory.mktemp("model")
    return Predictor(save_tiny_model(folder / "model.safetensors", metadata=True, source="synthetic"))


@pytest.fixture(scope="module")
def client(predictor) -> TestClient:
    return TestClient(create_app(predictor))


def image_field(content: bytes, name: str = "photo.jpg") -> list:
    return [("image", (name, content, "image/jpeg"))]


def image_fields(*contents: bytes) -> list:
    return [("images", ("photo.jpg", content, "image/jpeg")) for content in contents]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "AVIF", "HEIF", "DICOM"])
def test_the_answer_is_the_predictors(client, predictor, kind):
    made = {"HEIF": heic, "DICOM": lambda: dicom(PIXELS, "RGB")}
    content = made[kind]() if kind in made else photograph(1, kind)
    answer = client.post("/predict", files=image_field(content))
    assert answer.status_code == 200
    body = answer.json()
    expected = predictor.predict(content).as_dict()
    assert {name: body[name] for name in expected} == expected
    assert body["overlays"] == {}
    assert body["disclaimer"] == DISCLAIMER
    PredictionAnswer.model_validate(body)


def test_the_model_tells_photographs_apart(predictor):
    rows = np.array([list(predictor.predict(photograph(seed)).probabilities.values()) for seed in range(8)])
    distances = np.abs(rows[:, None] - rows[None]).max(axis=2) + np.eye(8)
    assert distances.min() > 0.01  # or the tests that compare answers would pass with answers mixed up


def test_metadata_change_the_answer(with_metadata):
    client = TestClient(create_app(with_metadata))
    content = photograph(2)
    given = client.post(
        "/predict", files=image_field(content), data={"age": "81.5", "sex": "male", "localization": "back"}
    )
    body = given.json()
    expected = with_metadata.predict(content, Patient(81.5, "male", "back")).as_dict()
    assert {name: body[name] for name in expected} == expected
    assert body["notes"] == []
    unknown = client.post(
        "/predict", files=image_field(content), data={"age": "", "sex": " Unknown ", "localization": ""}
    )
    assert (
        unknown.json()["probabilities"] == client.post("/predict", files=image_field(content)).json()["probabilities"]
    )
    assert unknown.json()["probabilities"] != body["probabilities"]
    unseen = client.post(
        "/predict", files=image_field(content), data={"age": "60", "sex": "male", "localization": "Füße"}
    )
    assert unseen.status_code == 200
    assert unseen.json()["notes"] == ["the model never saw the localization 'Füße'; it knows back, face, unknown"]
    assert "synthetic images" in body["model"]["warning"]


def test_an_overlay_is_the_map_on_the_picture_at_its_own_size(client, predictor):
    content = photograph(3)
    body = client.post("/predict?explain=gradcam&explain=gradcam", files=image_field(content)).json()
    assert list(body["overlays"]) == ["gradcam"]
    shown = np.asarray(Image.open(BytesIO(base64.b64decode(body["overlays"]["gradcam"]))))
    heat = predictor.predict(content, explain=["gradcam"]).maps["gradcam"]
    np.testing.assert_array_equal(shown, explained(content, "squash", heat, "gradcam", body["name"]))
    assert len(np.unique(heat)) > 10


def test_a_batch_keeps_its_order_and_one_bad_image_stops_nothing(with_metadata):
    client = TestClient(create_app(with_metadata))
    contents = [photograph(4), b"no image", photograph(5), photograph(6)[:300]]
    metadata = [{"age": 30, "sex": "female"}, {}, {"age": None, "localization": "face"}, {}]
    answer = client.post("/predict/batch", files=image_fields(*contents), data={"metadata": json.dumps(metadata)})
    body = answer.json()
    BatchAnswer.model_validate(body)
    assert (answer.status_code, body["predicted"], body["refused"]) == (200, 2, 2)
    assert [entry["index"] for entry in body["results"]] == [0, 1, 2, 3]
    for place, patient in ((0, Patient(30, "female")), (2, Patient(localization="face"))):
        expected = with_metadata.predict(contents[place], patient).probabilities
        found = body["results"][place]["prediction"]["probabilities"]
        assert found == pytest.approx(expected, abs=1e-5)
    problems = [body["results"][place]["problem"] for place in (1, 3)]
    assert [(problem["kind"], problem["status"]) for problem in problems] == [
        ("not_an_image", 415),
        ("damaged_image", 422),
    ]
    assert client.post("/predict/batch", files=image_fields(contents[0])).json()["predicted"] == 1


def test_health_and_model(client, predictor, with_metadata):
    health = client.get("/health").json()
    assert health == {"status": "ok", "inside": 0, "places": 32}
    HealthAnswer.model_validate(health)
    card = client.get("/model").json()
    ModelAnswer.model_validate(card)
    assert [entry["code"] for entry in card["classes"]] == predictor.facts.classes
    assert card["thresholds"] == {"melanoma": 0.2, "abstain": 0.4}
    assert (card["trained_on"], card["warning"], card["vocabulary"]) == ("ham10000", None, None)
    assert "somebody" not in json.dumps(card)
    other = TestClient(create_app(with_metadata)).get("/model").json()
    ModelAnswer.model_validate(other)
    assert other["vocabulary"] == {name: SERVED_VOCABULARY[name] for name in ("sex", "localization")}
    assert other["sha256"] != card["sha256"]


def test_openapi_names_every_page_field_and_problem(client):
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/predict", "/predict/batch", "/health", "/ready", "/model", "/problems"}
    post = described["paths"]["/predict"]["post"]
    form = post["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(form["properties"]) == {"image", "age", "sex", "localization"}
    documented = {
        kind
        for status, answer in post["responses"].items()
        if status != "200"
        for kind in answer["content"]["application/problem+json"]["examples"]
    }
    assert documented == set(KINDS) - {"not_found", "wrong_method", "wrong_origin", "not_ready"}
    example = post["responses"]["200"]["content"]["application/json"]["example"]
    PredictionAnswer.model_validate(example)
    assert example == prediction_example()
    assert client.get("/problems").json() == [{"kind": name, **kind._asdict()} for name, kind in KINDS.items()]


WATCHED: list[str] = []
WATCHING = False


def watch(event: str, arguments: tuple) -> None:
    """An audit hook, which can never be removed: notes what opens a file to write while it is switched on."""
    if WATCHING and event == "open" and isinstance(arguments[2], int) and arguments[2] & 0b11:
        WATCHED.append(str(arguments[0]))
    elif WATCHING and event.startswith("tempfile."):
        WATCHED.append(event)


@pytest.fixture
def opened_to_write(monkeypatch):
    sys.addaudithook(watch)
    WATCHED.clear()
    monkeypatch.setattr(sys.modules[__name__], "WATCHING", True)
    return WATCHED


def test_no_upload_touches_the_disk(client, opened_to_write):
    large = noise("BMP", 1500, 1000)
    assert len(large) > 4_000_000
    assert client.post("/predict?explain=gradcam", files=image_field(large)).status_code == 200
    assert client.post("/predict/batch", files=image_fields(large, large)).json()["predicted"] == 2
    assert client.post("/predict", files=image_field(large * 3)).status_code == 413
    assert opened_to_write == []


def test_the_watch_for_files_sees_what_starlette_would_do(opened_to_write):
    app = FastAPI()

    @app.post("/")
    async def spool(request: Request) -> int:
        return len(await request.form())

    assert TestClient(app).post("/", files=image_field(bytes(4_000_000))).json() == 1
    assert opened_to_write != []


class Held:
    """Stands for a predictor whose predictions wait until they are let go."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor, self.go = predictor, anyio.Event()

    def __getattr__(self, name: str):
        return getattr(self.predictor, name)

    def predict(self, *arguments, **named):
        anyio.from_thread.run(self.go.wait)
        return self.predictor.predict(*arguments, **named)


def test_one_too_many_is_told_to_come_back(predictor):
    content = photograph(7)
    expected = predictor.predict(content).probabilities
    answers = []

    async def scenario() -> None:
        held = Held(predictor)
        transport = httpx2.ASGITransport(create_app(held, Limits(at_once=1, waiting=2)))
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:

            async def post() -> None:
                answers.append(await client.post("/predict", files=image_field(content)))

            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(post)
                while (await client.get("/health")).json()["inside"] < 3:
                    await anyio.sleep(0.01)
                await post()
                assert (await client.post("/predict/batch", files=image_fields(content))).status_code == 429
                assert len(answers) == 1
                held.go.set()
            assert (await client.get("/health")).json() == {"status": "ok", "inside": 0, "places": 3}

    anyio.run(scenario)
    assert [answer.status_code for answer in answers] == [429, 200, 200, 200]
    assert answers[0].headers["retry-after"] == "1"
    assert answers[0].json()["kind"] == "too_busy"
    assert all(answer.json()["probabilities"] == expected for answer in answers[1:])


def exchange(app, messages: list[dict], headers: dict[str, str]) -> list[dict]:
    """What the app sends to a client that sends these messages to /predict and then nothing more."""
    sent: list[dict] = []

    async def receive() -> dict:
        if not messages:
            await anyio.sleep_forever()
        return messages.pop(0)

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    anyio.run(app, scope, receive, send)
    return sent


FORM = {"content-type": "multipart/form-data; boundary=b", "content-length": "1000"}


def test_a_request_that_does_not_arrive_gives_its_place_back(predictor, monkeypatch):
    monkeypatch.setattr(middleware, "SILENCE_SECONDS", 0.05)
    app = create_app(predictor, Limits(at_once=1, waiting=0, upload_seconds=0.1))
    sent = exchange(app, [{"type": "http.request", "body": b"--b\r\n", "more_body": True}], FORM)
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["kind"] == "too_slow"
    assert TestClient(app).post("/predict", files=image_field(photograph(1))).status_code == 200


def test_a_client_that_leaves_gets_no_answer_and_holds_no_place(predictor, caplog):
    app = create_app(predictor, Limits(at_once=1, waiting=0))
    with caplog.at_level(logging.INFO, "exp_tools.api"):
        assert exchange(app, [{"type": "http.disconnect"}], FORM) == []
    assert "POST /predict 499" in caplog.text
    assert TestClient(app).get("/health").json()["inside"] == 0


def test_who_asks_before_sending_too_much_is_told_at_once(predictor):
    """With "Expect: 100-continue" reading would ask for the body."""
    messages = [{"type": "http.request", "body": b"x", "more_body": False}]
    headers = FORM | {"content-length": "100000000", "expect": "100-continue"}
    assert exchange(create_app(predictor), messages, headers)[0]["status"] == 413
    assert len(messages) == 1


class Broken(Held):
    def predict(self, *_, **__):
        raise RuntimeError("patient " + chr(77) + "iller")


def test_a_fault_of_ours_is_a_problem_and_neither_answer_nor_log_tell_of_the_patient(predictor, caplog):
    client = TestClient(create_app(Broken(predictor)))
    with caplog.at_level(logging.INFO, "exp_tools.api"):
        answer = client.post("/predict", files=image_field(photograph(1)))
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] in answer.json()["detail"]
    assert answer.headers["x-request-id"] in caplog.text
    assert "RuntimeError" in caplog.text
    assert "service.py" in caplog.text
    assert "Miller" not in caplog.text + answer.text
    assert "Traceback" not in answer.text


def test_the_log_has_nothing_of_a_patient(client, caplog):
    with caplog.at_level(logging.INFO, "exp_tools.api"):
        answers = [
            client.post(
                "/predict", files=image_field(photograph(1), "Miller.jpg"), data={"age": "47", "sex": "Miller"}
            ),
            client.post("/predict?explain=Miller", files=image_field(photograph(1))),
            client.get("/patients/Miller"),
            client.post("/predict", files=image_field(b"Miller"), headers={"User-Agent": "Miller"}),
            client.request("MILLER", "/predict"),
        ]
    assert [answer.status_code for answer in answers] == [200, 422, 404, 415, 405]
    lines = [record.getMessage() for record in caplog.records if record.name == "exp_tools.api"]
    assert [line.split(" ")[:3] for line in lines] == [
        ["POST", "/predict", "200"],
        ["POST", "/predict", "422"],
        ["GET", "(other)", "404"],
        ["POST", "/predict", "415"],
        ["(other)", "/predict", "405"],
    ]
    assert all(
        "Miller" not in line and "47" not in line.split("id=")[0].split("bytes")[0].split("ms")[1] for line in lines
    )


def test_a_model_without_finite_numbers_is_not_served(tmp_path):
    predictor = Predictor(save_tiny_model(tmp_path / "model.safetensors"))
    predictor.engine.network.classifier.bias[0] = float("nan")
    with pytest.raises(UserError, match="NaN or infinite"):
        create_app(predictor)
