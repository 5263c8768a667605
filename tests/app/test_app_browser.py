"""The web app in a real browser: upload to download, drag and drop, keyboard, phone, and an experiment from the page.

Runs wherever Chromium and Playwright are.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from helpers.models import write_model
from helpers.predictions import scaled
from helpers.project import TINY, clone
from PIL import Image

from exp_tools.data.labels.table import read_labels, read_splits
from exp_tools.evaluation.predictions import prediction_table
from exp_tools.project import LABELS, MODEL, PREDICTIONS, RELEASED, SPLITS, SUMS
from exp_tools.serving.predictor import DISCLAIMER, SCOPE, Predictor
from exp_tools.taxonomy import DIAGNOSES

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
pytest.importorskip("streamlit")
expect = sync_api.expect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

# An upload that is written to the disk goes through tempfile.TemporaryFile: here that is an error.
WITHOUT_DISK = """
import sys, tempfile
def refuse(*given, **named):
    raise AssertionError("a temporary file was asked for")
tempfile.TemporaryFile = refuse
from exp_tools.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
PAGES = tuple(pytest.importorskip("exp_tools.app.main").PAGES)
WAIT = 30_000


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A clone with the tiny configuration, its data, a model and predictions, but without report or released model."""
    project = clone(tmp_path_factory.mktemp("app") / "project", TINY)
    (project.folder / RELEASED / SUMS).unlink(missing_ok=True)
    project.run("dvc", "repro", "split")
    write_model(project.folder / "models/model.safetensors", "soft_attention")
    predict_at_random(project.folder)
    return project


def predict_at_random(folder: Path) -> None:
    """Write predictions of the test split, of which most are wrong."""
    labels = read_labels(folder / LABELS)
    test = labels[(read_splits(folder / SPLITS)["split"] == "test").to_numpy()]
    logits = np.random.default_rng(0).normal(0, 2, (len(test), len(DIAGNOSES)))
    table = prediction_table(test, "test", logits, list(DIAGNOSES), scaled(len(DIAGNOSES)))
    table.to_csv(folder / PREDICTIONS, index=False)


@pytest.fixture(scope="module")
def address(project):
    """Where the app listens; at the end it stops in good order when it is asked to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    names = ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL")
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "DVC_", "PYTHONPATH"))
    }
    log = (project.folder.parent / "app.log").open("w+")
    server = subprocess.Popen(
        [sys.executable, "-c", WITHOUT_DISK, "app", "--allow-training", "--port", str(port)],
        cwd=project.folder,
        env=environment | dict.fromkeys(names, "test@example.org") | {"DVC_NO_ANALYTICS": "1"},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    found = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{found}/_stcore/health", server, log)
        yield found
    finally:
        project.run("dvc", "queue", "stop", check=False)
        server.send_signal(signal.SIGTERM)
        status = server.wait(timeout=20)
        log.seek(0)
        said = log.read()
    assert status in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
    assert "Traceback" not in said, said


def wait_for(url: str, server: subprocess.Popen, log) -> None:
    for _ in range(240):
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert server.poll() is None, Path(log.name).read_text()
            time.sleep(0.25)
    raise AssertionError("the app did not start")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    """A function that opens a page of the app as a visitor of its own; no request may leave this machine."""
    contexts, asked = [], []

    def open_page(name: str = "Predict", **options) -> sync_api.Page:
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options}))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{address}/" if name == "Predict" else f"{address}/{name.lower()}")
        expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible(timeout=WAIT)
        return page

    yield open_page
    for context in contexts:
        context.close()
    strangers = [url for url in asked if not url.startswith((address, address.replace("http", "ws"), "data:", "blob:"))]
    assert [url for url in strangers if not url.startswith("file:")] == []


@pytest.fixture(scope="module")
def photograph(tmp_path_factory) -> Path:
    """Pixels of noise, larger than the 1 MB beyond which uploads usually go to a temporary file."""
    pixels = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("images") / "mole.png"
    Image.fromarray(pixels).save(path)
    assert path.stat().st_size > 3_000_000
    return path


def picture(page) -> str:
    """The address of the picture that is shown; it changes with the picture."""
    return page.locator("[data-testid=stImage] img").get_attribute("src")


def wait_for_another(page, before: str) -> str:
    page.wait_for_function(
        """before => {
            const image = document.querySelector('[data-testid=stImage] img');
            return image && image.getAttribute('src') !== before;
        }""",
        arg=before,
    )
    return picture(page)


def test_upload_result_overlay_download(visit, project, photograph, tmp_path):
    page = visit()
    page.locator("input[type=file]").set_input_files(photograph)
    page.locator(".probabilities").wait_for()
    expected = Predictor(project.folder / "models/model.safetensors").predict(photograph.read_bytes())
    assert page.locator(".probabilities tr").count() == len(expected.probabilities)
    expect(page.get_by_role("heading", name=expected.name)).to_be_visible()
    assert page.locator(".bar").first.evaluate("bar => getComputedStyle(bar).animationName") == "grow"

    laid_over = picture(page)
    page.get_by_role("slider").focus()
    page.keyboard.press("ArrowRight")
    stronger = wait_for_another(page, laid_over)
    page.get_by_role("radio", name="Attention").click()
    attention = wait_for_another(page, stronger)
    page.get_by_role("radio", name="Image alone").click()
    alone = wait_for_another(page, attention)
    assert len({laid_over, stronger, attention, alone}) == 4

    with page.expect_download() as download:
        page.get_by_role("button", name="Download result (JSON)").click()
    download.value.save_as(tmp_path / "result.json")
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["file"] == "mole.png"
    digest = hashlib.sha256((project.folder / MODEL).read_bytes()).hexdigest()
    assert result["model"]["sha256"] == digest
    assert result["model"]["trained_on"] == "synthetic"
    assert result["scope"] == SCOPE
    assert result["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)
    assert result["disclaimer"].startswith("For research and teaching only")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download picture (PNG)").click()
    download.value.save_as(tmp_path / "picture.png")
    assert Image.open(tmp_path / "picture.png").size == (1024, 768)  # the photograph, no larger than that


def test_several_files_are_dropped_at_once(visit, tmp_path):
    page = visit()
    drop = """async () => {
        const files = new DataTransfer();
        for (const name of ['one.png', 'two.png']) {
            const canvas = new OffscreenCanvas(60, 45);
            canvas.getContext('2d').fillRect(0, 0, 30, 30);
            files.items.add(new File([await canvas.convertToBlob()], name, {type: 'image/png'}));
        }
        files.items.add(new File(['no picture'], 'broken.jpg', {type: 'image/jpeg'}));
        return files;
    }"""
    handle = page.evaluate_handle(drop)
    page.dispatch_event("[data-testid=stFileUploaderDropzone]", "drop", {"dataTransfer": handle})
    expect(page.get_by_role("heading", name="3 images")).to_be_visible(timeout=WAIT)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download all as CSV").click()
    download.value.save_as(tmp_path / "all.csv")
    lines = (tmp_path / "all.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["file", "one.png", "two.png", "broken.jpg"]
    assert "not read: the file is not an image" in lines[3]


def test_the_keyboard_reaches_and_works_everything(visit):
    page = visit()
    expect(page.get_by_role("button", name="Draw an unseen example")).to_be_visible(timeout=WAIT)
    name = "(document.activeElement.innerText || document.activeElement.ariaLabel || '').trim()"
    reached = []
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(name))
        if reached[-1].endswith("Draw an unseen example"):
            break
    assert [name for name in reached if name in PAGES] == list(PAGES)
    assert any("Upload" in name for name in reached)
    page.keyboard.press("Enter")
    page.locator(".probabilities").wait_for()


def test_who_wants_no_motion_gets_none(visit):
    page = visit(reduced_motion="reduce")
    page.get_by_role("button", name="Draw an unseen example").click()
    page.locator(".probabilities").wait_for()
    assert page.locator(".bar").first.evaluate("bar => getComputedStyle(bar).animationName") == "none"


@pytest.mark.sweep
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_phone_in_light_and_dark(visit, scheme):
    page = visit(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    for name in PAGES:
        page.get_by_role("link", name=name, exact=True).click()
        expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible(timeout=WAIT)
        expect(page.get_by_text(DISCLAIMER)).to_be_visible()
        page.locator("[data-test-script-state=notRunning]").wait_for()
        page.wait_for_timeout(1000)  # charts and tables take their width after they are there
        assert page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth") <= 390, name
    colour = page.evaluate("getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor")
    assert colour == {"light": "rgb(255, 255, 255)", "dark": "rgb(16, 23, 29)"}[scheme]


SCREENS = {"desktop": {"width": 1440, "height": 900}, "phone": {"width": 390, "height": 844}}


def settle(page) -> None:
    """Wait until the script has run and what is drawn later has its place."""
    page.locator("[data-test-script-state=notRunning]").wait_for()
    page.wait_for_timeout(1000)


@pytest.mark.parametrize(
    ("screen", "scheme"),
    [
        ("desktop", "light"),
        pytest.param("phone", "dark", marks=pytest.mark.sweep),
        pytest.param("desktop", "dark", marks=pytest.mark.sweep),
        pytest.param("phone", "light", marks=pytest.mark.sweep),
    ],
)
def test_axe_finds_nothing_on_any_page(visit, photograph, screen, scheme):
    page = visit(viewport=SCREENS[screen], color_scheme=scheme)
    found = {}
    for name in PAGES:
        page.get_by_role("link", name=name, exact=True).click()
        expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible(timeout=WAIT)
        settle(page)
        found[name] = violations(page)
        expect(page.get_by_role("navigation", name="Pages").locator("[aria-current=page]")).to_have_text(name)
    page.get_by_role("link", name="Predict", exact=True).click()
    page.locator("input[type=file]").set_input_files(photograph)
    page.locator(".probabilities").wait_for()
    settle(page)
    found["result"] = violations(page)
    assert {name: faults for name, faults in found.items() if faults} == {}


def violations(page) -> list[str]:
    return [
        f"{one['id']}: {node['html'][:200]}"
        for one in axe.Axe().run(page).response["violations"]
        for node in one["nodes"]
    ]


@pytest.mark.parametrize("screen", SCREENS)
def test_the_result_is_above_the_fold_and_before_what_was_asked(visit, photograph, screen):
    page = visit(viewport=SCREENS[screen])
    expect(page.get_by_text("Give the page a dermoscopic image")).to_be_visible()
    page.locator("input[type=file]").set_input_files(photograph)
    page.locator(".probabilities").wait_for()
    settle(page)
    fold = SCREENS[screen]["height"]
    first = page.locator(".probabilities" if screen == "desktop" else ".probabilities caption").bounding_box()
    assert first["y"] + first["height"] <= fold
    uploader = page.get_by_test_id("stFileUploader").bounding_box()
    assert uploader["y"] > first["y"]
    assert page.get_by_text(SCOPE).bounding_box()["y"] < first["y"]


def test_a_page_asked_for_by_its_name_is_shown_without_a_dialog(visit, address):
    page = visit()
    for path in ("predict", "about"):
        page.goto(f"{address}/{path}")
        expect(page.get_by_role("heading", name=path.capitalize(), exact=True)).to_be_visible(timeout=WAIT)
        settle(page)
        assert page.get_by_role("dialog").count() == 0


def test_a_model_is_evaluated_on_the_page_and_the_report_needs_nothing_else(visit, tmp_path):
    page = visit("Evaluate")
    page.get_by_text("Evaluate this model on").click()
    page.get_by_label("Leave out images and rows").check(force=True)
    page.get_by_role("button", name="Evaluate", exact=True).click()
    with page.expect_download(timeout=180_000) as download:
        page.get_by_role("button", name="Report as one page (HTML)").click(timeout=180_000)
    download.value.save_as(tmp_path / "report.html")
    asked, page = [], page.context.new_page()  # the app's page may still ask for something
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "report.html").as_uri())
    expect(page.get_by_role("heading", name="workspace on test split")).to_be_visible()
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert page.locator("figure img").count() >= 6
    assert violations(page) == []


def case(page) -> str:
    """The case that the page's address names."""
    return re.search(r"case=(\w+)", page.url)[1]


def step(page, key: str) -> str:
    """Press a key that leads to another case; the case that is then shown."""
    before = case(page)
    page.keyboard.press(key)
    page.wait_for_function("before => !location.search.includes(before)", arg=before)
    settle(page)
    return case(page)


def test_keys_lead_from_case_to_case_and_a_link_leads_back(visit):
    page = visit("Cases")
    settle(page)
    first = case(page)
    second = step(page, "j")
    third = step(page, "ArrowRight")
    assert len({first, second, third}) == 3
    assert step(page, "k") == second
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")  # as fast as that, and none is lost
    page.wait_for_function("third => location.search.includes(third)", arg=third)
    settle(page)
    assert step(page, "ArrowLeft") == second
    found = page.get_by_role("heading", name=re.compile("Wrong|Right")).inner_text()
    other = visit("Cases")
    other.goto(page.url)
    expect(other.get_by_role("heading", name=found)).to_be_visible(timeout=WAIT)
    settle(other)
    assert step(other, "ArrowLeft") == first
    assert other.get_by_role("button", name="Next").get_attribute("aria-keyshortcuts") == "ArrowRight J"


@pytest.mark.sweep
def test_keys_keep_their_meaning_elsewhere_and_can_be_switched_off(visit):
    page = visit("Cases")
    settle(page)
    first = case(page)
    page.get_by_text("Filters and order").click()
    page.get_by_label("True class").focus()
    page.keyboard.type("jk")
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    page.get_by_role("slider").first.focus()
    page.keyboard.press("ArrowRight")
    settle(page)
    assert "confidence=" in page.url  # the slider moved
    page.get_by_role("radio", name="All").focus()
    page.keyboard.press("ArrowRight")
    settle(page)
    assert case(page) == first
    page.get_by_text("Keys ← → and J, K").click()
    settle(page)
    page.keyboard.press("j")
    settle(page)
    assert case(page) == first


@pytest.mark.sweep
@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_any_view_of_the_cases(visit, screen, scheme):
    page = visit("Cases", viewport=SCREENS[screen], color_scheme=scheme)
    settle(page)
    page.get_by_text("Filters and order").click()
    page.get_by_text("Where the model looked").click()
    found = {}
    for view in ("One case", "Grid", "Confusion matrix"):
        page.get_by_role("radio", name=view).click()
        settle(page)
        found[view] = violations(page)
        assert page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth") <= SCREENS[screen]["width"]
    assert {view: faults for view, faults in found.items() if faults} == {}


@pytest.mark.sweep
def test_a_cell_of_the_confusion_matrix_leads_to_its_cases(visit):
    page = visit("Cases")
    settle(page)
    page.get_by_role("radio", name="Confusion matrix").click()
    settle(page)
    chart = page.get_by_test_id("stVegaLiteChart").bounding_box()
    for across in range(7):  # cells of the row of the nevi, of which some are empty
        page.mouse.click(chart["x"] + 97 + across * 48.5, chart["y"] + 24 + 5 * 48.5)
        page.wait_for_timeout(1500)
        if "view=Grid" in page.url:
            break
    assert "true=Melanocytic+nevus" in page.url
    assert "predicted=" in page.url
    settle(page)
    shown = page.locator(".st-key-case-grid").get_by_test_id("stButton")
    expect(page.get_by_text(re.compile(rf"^{shown.count()} of \d+ images"))).to_be_visible()
    assert all(name.strip().split("\n")[-1].startswith("nv") for name in shown.all_inner_texts())
    shown.last.get_by_role("button").click()
    expect(page.get_by_role("heading", name=re.compile("Wrong|Right"))).to_be_visible(timeout=WAIT)


def choose(page, label: str, option: str) -> None:
    page.get_by_label(label).click()
    page.get_by_role("option", name=option).click()


@pytest.mark.sweep
def test_an_experiment_is_queued_on_the_page_runs_and_can_be_used(visit):
    page = visit("Experiments")
    page.get_by_label("Name", exact=True).fill("mine")
    page.get_by_label("Epochs").fill("1")
    page.get_by_role("button", name="Queue experiment").click()
    expect(page.get_by_text("Queued experiment 'mine'")).to_be_visible(timeout=WAIT)
    expect(page.get_by_text("mine — queued")).to_be_visible(timeout=WAIT)
    expect(page.get_by_text("mine — running")).to_be_visible(timeout=120_000)
    expect(page.get_by_text(re.compile("stage |mine — (failed|success)")).first).to_be_visible(timeout=300_000)
    expect(page.get_by_text(re.compile("mine — (success|failed)"))).to_be_visible(timeout=600_000)
    assert page.get_by_text("mine — success").is_visible(), page.inner_text("body")
    page.get_by_role("link", name="Evaluate", exact=True).click()
    choose(page, "Model of", "mine (experiment)")
    expect(page.get_by_test_id("stMetric")).to_have_count(4, timeout=WAIT)
    page.get_by_role("link", name="Predict", exact=True).click()
    expect(page.get_by_text("7 classes, 32 px")).to_be_visible(timeout=WAIT)
    page.get_by_role("button", name="Draw an unseen example").click()
    page.locator(".probabilities").wait_for()
    assert page.locator(".probabilities tr").count() == 7  # the workspace's model has three classes
