"""`exp-tools api` as its own process: under load, with bad requests among the good, and when it is told to stop."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
from helpers.models import noise, photograph, save_tiny_model
from helpers.project import ROOT

from exp_tools.cli.main import main
from exp_tools.serving.predictor import DISCLAIMER, Predictor

REQUESTS, CLIENTS = 200, 16
GROWTH = 1.05


class Server:
    """The command, started on a free port with a working folder of its own."""

    def __init__(self, model: Path, folder: Path, *options: str) -> None:
        folder.mkdir()
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "exp_tools.cli", "api", "--model", str(model), "--port", "0", *options],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "MPLCONFIGDIR": str(folder.parent)},
            stdout=subprocess.PIPE,
            stderr=(folder.parent / f"{folder.name}.log").open("w"),
            text=True,
        )
        said = self.process.stdout.readline()
        assert said, self.log()
        self.host, self.port = re.search(r"http://([\d.]+):(\d+)", said).groups()
        self.url = f"http://{self.host}:{self.port}"

    def log(self) -> str:
        return (self.folder.parent / f"{self.folder.name}.log").read_text(encoding="utf-8")

    def memory(self) -> int:
        return psutil.Process(self.process.pid).memory_info().rss

    def stop(self) -> int:
        """Exit status after SIGTERM."""
        self.process.terminate()
        return self.process.wait(30)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "model.safetensors")


def running(model: Path, folder: Path) -> Iterator[Server]:
    server = Server(model, folder, "--at-once", "2")
    yield server
    server.process.kill()
    server.process.wait()


@pytest.fixture(scope="module")
def server(model, tmp_path_factory) -> Iterator[Server]:
    yield from running(model, tmp_path_factory.mktemp("api") / "server")


@pytest.fixture
def own_server(model, tmp_path) -> Iterator[Server]:
    """One that the test may stop."""
    yield from running(model, tmp_path / "server")


def mixed_load(server: Server, expected: list[dict[str, float]]) -> Counter:
    """Send good and bad requests, so many at a time; checks every answer and counts them by status."""
    large = noise("PNG", 800, 600)

    def one(number: int) -> int:
        photo = number % len(expected)
        kind = number % 5
        if kind == 3:
            bad = [b"", b"no image", photograph(0)[:700], photograph(0, "PNG") + bytes(11_000_000)][number // 5 % 4]
            answer = requests.post(f"{server.url}/predict", files={"image": bad}, timeout=60)
            assert answer.status_code in (413, 415, 422), answer.text
            assert answer.headers["content-type"] == "application/problem+json"
        elif kind == 4:
            files = [("images", photograph(photo)), ("images", b"no image"), ("images", large)]
            answer = requests.post(f"{server.url}/predict/batch", files=files, timeout=60)
            results = answer.json()["results"]
            assert results[0]["prediction"]["probabilities"] == pytest.approx(expected[photo], abs=1e-5)
            assert (results[1]["problem"]["status"], results[2]["problem"]) == (415, None)
        else:
            explain = {"explain": "gradcam"} if kind == 2 else {}
            files = {"image": photograph(photo)}
            answer = requests.post(f"{server.url}/predict", files=files, data={"age": "60"}, params=explain, timeout=60)
            assert answer.json()["probabilities"] == pytest.approx(expected[photo], abs=1e-5)
        return answer.status_code

    with ThreadPoolExecutor(CLIENTS) as pool:
        return Counter(pool.map(one, range(REQUESTS)))


def test_under_load_every_answer_is_right_and_memory_does_not_grow(server, model):
    predictor = Predictor(model)
    expected = [predictor.predict(photograph(seed)).probabilities for seed in range(7)]
    mixed_load(server, expected)
    before = server.memory()
    statuses = mixed_load(server, expected)
    after = server.memory()
    assert statuses == {200: 160, 422: 20, 415: 10, 413: 10}
    assert after < GROWTH * before, f"{before / 1e6:.1f} MB before, {after / 1e6:.1f} MB after"
    assert list(server.folder.iterdir()) == []
    assert "ERROR" not in server.log()
    assert "WARNING" not in server.log()


@pytest.mark.sweep
def test_memory_after_5000_requests_is_that_after_200(own_server, model):
    predictor = Predictor(model)
    expected = [predictor.predict(photograph(seed)).probabilities for seed in range(7)]
    mixed_load(own_server, expected)
    before = own_server.memory()
    for _ in range(5000 // REQUESTS - 1):
        mixed_load(own_server, expected)
    after = own_server.memory()
    print(f"{before / 1e6:.1f} MB after {REQUESTS} requests, {after / 1e6:.1f} MB after 5,000")
    assert after <= 1.02 * before, f"{before / 1e6:.1f} MB before, {after / 1e6:.1f} MB after"


class HalfSent:
    """A request of which the server has half until `answer` sends the rest."""

    def __init__(self, server: Server, photo: bytes) -> None:
        part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
        body = part + photo + b"\r\n--b--\r\n"
        head = [
            "POST /predict HTTP/1.1",
            f"Host: {server.host}",
            "Connection: close",
            "Content-Type: multipart/form-data; boundary=b",
            f"Content-Length: {len(body)}",
        ]
        self.connection = socket.create_connection((server.host, int(server.port)), timeout=30)
        self.connection.sendall("\r\n".join([*head, "", ""]).encode() + body[:500])
        self.rest = body[500:]

    def answer(self) -> tuple[int, dict]:
        """Status and body."""
        with self.connection:
            self.connection.sendall(self.rest)
            received = b""
            while some := self.connection.recv(65536):
                received += some
        head, body = received.split(b"\r\n\r\n", 1)
        return int(head.split(b" ")[1]), json.loads(body)


def wait_for(server: Server, inside: int) -> None:
    while requests.get(f"{server.url}/health", timeout=10).json()["inside"] != inside:
        time.sleep(0.02)


def test_beyond_its_places_it_says_429_and_goes_on(server, model):
    expected = Predictor(model).predict(photograph(1)).probabilities
    places = requests.get(f"{server.url}/health", timeout=10).json()["places"]
    held = [HalfSent(server, photograph(1)) for _ in range(places)]
    wait_for(server, places)
    refused = [requests.post(f"{server.url}/predict", files={"image": photograph(2)}, timeout=30) for _ in range(3)]
    assert [answer.status_code for answer in refused] == [429] * 3
    assert [answer.headers["retry-after"] for answer in refused] == ["1"] * 3
    answers = [request.answer() for request in held]
    assert [status for status, _ in answers] == [200] * places
    assert all(body["probabilities"] == pytest.approx(expected, abs=1e-5) for _, body in answers)
    wait_for(server, 0)


def test_it_listens_on_this_machine_alone(server):
    assert server.host == "127.0.0.1"
    listening = [
        connection.laddr.ip
        for connection in psutil.Process(server.process.pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1"]


def test_100_megabytes_are_refused_and_the_client_hears_why(server):
    before = server.memory()

    def endless():
        for _ in range(100):
            yield bytes(1_000_000)

    kind = {"content-type": "multipart/form-data; boundary=b"}
    form = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    declared = requests.post(f"{server.url}/predict", data=form + bytes(100_000_000), headers=kind, timeout=60)
    undeclared = requests.post(
        f"{server.url}/predict", data=(part for part in (form, *endless())), headers=kind, timeout=60
    )
    assert [answer.status_code for answer in (declared, undeclared)] == [413, 413]
    assert [answer.json()["kind"] for answer in (declared, undeclared)] == ["too_large", "too_large"]
    assert server.memory() - before < 40e6


def test_what_is_in_work_is_answered_before_it_stops(own_server):
    """SIGTERM while half of a request is there: the rest may come, and its answer too."""
    request = HalfSent(own_server, photograph(1))
    wait_for(own_server, 1)
    ended: list[int] = []
    waiting = threading.Thread(target=lambda: ended.append(own_server.stop()))
    waiting.start()
    waiting.join(0.5)
    assert not ended
    status, body = request.answer()
    waiting.join(30)
    assert (status, body["disclaimer"]) == (200, DISCLAIMER)
    assert ended == [0]


def test_ctrl_c_stops_it_without_a_traceback(own_server):
    own_server.process.send_signal(signal.SIGINT)
    assert own_server.process.wait(30) == 0
    assert "Traceback" not in own_server.log()


def test_what_the_user_can_mend_is_said_in_a_line(model, server, tmp_path, capsys):
    for options, said in (
        (["--model", str(tmp_path / "none.safetensors")], "there is no model file"),
        (["--port", server.port], f"cannot listen on 127.0.0.1, port {server.port}"),
        (["--host", "203.0.113.7"], "cannot listen on 203.0.113.7"),
        (["--port", "70000"], "port 70000"),
        (["--at-once", "0"], "--at-once is 0"),
    ):
        assert main(["api", "--model", str(model), *options]) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        assert said in printed.err
        assert printed.err.count("\n") == 1
