"""The app behind a proxy: its base path, the names and origins it answers to, and no foreign frame around it."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import requests
from helpers.project import ROOT

pytest.importorskip("streamlit")

WAIT = 60


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """Of an app that https://example.org/lesions offers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("app")
    words = ["app", "--port", str(port), "--public-url", "https://example.org/lesions"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "exp_tools.cli", *words],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        for _ in range(4 * WAIT):
            try:
                requests.get(f"http://127.0.0.1:{port}/lesions/_stcore/health", timeout=5).raise_for_status()
                break
            except requests.RequestException:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.25)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    said = (folder / "log").read_text()
    assert "offered as https://example.org/lesions" in said
    assert "Traceback" not in said


def handshake(port: int, host: str, origin: str) -> int:
    """The status with which a WebSocket is opened."""
    lines = [
        "GET /lesions/_stcore/stream HTTP/1.1",
        f"Host: {host}",
        f"Origin: {origin}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        return int(connection.recv(4096).split(b" ")[1])


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
    assert handshake(port, host, origin) == status
