"""The app behind a proxy: its base path, the names and origins it answers to, and no foreign frame around it."""

import os
import re
import signal
import socket
import subprocess
import sys

import pytest
import requests
from helpers.api import until
from helpers.project import ROOT

pytest.importorskip("streamlit")


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """Of an app that https://example.org/lesions offers."""
    folder = tmp_path_factory.mktemp("app")
    words = ["app", "--port", "0", "--public-url", "https://example.org/lesions"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "exp_tools.cli", *words],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        until(lambda: "http://" in (folder / "log").read_text() or process.poll() is not None, 60)
        port = int(re.search(r"http://127.0.0.1:(\d+)/lesions,", (folder / "log").read_text())[1])
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(20)
    assert status == 0
    said = (folder / "log").read_text()
    assert "offered as https://example.org/lesions" in said
    assert "Traceback" not in said


def upgraded(port: int, host: str, origin: str) -> socket.socket:
    """A connection that asked to become a WebSocket."""
    lines = [
        "GET /lesions/_stcore/stream HTTP/1.1",
        f"Host: {host}",
        f"Origin: {origin}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    return connection


def test_the_base_path_is_the_apps_and_no_other_site_may_frame_it(port):
    page = requests.get(f"http://127.0.0.1:{port}/lesions/", timeout=20)
    assert page.status_code == 200
    assert page.headers["content-security-policy"] == "frame-ancestors 'self'"


@pytest.mark.parametrize(("host", "origin", "status"), [
    ("example.org", "https://example.org", 101),
    ("127.0.0.1:8501", "https://example.org", 101),  # a proxy that puts its own name for the server
    ("example.org", "https://evil.example", 403),
    ("evil.example", "https://evil.example", 403),
])  # fmt: skip
def test_a_page_talks_to_it_under_its_own_name_alone(port, host, origin, status):
    with upgraded(port, host, origin) as connection:
        assert int(connection.recv(4096).split(b" ")[1]) == status
