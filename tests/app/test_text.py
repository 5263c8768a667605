"""Text that others wrote is shown letter by letter: in Chromium nothing of it is a link, a picture or a formula."""

import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
from helpers.project import ROOT

from exp_tools.app.parts.text import JOINER, plain, without_pictures

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BEACON = "BEACON"
"""Stands for the address of a server that must never be asked."""
TEXTS = [
    "lesion_1.jpg",
    f"![x](http://{BEACON}/a.png)",
    f"![x][ref] [ref]: http://{BEACON}/b.png",
    f"<img src=http://{BEACON}/c.png>",
    f"<script>fetch('http://{BEACON}/d')</script>",
    f"[click](http://{BEACON}/e)",
    f"http://{BEACON}/f",
    "www.example.org",
    "somebody@example.org",
    "**bold** _it_ __b__ `code` ~~gone~~",
    "a_b _a_b_ train.batch_size __init__.py",
    "# heading",
    "1. first",
    "2) second",
    "- item",
    "+ item",
    "> quote",
    "| a | b |",
    "$\\frac{1}{2}$",
    ":red[colour] :material/home: :smile: :streamlit:",
    "&amp; &#33; \\* C:\\temp\\new",
    "two  spaces",
    "=HYPERLINK(A1)",
    "a:b 12:30",
    "---",
    "***",
]
CARD = f"# A card\n\n![x](http://{BEACON}/card.png)\n\n![r][r] ![r] \\![y](http://{BEACON}/y.png)\n\n" + (
    f"[r]: http://{BEACON}/ref.png\n\n<img src='http://{BEACON}/html.png'>\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n"
)
PAGE = """
import json, sys
from pathlib import Path
import streamlit as st
from exp_tools.app.parts.text import plain, without_pictures
texts, card = json.loads(Path(sys.argv[1]).read_text())
for text in texts:
    st.markdown(plain(text))
    st.error(plain(text))
    st.caption(f"Note: {plain(text)}.")
st.subheader(plain(texts[1]))
st.markdown(f"Model **{plain(texts[1])}**")
st.markdown(without_pictures(card))
"""


def test_letters_and_lines():
    assert plain("a\n\n# b") == "a \\# b"
    assert plain("train.batch_size _it_") == "train.batch_size \\_it\\_"
    assert plain("lesion 3: nevus.jpg") == "lesion 3: nevus.jpg"
    assert plain("http://a") == f"http:{JOINER}//a"
    assert "![" not in without_pictures("![a](b) \\![c](d)")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_nothing_is_interpreted_and_nothing_is_fetched(tmp_path):
    import json

    sync_api = pytest.importorskip("playwright.sync_api")
    asked: list[str] = []

    class Beacon(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_) -> None:
            pass

    beacon = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Beacon)
    threading.Thread(target=beacon.serve_forever, daemon=True).start()
    place = f"127.0.0.1:{beacon.server_port}"
    texts = [text.replace(BEACON, place) for text in TEXTS]
    (tmp_path / "texts.json").write_text(json.dumps([texts, CARD.replace(BEACON, place)]))
    (tmp_path / "page.py").write_text(PAGE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--server.headless=true", f"--server.port={port}", "--server.address=127.0.0.1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", *options, tmp_path / "page.py", "--", tmp_path / "texts.json"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/_stcore/health")
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            view = browser.new_page()
            view.goto(f"http://127.0.0.1:{port}")
            view.get_by_text("A card").wait_for(timeout=60_000)
            view.wait_for_timeout(500)
            shown = view.locator("[data-testid=stMarkdownContainer], [data-testid=stCaptionContainer]")
            lines = [line.replace(JOINER, "") for line in shown.all_inner_texts()]
            card = shown.last
            parts = shown.element_handles()
            markup = "img, script, code, del, ul, ol, blockquote, .katex, strong a, a[href]:not([href^='#'])"
            drawn = [one.inner_text() for one in parts[:-1] if one.query_selector(markup)]  # "#": a heading's own link
            assert card.locator("img").count() == 0
            assert card.locator("td").all_inner_texts() == ["1", "2"]
            browser.close()
    finally:
        process.terminate()
        process.wait(30)
        beacon.shutdown()
    expected = [" ".join(text.split()) for text in texts]
    assert lines[: 3 * len(texts)] == [line for text in expected for line in (text, text, f"Note: {text}.")]
    assert lines[3 * len(texts)] == expected[1]
    assert lines[3 * len(texts) + 1] == f"Model {expected[1]}"
    assert (drawn, asked) == ([], [])


def wait_for(address: str) -> None:
    for _ in range(300):
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail("the page did not start")
