"""An export with its preprocessing says of a whole picture, in programs of others, what the predictor says."""

import ast
import functools
import hashlib
import http.server
import json
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from helpers.datasets import picture
from helpers.models import CLASSES, VOCABULARY, photograph, write_model
from helpers.project import ROOT
from PIL import Image, ImageOps

from exp_tools.cli import main as cli
from exp_tools.data.images.decode import load_image
from exp_tools.data.images.decode import square as pillows
from exp_tools.data.images.preprocess import Preprocessing
from exp_tools.errors import UserError
from exp_tools.evaluation.prediction_sets import conformity_scores
from exp_tools.evaluation.probabilities import Calibration
from exp_tools.evaluation.validation import softmax
from exp_tools.models.model_file import copy_model, read_facts
from exp_tools.models.released import released_model
from exp_tools.serving.export import whole
from exp_tools.serving.export.whole_graph import WholeGraph, square
from exp_tools.serving.predictor import Patient, Predictor

torch.set_num_threads(1)
EXAMPLES = ROOT / "docs/examples"
ORT_WEB = "onnxruntime-web@1.30.0"


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The released model's export with preprocessing, made on pictures of two formats."""
    folder = tmp_path_factory.mktemp("released")
    (folder / "pictures").mkdir()
    picture(1, 600, 450).save(folder / "pictures/a.jpg")
    picture(2, 333, 500).save(folder / "pictures/b.png")
    model, out = str(released_model()), str(folder / "model.pictures.onnx")
    said = ["export", "--with-preprocessing", "--model", model, "--images", str(folder / "pictures"), "--out", out]
    assert cli.main(said) == 0
    return Path(out)


def run(session: onnxruntime.InferenceSession, image: Image.Image) -> tuple[np.ndarray, int]:
    probabilities, decision = session.run(["probabilities", "decision"], {"image": np.asarray(image)})
    return probabilities, int(decision)


@pytest.mark.parametrize("count", [30, pytest.param(300, marks=pytest.mark.sweep)])
def test_plain_pillow_and_runtime_say_of_real_jpegs_what_the_predictor_says(released, real_data, count):
    files = sorted((real_data / "ham10000-mini").glob("HAM10000_images_part_*/*.jpg"))
    files = files[:: len(files) // count][:count]
    session, predictor = onnxruntime.InferenceSession(released), Predictor(released_model())
    apart, others = [], 0
    for file in files:
        for scaled in (True, False):  # by the JPEG's own reduced scale, and in full
            image = Image.open(file)
            ours = predictor.predict(file if scaled else image)
            if scaled:
                image.draft("RGB", (128, 128))
            probabilities, decision = run(session, ImageOps.exif_transpose(image).convert("RGB"))
            apart.append(np.abs(probabilities - list(ours.probabilities.values())).max())
            others += predictor.facts.classes[decision] != ours.diagnosis
    assert len(apart) == 2 * count
    assert max(apart) <= 0.01
    assert others == 0


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_the_square_of_the_graph_is_pillows(resize):
    generator = np.random.default_rng(0)
    tall = [
        (97, 1900),
        (97, 300),
        (200, 450),
        (347, 600),
        (348, 600),
        (97, 200),
        (224, 500),
    ]  # some are made down first
    for width, height in [(600, 450), (450, 601), (96, 96), (7, 9), (1001, 320), (224, 224), *tall]:
        image = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for size in (96, 97, 224):
            expected = np.asarray(pillows(image, size, resize)).astype(int)
            found = square(torch.from_numpy(np.array(image)), size, resize).numpy()
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() <= 1, (width, height, size)  # where a sum is near a half
            assert (found != expected).mean() < 0.005


def test_the_decision_of_the_graph_is_the_calibrations_in_ties_too():
    generator = np.random.default_rng(1)
    unequal = generator.uniform(0, 1, (4, 4)) * (1 - np.eye(4))
    tied = unequal.copy()
    tied[:, 1] = tied[:, 2]  # the classes 1 and 2 cost the same, whatever is true
    logits = generator.normal(0, 2, (300, 4)).astype(np.float32)
    for costs in (1 - np.eye(4), unequal, tied):
        calibration = Calibration(1.7, [0.1, -0.2, 0.05, 0.05], "costs", costs.tolist())
        network = torch.nn.Identity()
        network.pixel_mean, network.pixel_std = [0.5] * 3, [0.5] * 3
        graph = WholeGraph(network, 8, "squash", calibration)
        expected = calibration.probabilities(logits)
        for row, wanted in zip(logits, zip(expected, calibration.decisions(expected), strict=True), strict=True):
            graph.network.forward = lambda _, row=row: torch.from_numpy(row)[None]
            probabilities, decision = graph(torch.zeros(8, 8, 3, dtype=torch.uint8))
            assert probabilities.numpy() == pytest.approx(wanted[0], abs=1e-6)
            assert int(decision) == wanted[1]


@pytest.mark.parametrize(("name", "resize"), [("multimodal", "crop"), ("timm", "pad")])
def test_other_models_and_rules_are_exported_whole(tmp_path, name, resize):
    write_model(tmp_path / "first.safetensors", name)
    facts = read_facts(tmp_path / "first.safetensors")
    model = tmp_path / "m.safetensors"
    preprocessing = Preprocessing(96, resize)._asdict()
    copy_model(tmp_path / "first.safetensors", model, replace(facts, preprocessing=preprocessing))
    files = [tmp_path / "a.jpg", tmp_path / "b.png"]
    picture(1, 600, 450).save(files[0])
    picture(2, 120, 300).save(files[1])
    numbers = np.float32([[0.5, 1, 0], [-1.0, 0, 1]])
    parity, draft = whole.export_whole(model, tmp_path / "w.onnx", files, numbers)
    assert (parity.images, parity.changed, parity.logits) == (2, 0, None)
    assert parity.probabilities < 0.002
    assert (draft.images, draft.probabilities > 0) == (2, True)
    session, predictor = onnxruntime.InferenceSession(tmp_path / "w.onnx"), Predictor(model)
    assert {one.name for one in session.get_inputs()} == {"image"} | ({"metadata"} if name == "multimodal" else set())
    image = picture(5, 500, 280)
    given = {"image": np.asarray(image)}
    patient = Patient(65, "male", "back")
    if name == "multimodal":
        given["metadata"] = np.float32([[(65 - VOCABULARY["age_mean"]) / VOCABULARY["age_std"], 1, 0]])
    probabilities, decision = session.run(None, given)
    expected = predictor.predict(image, patient)
    assert probabilities == pytest.approx(list(expected.probabilities.values()), abs=0.002)
    assert CLASSES[int(decision)] == expected.diagnosis


def test_the_difference_of_reduced_decoding_is_measured_on_what_has_one(released, tmp_path):
    facts = json.loads(Path(f"{released}.json").read_text())
    draft = facts["decode"]["jpeg_draft"]["difference_from_full_decoding"]
    predictor = Predictor(released_model())
    file = released.parent / "pictures/a.jpg"
    full = predictor.predict(Image.open(file)).probabilities
    apart = max(abs(full[name] - value) for name, value in predictor.predict(file).probabilities.items())
    assert draft["images"] == 2
    assert draft["probabilities"] == pytest.approx(apart, abs=1e-6)
    assert apart > 1e-4


def by_the_description(facts: dict, file: Path) -> np.ndarray:
    """The input of an export by its description alone, with plain Pillow."""
    image, size = Image.open(file), facts["resize"]["image_size"]
    rule, least = facts["resize"]["rule"], facts["decode"]["jpeg_draft"]["at_least"]
    if rule == "pad":
        assert least == "image_size * short side / long side, rounded"
        least = round(size * min(image.size) / max(image.size))
    image.draft("RGB", (least, least))
    image = ImageOps.exif_transpose(image).convert("RGB")
    assert facts["resize"]["filter"] == {"name": "bicubic", "a": -0.5, "antialias": True}
    how = {"squash": Image.Image.resize, "crop": ImageOps.fit, "pad": ImageOps.pad}[rule]
    return np.asarray(how(image, (size, size), Image.Resampling.BICUBIC))


def set_scores(row: np.ndarray, told: dict) -> dict[str, float]:
    """The score of each class of one picture, as the JSON file says in words."""
    scores = {}
    for place, code in enumerate(CLASSES):
        larger = [p for k, p in enumerate(row) if p > row[place] or (p == row[place] and k < place)]
        how = told["score_of_a_class"]
        if how == "1 - probability":
            scores[code] = 1 - row[place]
            continue
        assert how.startswith("the sum of the probabilities that are larger, and half of its own; of equals the first")
        scores[code] = sum(larger) + row[place] / 2
        if "0.1 * max(0, rank - 2)" in how:
            scores[code] += 0.1 * max(0, len(larger) + 1 - 2)
    return scores


@pytest.mark.parametrize(("resize", "score"), [("squash", "lac"), ("crop", "aps"), ("pad", "raps")])
def test_the_description_is_enough_to_use_an_export(tmp_path, resize, score):
    write_model(tmp_path / "first.safetensors")
    facts = read_facts(tmp_path / "first.safetensors")
    weights = np.array([1.0, 0.3, 0.05])
    calibration = Calibration(1.3, [0.2, -0.1, -0.1], "balanced", (weights[:, None] * (1 - np.eye(3))).tolist())
    copy_model(
        tmp_path / "first.safetensors",
        tmp_path / "m.safetensors",
        replace(facts, preprocessing=Preprocessing(96, resize)._asdict(), calibration=calibration.as_dict()),
    )
    (tmp_path / "own").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(1, 600, 450).save(tmp_path / "own/a.jpg", exif=exif)
    path, out = tmp_path / "m.safetensors", tmp_path / "m.onnx"
    fits = conformity_scores([list(Predictor(path).predict(tmp_path / "own/a.jpg").probabilities.values())], score)[0]
    limits = {"bcc": fits[0] + 1e-3, "mel": fits[1] - 1e-3, "nv": None}
    sets = {"score": score, "coverage": 0.9, "needed": 9, "lesions": dict.fromkeys(CLASSES, 12), "thresholds": limits}
    copy_model(path, path, replace(read_facts(path), prediction_sets=sets))
    arguments = ["export", "--model", str(path), "--images", str(tmp_path / "own")]
    assert cli.main([*arguments, "--out", str(out)]) == 0
    told = json.loads(Path(f"{out}.json").read_text())
    assert told["steps_in_graph"] == ["normalise"]
    pixels = by_the_description(told, tmp_path / "own/a.jpg")
    assert (pixels == load_image(tmp_path / "own/a.jpg", Preprocessing(96, resize))).all()
    (logits,) = onnxruntime.InferenceSession(out).run(["logits"], {"images": pixels[None]})
    said = told["probabilities"]
    probabilities = softmax(logits / said["temperature"] + np.array(said["bias"]))[0]
    expected = Predictor(tmp_path / "m.safetensors").predict(tmp_path / "own/a.jpg")
    assert probabilities == pytest.approx(list(expected.probabilities.values()), abs=1e-5)
    assert told["decision"]["weights"] == pytest.approx(weights)
    decided = (probabilities * told["decision"]["weights"]).argmax()
    assert told["classes"][decided]["code"] == expected.diagnosis
    assert told["normalise"] == {"divide_by": 255, "mean": facts.pixel_mean, "std": facts.pixel_std}
    assert told["thresholds"] == facts.thresholds
    bounds = {code: np.inf if limit is None else limit for code, limit in told["prediction_sets"]["thresholds"].items()}
    scores = set_scores(probabilities, told["prediction_sets"])
    assert list(scores.values()) == pytest.approx(fits, abs=1e-5)
    assert [code for code in CLASSES if scores[code] <= bounds[code]] == ["bcc", "nv"]
    for file in (path, out):
        assert Predictor(file).predict(tmp_path / "own/a.jpg").prediction_set == ["bcc", "nv"]
    assert told["model"]["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    if resize == "squash":  # the same again, over the old
        first = Path(f"{out}.json").read_bytes()
        assert cli.main([*arguments, "--out", str(out)]) == 0
        assert Path(f"{out}.json").read_bytes() == first


def test_the_python_example_needs_nothing_of_ours_and_says_what_the_predictor_says(released, tmp_path):
    source = (EXAMPLES / "predict_onnx.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {
        name
        for node in names
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module])
    }
    assert imported == {"json", "sys", "numpy", "onnxruntime", "PIL"}
    assert len([line for line in source.splitlines() if line and not line.startswith(("import", "from", '"""'))]) <= 15
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(4, 600, 450).save(tmp_path / "turned.jpg", exif=exif)
    done = subprocess.run(
        [sys.executable, "-I", str(EXAMPLES / "predict_onnx.py"), str(released), str(tmp_path / "turned.jpg")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected = Predictor(released_model()).predict(tmp_path / "turned.jpg")
    *shares, name, disclaimer = done.stdout.splitlines()
    assert {line.split()[0]: float(line.split()[1]) for line in shares} == pytest.approx(
        expected.probabilities, abs=0.002
    )
    assert (name, disclaimer) == (expected.name, expected.disclaimer)


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def site(released, tmp_path_factory):
    """The browser example with what it asks for, served; skipped where npm's registry cannot be reached."""
    if shutil.which("npm") is None:
        pytest.skip("no npm on this machine")
    folder = tmp_path_factory.mktemp("site")
    fetched = subprocess.run(["npm", "pack", "--silent", ORT_WEB], cwd=folder, capture_output=True, text=True)
    if fetched.returncode:
        pytest.skip(f"npm cannot fetch {ORT_WEB}")
    (folder / "ort").mkdir()
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        for member in archive:
            inside = Path(member.name)
            if member.isfile() and inside.parent == Path("package/dist"):
                (folder / "ort" / inside.name).write_bytes(archive.extractfile(member).read())
    for file in (released, Path(f"{released}.json"), EXAMPLES / "predict_onnx.html"):
        shutil.copy(file, folder)
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *given):
        pass


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_says_in_a_browser_what_the_predictor_says(site, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(4, 600, 450).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    picture(6, 300, 200).save(tmp_path / "plain.png")
    predictor = Predictor(released_model())
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, asked, errors = browser.new_page(), [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(error))
        page.goto(f"{site}/predict_onnx.html")
        sync_api.expect(page.get_by_role("status")).to_have_text("Choose an image.", timeout=60_000)
        for name in ("turned.jpg", "plain.png"):
            page.get_by_label("Dermoscopic image").set_input_files(tmp_path / name)
            expected = predictor.predict(Image.open(tmp_path / name))
            sync_api.expect(page.get_by_role("status")).to_have_text(expected.name, timeout=60_000)
            page.wait_for_function(
                "count => document.querySelectorAll('li').length === count", arg=len(expected.probabilities)
            )
            shares = {line.split()[0]: float(line.split()[1]) for line in page.locator("li").all_inner_texts()}
            assert shares == pytest.approx(expected.probabilities, abs=0.01), name
        assert page.locator("#disclaimer").inner_text() == expected.disclaimer
        assert errors == []
        (tmp_path / "no.jpg").write_bytes(b"no picture")
        page.get_by_label("Dermoscopic image").set_input_files(tmp_path / "no.jpg")
        sync_api.expect(page.get_by_role("status")).to_contain_text("Not possible")
        browser.close()
    assert [url for url in asked if not url.startswith((site, "blob:", "data:"))] == []


def test_what_cannot_be_exported_whole_is_refused_in_words(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "first.safetensors")
    facts = read_facts(tmp_path / "first.safetensors")
    filters = Preprocessing(96, hair_removal=True, clahe=True)._asdict()
    copy_model(tmp_path / "first.safetensors", tmp_path / "m.safetensors", replace(facts, preprocessing=filters))
    (tmp_path / "own").mkdir()
    (tmp_path / "own/a.jpg").write_bytes(photograph(1))
    whole_export = ["export", "--with-preprocessing", "--model", "m.safetensors", "--images", "own"]
    assert cli.main(whole_export) == 1
    said = capsys.readouterr().err
    assert "clahe and hair_removal, which is no part of an ONNX graph" in said
    assert "prepare.clahe: false, prepare.hair_removal: false" in said
    for form in ("half", "onnx-int8"):
        assert cli.main([*whole_export, "--format", form]) == 1
        assert f"--with-preprocessing is for --format onnx, not {form}" in capsys.readouterr().err
    (tmp_path / "first.pictures.onnx.json").write_text('{"mine": 1}')
    whole_export[3] = "first.safetensors"
    assert cli.main(whole_export) == 1
    assert "first.pictures.onnx.json exists, and this command did not write it" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "first.pictures.onnx.json",
        "first.safetensors",
        "m.safetensors",
        "own",
    ]
    monkeypatch.setattr(whole, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match=r"a probability differs by .*was not written"):
        whole.export_whole(
            tmp_path / "first.safetensors", tmp_path / "x.onnx", [tmp_path / "own/a.jpg"], np.zeros((1, 3), np.float32)
        )
    assert not (tmp_path / "x.onnx").exists()


def test_our_own_commands_point_to_the_file_that_is_theirs(released):
    with pytest.raises(UserError, match=r"its own preprocessing and is for other programs: take the model file"):
        Predictor(released)
    assert re.fullmatch(r"skin-lesion-onnx \d", json.loads(Path(f"{released}.json").read_text())["format"])
