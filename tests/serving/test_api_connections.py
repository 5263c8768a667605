"""The API's connections: no wait in a kept-alive one, none that holds a place for nothing, a log that stays short."""

import json
import logging
import os
import re
import socket
import subprocess
import sys
import time

import pytest
import requests
from helpers.api import Running, everything, running, until
from helpers.models import save_tiny_model
from helpers.project import ROOT

from exp_tools.cli.main import main
from exp_tools.serving.api import connections
from exp_tools.serving.api.app import create_app
from exp_tools.serving.api.connections import Seldom, connection_room
from exp_tools.serving.api.limits import Limits
from exp_tools.serving.predictor import Predictor

resource = pytest.importorskip("resource")

HEAD = b"GET /health HTTP/1.1\r\nHost: x\r\n"
BEGUN = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
BEGUN += b"Content-Length: 99\r\n\r\n--"
SHORT = Limits(at_once=1, waiting=9, header_seconds=0.3, idle_seconds=0.3, send_seconds=0.3, connections=5)
PATIENT = Limits(at_once=1, waiting=9, connections=5)


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    return create_app(Predictor(save_tiny_model(tmp_path_factory.mktemp("model") / "model.safetensors")), PATIENT)


@pytest.fixture
def short(app):
    """A server that waits 0.3 seconds and has five connections."""
    with running(app, SHORT) as server:
        yield server


@pytest.fixture
def patient(app):
    with running(app, PATIENT) as server:
        yield server


def problem(received: bytes) -> tuple[int, str]:
    """Status and kind of a raw answer, whose headers say that the connection ends."""
    head, body = received.split(b"\r\n\r\n", 1)
    assert b"application/problem+json" in head
    assert b"connection: close" in head.lower()
    return int(head.split(b" ")[1]), json.loads(body)["kind"]


def health(server: Running) -> dict:
    return requests.get(f"{server.url}/health", timeout=10).json()


def test_small_answers_leave_at_once(patient):
    """Nagle's algorithm would hold them back until the client acknowledges what came before: 40 ms."""
    with patient.connect():
        until(lambda: len(patient.server.server_state.connections) == 1)
        (connection,) = patient.server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("sent", [b"", b"G", HEAD], ids=["nothing", "a letter", "a line"])
def test_a_head_that_does_not_arrive_ends_the_connection(short, sent):
    with short.connect(sent) as connection:
        assert problem(everything(connection)) == (408, "too_slow")


def dripped(connection: socket.socket, drop: bytes) -> float:
    """Seconds for which the server takes drops."""
    start = time.monotonic()
    while time.monotonic() - start < 10:
        try:
            connection.sendall(drop)
        except ConnectionError:
            break
        time.sleep(0.05)
    return time.monotonic() - start


def test_a_head_in_drops_does_not_hold_the_connection(short):
    with short.connect(HEAD + b"X: ") as connection:
        assert dripped(connection, b"x") < 3


def test_a_body_in_drops_that_nobody_reads_does_not_hold_it_either(short):
    """GET with a body that never ends: it is answered, and what else arrives is no request."""
    with short.connect(HEAD + b"Content-Length: 100000\r\n\r\n") as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert dripped(connection, b"x") < 3


def test_a_kept_connection_is_closed_when_nothing_more_comes(short):
    with short.connect(HEAD + b"\r\n") as connection:
        assert everything(connection).count(b"HTTP/1.1 ") == 1


def one_answer(connection: socket.socket) -> bytes:
    received = b""
    while not received.endswith(b"}"):
        received += connection.recv(5000)
    return received


def test_a_kept_connection_may_rest_for_longer_than_a_head_may_take(app):
    rests = Limits(at_once=1, header_seconds=0.2, idle_seconds=30)
    with running(app, rests) as server, server.connect(HEAD + b"\r\n") as connection:
        assert one_answer(connection).startswith(b"HTTP/1.1 200")
        time.sleep(0.6)
        connection.sendall(HEAD + b"\r\n")
        assert one_answer(connection).startswith(b"HTTP/1.1 200")
        connection.sendall(HEAD)
        assert problem(everything(connection)) == (408, "too_slow")


def test_who_does_not_take_an_answer_is_cut_off():
    async def large(scope, receive, send) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(100):
                await send({"type": "http.response.body", "body": bytes(1_000_000), "more_body": True})

    with running(large, SHORT) as server, server.connect(HEAD + b"\r\n"):
        until(lambda: len(server.server.server_state.tasks) == 1)
        until(lambda: len(server.server.server_state.connections) == 0)


def test_a_websocket_is_no_request_that_does_not_arrive():
    async def echo(scope, receive, send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await send(await receive() | {"type": "websocket.send"})

    asked = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    asked += b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    with running(echo, SHORT, ws="websockets-sansio") as server, server.connect(HEAD + asked) as connection:
        assert connection.recv(5000).startswith(b"HTTP/1.1 101")
        time.sleep(0.8)
        connection.sendall(b"\x81\x82\0\0\0\0hi")  # a text of two letters, under a mask of zeros
        assert connection.recv(5000).startswith(b"\x81\x02hi")


def test_who_waits_longest_makes_room_and_work_goes_on(patient):
    working = patient.connect(BEGUN)
    until(lambda: health(patient)["inside"] == 1)
    idle = [patient.connect(HEAD) for _ in range(30)]
    assert health(patient)["inside"] == 1
    assert all(everything(connection) == b"" for connection in idle[:25])
    working.sendall(bytes(97))
    assert working.recv(100).startswith(b"HTTP/1.1 400")
    for connection in (working, *idle):
        connection.close()


def test_where_all_are_in_work_the_next_is_told_to_come_back(patient):
    working = [patient.connect(BEGUN) for _ in range(5)]
    until(lambda: len([one for one in patient.server.server_state.connections if one.in_work]) == 5)
    with patient.connect() as connection:
        assert problem(everything(connection)) == (429, "too_busy")
    for connection in working:
        connection.close()


def test_more_half_open_connections_than_files_stop_nothing(tmp_path):
    model = save_tiny_model(tmp_path / "model.safetensors")
    words = f"ulimit -n 256; exec {sys.executable} -m exp_tools.cli api --model {model} --port 0"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            ["sh", "-c", words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    held = []
    try:
        port = int(re.search(r":(\d+) ", process.stdout.readline())[1])
        for _ in range(4):
            held += [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(100)]
            for connection in held[-100:]:
                connection.send(HEAD)
            start = time.monotonic()
            assert requests.get(f"http://127.0.0.1:{port}/health", timeout=20).json()["status"] == "ok"
            assert time.monotonic() - start < 5
    finally:
        process.terminate()
        status = process.wait(40)
        for connection in held:
            connection.close()
    said = (tmp_path / "log").read_text()
    assert status == 0
    assert len(said.splitlines()) < 20, said
    assert "accept" not in said
    assert "Traceback" not in said


def test_what_the_limit_of_open_files_leaves(monkeypatch, capsys):
    for files, room in ((20_000, (1000, 100)), (1024, (704, 64)), (256, (128, 16)), (128, (32, 8))):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert connection_room(1000) == room
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 100))
    assert main(["api", "--port", "0"]) == 1
    said = capsys.readouterr().err
    assert said == "error: the server may open 100 files and needs 128; allow more by `ulimit -n 1024`\n"


def test_the_same_message_is_one_line_a_second(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(connections.time, "monotonic", lambda: clock[0])
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(logging.Formatter().format(record))
    handler.addFilter(Seldom())
    log = logging.Logger("made for this test")
    log.addHandler(handler)
    for number in range(1000):
        error = OSError(24, "Too many open files")
        log.error(f"socket.accept() out of system resource\nsocket: {number}", exc_info=error)
    log.error("something else")
    clock[0] += 1.5
    log.error("socket.accept() out of system resource\nsocket: 5")
    assert lines == [
        "socket.accept() out of system resource: a connection could not be accepted",
        "something else",
        "socket.accept() out of system resource: a connection could not be accepted (999 more like it)",
    ]
