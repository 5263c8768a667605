"""The web app without a browser: what it lists, fetches, queues and refuses, and its pages as Streamlit runs them."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.datasets import ROOT, picture
from helpers.models import CLASSES, write_model

pytest.importorskip("streamlit")

from streamlit.testing.v1 import AppTest

from exp_tools import revisions
from exp_tools.app import launch, main
from exp_tools.app.pages import evaluate, experiments
from exp_tools.app.parts import charts, experiment_queue, images
from exp_tools.app.parts.model_picker import KEY
from exp_tools.app.parts.settings import Settings
from exp_tools.cli import main as cli
from exp_tools.errors import UserError
from exp_tools.models.model_file import copy_model, read_facts
from exp_tools.params import load_params
from exp_tools.project import CARD, CURVES, DATA_METRICS, EVALUATE_METRICS, MODEL, RELEASED, REPORT, SUMS, TRAIN_METRICS
from exp_tools.revisions import RELEASED_VERSION
from exp_tools.serving.predictor import DISCLAIMER, NO_MAPS, Patient, Predictor
from exp_tools.serving.public_url import parse_public_url
from exp_tools.serving.set_words import NO_SETS

torch.set_num_threads(1)


def image_file(number: int = 0, form: str = "PNG") -> bytes:
    buffer = BytesIO()
    picture(number, 60, 45).save(buffer, format=form)
    return buffer.getvalue()


def git(folder: Path, *command: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    done = subprocess.run(["git", *identity, *command], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(autouse=True)
def as_it_was():
    """Streamlit's test runner puts its page in the place of `__main__`, which processes started later would import."""
    before = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = before


@pytest.fixture
def settings(tmp_path) -> Settings:
    """A folder with parameters, recipes and a trained model; no Git, no results."""
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/slow.yaml").write_text("# slow and long\ntrain:\n  epochs: 40\n  lr: 1.0e-4\n")
    write_model(tmp_path / MODEL)
    return Settings(str(tmp_path))


def write_summary(folder: Path, score: float) -> None:
    (folder / "metrics").mkdir(exist_ok=True)
    names = ("balanced_accuracy", "accuracy", "macro_f1", "macro_auc")
    (folder / EVALUATE_METRICS).write_text(json.dumps(dict.fromkeys(names, score)))


@pytest.fixture(autouse=True)
def nothing_kept():
    """What the app keeps for all visitors is of one test only."""
    import streamlit

    streamlit.cache_data.clear()
    streamlit.cache_resource.clear()


def page(settings: Settings, title: str, monkeypatch) -> AppTest:
    """The app as somebody sees it who opens this page."""
    monkeypatch.setattr(main, "PAGES", {title: main.PAGES[title], **main.PAGES})

    def script(settings):
        from exp_tools.app import main

        main.run(settings)

    app = AppTest.from_function(script, args=(settings,), default_timeout=60).run()
    assert not app.exception
    assert app.title[0].value == title
    return app


def bars(app: AppTest) -> str:
    """The HTML of the probabilities."""
    (found,) = [html.proto.body for html in app.html if "class='probabilities'" in html.proto.body]
    return found


# ------------------------------------------------------------------------------------------------- how it is started


def test_the_command_listens_on_this_machine_only_and_trains_nothing_unless_told(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(launch, "start", lambda settings, **where: started.append((settings, where)))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["app"]) == 0
    more = ["--data-root", str(tmp_path), "--data-root", ".", "--public-url", "https://example.org"]
    assert cli.main(["app", "--host", "0.0.0.0", "--port", "80", "--allow-training", "--model", "a.onnx", *more]) == 0
    assert cli.main(["app", "--data-root", "nowhere"]) == 1
    (plain, here), (open_, there) = started
    assert here == {"host": "127.0.0.1", "port": 8501, "public_url": None}
    assert (plain.root, plain.model, plain.allow_training) == (str(tmp_path), None, False)
    assert there == {"host": "0.0.0.0", "port": 80, "public_url": "https://example.org"}
    assert (open_.model, open_.allow_training) == (str(tmp_path / "a.onnx"), True)
    assert (plain.data_roots, open_.data_roots) == ((), (str(tmp_path), str(tmp_path)))
    assert Settings.from_text(open_.to_text()) == open_


def test_streamlit_is_told_to_tell_nobody_and_to_hide_tracebacks():
    given = launch.options("127.0.0.1", 8501)
    assert (
        given.items()
        >= {
            "server.address": "127.0.0.1",
            "server.port": 8501,
            "browser.gatherUsageStats": False,
            "client.showErrorDetails": "none",
            "client.showErrorLinks": "false",
            "server.enableXsrfProtection": True,
            "server.maxUploadSize": 20,
        }.items()
    )
    assert given["server.allowedHosts"] == ["127.0.0.1", "localhost", "::1"]
    assert "server.allowedHosts" not in launch.options("192.0.2.1", 8501)


def test_streamlit_knows_the_address_under_which_a_proxy_offers_it():
    given = launch.options("0.0.0.0", 8501, parse_public_url("https://example.org/lesions/"))
    assert given["server.allowedHosts"] == ["127.0.0.1", "localhost", "::1", "example.org"]
    assert (given["server.baseUrlPath"], given["server.corsAllowedOrigins"]) == ("/lesions", ["https://example.org"])
    assert (given["browser.serverAddress"], given["browser.serverPort"]) == ("example.org", 443)


def test_a_port_that_is_taken_is_said(monkeypatch, tmp_path, capsys):
    import socket

    monkeypatch.chdir(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["app", "--port", str(port)]) == 1
    assert f"cannot listen on 127.0.0.1, port {port}" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------- bars and pictures


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0.0 %"),
        (0.0001, "< 0.1 %"),
        (0.1234, "12.3 %"),
        (0.9994, "99.9 %"),
        (0.9999, "> 99.9 %"),
        (1.0, "100.0 %"),
    ],
)
def test_a_percentage_never_rounds_to_certainty(share, text):
    assert charts.percent(share) == text


def test_bars_are_ranked_say_malignant_in_words_and_escape_names(tmp_path):
    write_model(tmp_path / "m.safetensors")
    prediction = Predictor(tmp_path / "m.safetensors").predict(image_file())
    shares = {"nv": 0.2, "mel": 0.5, "<b>mine</b>": 0.3}
    html = charts.probability_bars(
        type(prediction)(**{**prediction.__dict__, "probabilities": shares, "diagnosis": "mel"})
    )
    table = html[html.index("<table") :]
    assert (
        table.index("Melanoma<small>malignant") < table.index("&lt;b&gt;mine") < table.index("Melanocytic nevus</th>")
    )
    assert "width:50.00%" in table
    assert table.count("bar malignant") == 1
    assert "prefers-reduced-motion" in html


def test_a_map_that_shows_no_place_is_said(settings, monkeypatch):
    monkeypatch.setattr("exp_tools.serving.engines.grad_cam", lambda *_: np.full((1, 7, 7), 0.3, np.float32))
    app = page(settings, "Predict", monkeypatch)
    app.file_uploader[0].set_value(("mole.png", image_file(3), "image/png")).run()
    assert "Grad-CAM is the same everywhere in this image, so it shows no place." in [
        text.value for text in app.caption
    ]
    assert f"Prediction set: {NO_SETS}." in [text.value for text in app.markdown]


def test_charts_with_two_equal_axes_are_square():
    specs = [charts.confusion(CLASSES, "#000"), charts.reliability(), charts.curves("x", "y", "x", "y", diagonal=True)]
    assert all(spec["width"] == spec["height"] for spec in specs)


def test_versions_of_one_name_have_curves_of_their_own(repository, monkeypatch):
    folder = repository.folder
    git(folder, "branch", "fast")  # as the experiment is called
    drawn = []
    monkeypatch.setattr(charts, "draw", lambda table, spec, *, alt: drawn.append(table))
    curve = folder / TRAIN_METRICS / "plots/metrics/val/balanced_accuracy.tsv"
    curve.parent.mkdir(parents=True)
    curve.write_text("step\tbalanced_accuracy\n1\t0.5\n2\t0.6\n")
    monkeypatch.setattr(experiments, "read_files", lambda root, wanted: [curve.read_text()] * len(wanted))
    monkeypatch.setattr(experiments, "_table", lambda settings, versions: None)
    app = page(repository, "Experiments", monkeypatch)
    assert not app.exception
    assert list(drawn[0].groupby("experiment")["epoch"].count()) == [2, 2, 2, 2]


def test_streamlit_finds_no_pages_next_to_its_script():
    """It would run them as scripts: an empty page for the first visitor of another address than "/"."""
    assert launch.SCRIPT.is_file()
    assert not (launch.SCRIPT.parent / "pages").exists()


def test_about_and_evaluate_need_no_model_file(settings, monkeypatch):
    (settings.folder / MODEL).unlink()
    (settings.folder / CARD).write_text("# The card\n\n|  | bcc |\n|---|---|\n| bcc | 1 |\n")
    write_summary(settings.folder, 0.5)
    (settings.folder / REPORT).write_text(json.dumps({"test": report(0.8), "external": {}}))
    app = page(settings, "About", monkeypatch)
    assert any("# The card" in text.value and "| true " in text.value for text in app.markdown)
    assert any("Shown without the model file: there is no model" in text.value for text in app.caption)
    app = page(settings, "Evaluate", monkeypatch)
    assert app.metric[0].value == "0.800"


def test_a_model_without_maps_says_why(settings, monkeypatch):
    monkeypatch.setattr("exp_tools.serving.engines.positions", lambda *_: 1)
    sets = {"score": "lac", "coverage": 0.9, "needed": 9, "lesions": {"bcc": 4, "mel": 60, "nv": 300}}
    sets |= {"thresholds": {"bcc": None, "mel": 1.0, "nv": 0.0}}
    model = Path(settings.root) / MODEL
    copy_model(model, model, replace(read_facts(model), prediction_sets=sets))
    app = page(settings, "Predict", monkeypatch)
    app.file_uploader[0].set_value(("mole.png", image_file(3), "image/png")).run()
    assert not app.exception
    said = "Prediction set: melanoma cannot be excluded: the set holds Basal cell carcinoma, Melanoma;"
    assert any(text.value.startswith(said) for text in app.markdown)
    assert f"Heat maps: {NO_MAPS}." in [text.value for text in app.caption]


def test_examples_are_the_same_every_time_each_of_another_class():
    names = [images.draw_example(number)[0] for number in range(3)]
    assert names == ["drawn_1_akiec.png", "drawn_2_bcc.png", "drawn_3_bkl.png"]
    assert images.draw_example(1)[1] == images.draw_example(1)[1] != images.draw_example(8)[1]


# ------------------------------------------------------------------------------------------- versions of the project


@pytest.fixture
def repository(settings) -> Settings:
    """The folder as a repository with a branch, and an experiment on it."""
    folder = settings.folder
    git(folder, "init", "-q", "-b", "main")
    write_summary(folder, 0.5)
    git(folder, "add", "params.yaml", "recipes", "metrics")
    git(folder, "commit", "-qm", "start")
    base = git(folder, "rev-parse", "HEAD")
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["train"]["lr"] = 0.5
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    write_summary(folder, 0.75)
    git(folder, "commit", "-qam", "experiment")
    git(folder, "update-ref", f"refs/exps/{base[:2]}/{base[2:]}/fast", "HEAD")
    git(folder, "update-ref", "refs/exps/exec/EXEC_HEAD", "HEAD")
    git(folder, "reset", "-q", "--hard", base)
    write_summary(folder, 0.25)
    return settings


def release(root: Path) -> None:
    """Put a released model into a project."""
    write_model(root / RELEASED / "small.safetensors", source="ham10000")
    digest = hashlib.sha256((root / RELEASED / "small.safetensors").read_bytes()).hexdigest()
    (root / RELEASED / SUMS).write_text(f"{digest}  small.safetensors\n")
    (root / RELEASED / CARD.name).write_text("# The card of what was released\n")


@pytest.mark.parametrize("workspace", ["drawn", "none", "photographs"])
def test_the_first_upload_meets_a_model_that_has_seen_skin(settings, monkeypatch, workspace):
    root = Path(settings.root)
    release(root)
    if workspace == "none":
        (root / MODEL).unlink()
    elif workspace == "photographs":
        write_model(root / MODEL, source="ph2")
    app = page(settings, "Predict", monkeypatch)
    box = next(box for box in app.selectbox if box.label == "Model of")
    assert len(box.options) == 2
    shown = "ph2" if workspace == "photographs" else "ham10000"
    assert any(f"trained on **{shown}**" in text.value for text in app.markdown)
    box.set_value("released with this project (trained on photographs)").run()
    assert any("trained on **ham10000**" in text.value for text in app.markdown)


def test_about_shows_the_card_of_the_released_model_and_evaluate_offers_it_last(settings, monkeypatch):
    root = Path(settings.root)
    release(root)
    (root / CARD).write_text("# The card of the workspace\n")
    app = page(settings, "About", monkeypatch)
    assert any("The card of what was released" in text.value for text in app.markdown)
    next(box for box in app.selectbox if box.label == "Model of").set_value("workspace (files as they are now)").run()
    assert any("The card of the workspace" in text.value for text in app.markdown)
    app = page(settings, "Evaluate", monkeypatch)
    box = next(box for box in app.selectbox if box.label == "Model of")
    assert box.options == ["workspace (files as they are now)", RELEASED_VERSION.label]
    box.set_value(RELEASED_VERSION.label).run()
    assert not app.exception
    assert "Evaluate it above" in app.info[-1].value


def test_looking_at_evaluate_does_not_change_the_model_that_predict_shows(settings, monkeypatch):
    release(Path(settings.root))
    for chosen in (None, RELEASED_VERSION.label):
        monkeypatch.setattr(main, "PAGES", {"Evaluate": main.PAGES["Evaluate"], **main.PAGES})

        def script(settings):
            from exp_tools.app import main

            main.run(settings)

        app = AppTest.from_function(script, args=(settings,), default_timeout=60)
        if chosen:
            app.session_state[KEY] = chosen
        app.run()
        assert not app.exception
        assert app.title[0].value == "Evaluate"
        assert (KEY in app.session_state) == (chosen is not None)
        assert chosen is None or app.session_state[KEY] == chosen


def test_a_released_model_of_other_bytes_is_refused(settings, monkeypatch):
    root = Path(settings.root)
    release(root)
    (root / RELEASED / SUMS).write_text(f"{'0' * 64}  small.safetensors\n")
    app = page(settings, "Predict", monkeypatch)
    assert any("is not the file that was released" in text.value for text in app.error)


def test_versions_are_the_workspace_branches_and_experiments(repository):
    found = revisions.list_versions(repository.folder)
    assert [(one.kind, one.name) for one in found] == [
        ("workspace", "workspace"),
        ("branch", "main"),
        ("experiment", "fast"),
    ]
    assert found[2].base == found[1].commit == git(repository.folder, "rev-parse", "main")
    texts = revisions.read_files(repository.folder, [(one.commit, EVALUATE_METRICS) for one in found])
    assert [json.loads(text)["accuracy"] for text in texts] == [0.25, 0.5, 0.75]
    assert revisions.read_files(
        repository.folder, [("", "no"), (found[1].commit, "no"), ("f" * 40, "params.yaml")]
    ) == [
        None,
        None,
        None,
    ]


def test_outside_git_there_is_the_workspace(settings):
    assert revisions.list_versions(settings.folder) == [revisions.WORKSPACE]


def test_experiments_of_one_name_are_told_apart(repository):
    git(repository.folder, "update-ref", f"refs/exps/{'ab'}/{'c' * 38}/fast", "main")
    names = [one.name for one in revisions.list_versions(repository.folder) if one.kind == "experiment"]
    assert len(set(names)) == 2
    assert all(name.startswith("fast ") and len(name) == 12 for name in names)


def test_a_model_of_an_experiment_comes_from_dvc_once_and_what_is_gone_is_said(repository):
    folder, cache = repository.folder, repository.folder / "cache"
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}

    def dvc(*command):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=folder, env=environment, check=True)

    dvc("init", "-q")
    dvc("add", "-q", MODEL)
    git(folder, "add", ".dvc", "models/.gitignore", f"{MODEL}.dvc")
    git(folder, "commit", "-qm", "model")
    committed = revisions.list_versions(folder)[1]
    weights = (folder / MODEL).read_bytes()
    (folder / MODEL).write_bytes(b"something else")

    kept = revisions.fetch_model(folder, committed, MODEL, cache)
    assert kept.read_bytes() == weights
    assert len(kept.stem) == 32
    assert revisions.fetch_bytes(folder, committed, MODEL) == weights
    before = kept.stat().st_mtime_ns
    assert revisions.fetch_model(folder, committed, MODEL, cache) == kept
    assert kept.stat().st_mtime_ns == before
    assert revisions.fetch_model(folder, revisions.WORKSPACE, MODEL, cache) == folder / MODEL

    kept.unlink()
    for path in (folder / ".dvc/cache/files").rglob("*"):
        if path.is_file():
            path.unlink()
    with pytest.raises(UserError, match="neither in DVC's cache nor in its remote"):
        revisions.fetch_model(folder, committed, MODEL, cache)
    assert list(cache.iterdir()) == []


# --------------------------------------------------------------------------------------------------------- the pages


@pytest.mark.parametrize("title", ["Predict", "Experiments", "Evaluate", "About"])
def test_the_disclaimer_is_on_every_page_and_synthetic_data_are_called_so(settings, monkeypatch, title):
    write_summary(settings.folder, 0.25)
    app = page(settings, title, monkeypatch)
    texts = [warning.value for warning in app.warning]
    assert texts[0] == DISCLAIMER
    assert "synthetic" in " ".join(texts[1:]).lower()


def test_a_prediction_is_the_predictors_own(settings, monkeypatch):
    app = page(settings, "Predict", monkeypatch)
    app.file_uploader[0].set_value(("mole.png", image_file(3), "image/png")).run()
    assert not app.exception
    expected = Predictor(settings.folder / MODEL).predict(image_file(3))
    assert app.header[0].value == f"{expected.name}: {charts.percent(expected.probability)}"
    table = bars(app)
    assert all(charts.percent(share) in table for share in expected.probabilities.values())
    assert "Flagged for melanoma" in app.error[0].value  # the threshold is 0: everything is flagged
    assert any("Too uncertain" in warning.value for warning in app.warning)
    assert [button.label for button in app.download_button] == ["Download result (JSON)", "Download picture (PNG)"]


def test_of_many_files_a_broken_one_is_said_and_the_others_are_predicted(settings, monkeypatch):
    app = page(settings, "Predict", monkeypatch)
    files = [("a.png", image_file(1)), ("broken.png", b"no picture"), ("c.png", image_file(2))]
    app.file_uploader[0].set_value([(name, data, "image/png") for name, data in files]).run()
    assert not app.exception
    table = app.dataframe[0].value
    assert list(table["file"]) == ["a.png", "broken.png", "c.png"]
    assert table["result"][1].startswith("not read: the file is not an image")
    predictor = Predictor(settings.folder / MODEL)
    for row, number in ((0, 1), (2, 2)):
        assert table["probability"][row] == pytest.approx(predictor.predict(image_file(number)).probability, abs=1e-6)
    close = next(box for box in app.selectbox if box.label == "Look closely at")
    close.set_value(1).run()
    assert not app.exception
    assert "broken.png: the file is not an image" in app.error[0].value


def test_metadata_are_asked_for_by_a_model_that_uses_them_and_only_then(settings, monkeypatch):
    assert len(page(settings, "Predict", monkeypatch).number_input) == 0
    write_model(settings.folder / MODEL, "multimodal")
    app = page(settings, "Predict", monkeypatch)
    app.file_uploader[0].set_value(("mole.png", image_file(3), "image/png")).run()
    predictor = Predictor(settings.folder / MODEL)
    unknown = predictor.predict(image_file(3))
    app.number_input[0].set_value(85).run()
    next(box for box in app.selectbox if box.label == "Sex").set_value("male").run()
    assert not app.exception
    known = predictor.predict(image_file(3), Patient(85, "male"))
    assert known.probability != pytest.approx(unknown.probability, abs=1e-6)
    widths = [f"width:{100 * share:.2f}%" for share in known.probabilities.values()]
    assert all(width in bars(app) for width in widths)


def test_an_untrained_or_missing_model_is_not_shown(settings, monkeypatch):
    write_model(settings.folder / MODEL, trained=False)
    app = page(settings, "Predict", monkeypatch)
    assert "no record of training" in app.error[0].value
    assert len(app.file_uploader) == 0
    (settings.folder / MODEL).unlink()
    assert "there is no model model.safetensors yet" in page(settings, "Predict", monkeypatch).error[0].value


def test_the_model_of_real_data_is_not_called_synthetic(settings, monkeypatch):
    write_model(settings.folder / MODEL, source="ham10000")
    app = page(settings, "Predict", monkeypatch)
    assert [warning.value for warning in app.warning] == [DISCLAIMER]
    assert any("trained on **ham10000**" in text.value for text in app.markdown)
    assert "Draw an unseen example" not in [button.label for button in app.button]


def test_the_table_of_experiments_has_scores_and_what_each_changed(repository, monkeypatch):
    app = page(repository, "Experiments", monkeypatch)
    table = app.dataframe[0].value.set_index("experiment")
    assert dict(table["balanced accuracy"]) == {"workspace": 0.25, "main": 0.5, "fast": 0.75}
    assert dict(table["changed"]) == {"workspace": "", "main": "", "fast": "train.lr=0.5"}
    assert "without `--allow-training`" in app.info[-1].value
    assert len(app.text_input) == 0


def test_changes_between_parameters_are_found_at_any_depth():
    base = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert experiments.changes(base, {"a": {"b": 1, "c": {"d": 5}}, "e": 3, "f": None}) == "a.c.d=5, f=None"


def report(metric: float) -> dict:
    """A report in the form of `build.score_set`, where every score is `metric`."""
    from exp_tools.evaluation.metrics.catalogue import HEADLINE

    bounds = {"low": metric - 0.1, "high": metric + 0.1, "small": True}
    row = dict.fromkeys(("sensitivity", "specificity", "precision", "f1", "auc"), metric)
    melanoma = dict.fromkeys(("auc", "sensitivity_at_90_specificity", "specificity_at_90_sensitivity"), metric)
    return {
        "images": 30,
        "lesions": 20,
        "metrics": dict.fromkeys(HEADLINE, metric),
        "intervals": dict.fromkeys(HEADLINE, bounds),
        "lesion_level": {"metrics": dict.fromkeys(HEADLINE, metric), "intervals": dict.fromkeys(HEADLINE, bounds)},
        "per_class": {
            code: row | {"support": 10, "lesions": 5, "intervals": {"sensitivity": bounds}} for code in CLASSES
        },
        "melanoma": melanoma
        | {
            "threshold": None,
            "melanomas": 10,
            "images": 30,
            "small": False,
            "intervals": dict.fromkeys(melanoma, bounds),
        },
        "subgroups": [
            {"attribute": "sex", "value": "male", "images": 9, "lesions": 8, "small": True, "accuracy": None}
            | {"balanced_accuracy": None, "intervals": {"balanced_accuracy": {"low": None, "high": None}}}
        ],
    }


def test_evaluate_shows_the_report_of_the_chosen_set_and_says_what_is_missing(settings, monkeypatch):
    assert "dvc repro evaluate" in page(settings, "Evaluate", monkeypatch).info[-1].value
    write_summary(settings.folder, 0.5)
    content = {"test": report(0.8) | {"baseline": {"balanced_accuracy": 0.46}}, "external": {"ph2": report(0.6)}}
    del content["test"]["metrics"]["mcc"]  # the report of a version that did not know it
    (settings.folder / REPORT).write_text(json.dumps(content))
    curves = settings.folder / CURVES
    curves.mkdir(parents=True)
    (curves / "confusion.csv").write_text("actual,predicted\nmel,mel\nmel,nv\nnv,nv\n")
    app = page(settings, "Evaluate", monkeypatch)
    assert [(one.value, one.delta) for one in app.metric] == [("0.800", "0.700 to 0.900")] * 4
    every, classes, melanoma, subgroups = (table.value for table in app.dataframe)
    assert list(every["value"])[-2:] == ["0.800", "0.460"]
    assert list(classes["class"]) == CLASSES
    assert list(classes["few lesions"]) == ["few"] * 3
    assert list(melanoma["value"]) == ["0.800"] * 3
    assert list(subgroups["95 %"]) == ["–"]
    assert any("`exp-tools app --cases` shows" in info.value for info in app.info)
    assert not any("mistakes.png" in info.value for info in app.info)
    own = page(replace(settings, cases=True), "Evaluate", monkeypatch)
    assert any("mistakes.png is not here" in info.value for info in own.info)
    app = page(settings, "Evaluate", monkeypatch)
    next(box for box in app.selectbox if box.label == "Images").set_value("external set ph2").run()
    assert not app.exception
    assert app.metric[0].value == "0.600"


def test_classes_in_curves_are_text_and_what_is_missing_is_no_number():
    assert evaluate._read_curve("actual,predicted\n01,NA\n").to_numpy().tolist() == [["01", "NA"]]
    scores = evaluate._read_curve("class,recall,precision\n1,0.5,\n")
    assert scores["class"].tolist() == ["1"]
    assert scores["precision"].isna().all()
    assert evaluate._read_curve("coverage,accuracy\n0.5,\n")["coverage"].tolist() == [0.5]


def test_about_has_the_card_the_limits_the_classes_and_the_data(settings, monkeypatch):
    (settings.folder / CARD).write_text("# A card of its own")
    (settings.folder / "metrics").mkdir()
    data = {"images": 1400, "lesions": 1083, "source": {"synthetic": 1400}, "classes": {"nv": 937}}
    (settings.folder / DATA_METRICS).write_text(json.dumps(data))
    app = page(settings, "About", monkeypatch)
    texts = " ".join(text.value for text in app.markdown)
    assert "# A card of its own" in texts
    assert "to the computer that runs this app" in texts
    assert "to\n  the disk" in texts
    assert "1,400 images of 1,083 lesions" in texts
    assert list(app.dataframe[0].value["malignant"]) == ["yes", "yes", "no"]


def test_a_model_file_of_ones_own_is_shown_and_the_projects_reports_are_not_its(settings, monkeypatch, tmp_path):
    own = tmp_path / "own.safetensors"
    write_model(own, source="ham10000")
    given = Settings(settings.root, model=str(own))
    (settings.folder / CARD).write_text("# The project's card")
    app = page(given, "About", monkeypatch)
    assert len(app.selectbox) == 0
    assert not any("The project's card" in text.value for text in app.markdown)
    assert any("trained on **ham10000**" in text.value for text in app.markdown)


# -------------------------------------------------------------------------------------------------- new experiments


def test_a_choice_of_parameters_becomes_words_for_dvc(settings):
    chosen = experiment_queue.chosen_words(settings.folder, None, {"train.seed": 3, "model.name": "emas"})
    assert chosen == ["-S", "train.seed=3", "-S", "model.name=emas"]
    chosen = experiment_queue.chosen_words(settings.folder, "slow", {"train.lr": 0.01})
    assert chosen == ["-S", "train.epochs=40", "-S", "train.lr=0.01"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.epochs": 0}, "train.epochs is 0"),
        ({"train.lr": -1}, "train.lr is -1"),
        ({"model.name": "emass"}, r"did you mean 'emas'\?"),
        ({"train.epohcs": 3}, r"did you mean 'epochs'\?"),
        ({"train.lr.x": 3}, "lr is not a section"),
        ({"model.timm.backbone": "a b; rm -rf"}, "no word of `dvc exp run` can hold"),
    ],
)
def test_a_choice_that_cannot_be_is_refused_before_anything_runs(settings, changes, message):
    with pytest.raises(UserError, match=message):
        experiment_queue.chosen_words(settings.folder, None, changes)


def test_other_parameters_are_lines_of_key_and_value():
    text = "train.batch_size = 16\n\n data.dir=null\nsplit.fractions=[0.6, 0.2, 0.2]\n"
    assert experiment_queue.parse_changes(text) == {
        "train.batch_size": 16,
        "data.dir": None,
        "split.fractions": [0.6, 0.2, 0.2],
    }
    for line in ("train.lr", "--force=1", "train lr=1", "train.x=[1"):
        with pytest.raises(UserError):
            experiment_queue.parse_changes(line)


STATUS = """Task     Name      Created       Status
84e0397  one       09:25 AM      Running
5d412aa            Nov 20, 2026  Queued
1a2b3c4  my-three  09:25 AM      Failed

Worker status: 1 active, 0 idle
"""


def test_the_queue_is_read_from_dvcs_table(settings, monkeypatch):
    monkeypatch.setattr(experiment_queue, "_dvc", lambda root, *command: STATUS)
    assert experiment_queue.tasks(settings.folder) == [
        experiment_queue.Task("84e0397", "one", "Running"),
        experiment_queue.Task("5d412aa", "", "Queued"),
        experiment_queue.Task("1a2b3c4", "my-three", "Failed"),
    ]


def test_progress_is_the_stage_of_the_log_and_the_epochs_of_its_folder(settings):
    one = experiment_queue.Task("84e0397", "one", "Running")
    assert experiment_queue.progress(settings.folder, one, TRAIN_METRICS) == experiment_queue.Progress("", 0, 0, "")
    work = settings.folder / ".dvc/tmp/exps/run/84e03974b5"
    work.mkdir(parents=True)
    (work.parent / "5d412aa826").mkdir()
    (work.parent / "5d412aa826/5d412aa826.out").write_text("Running stage 'evaluate':\n")
    log = "Stage 'split' is cached\nRunning stage 'train':\ntraining timm"
    (work / "84e03974b5.out").write_text(log)
    assert experiment_queue.progress(settings.folder, one, TRAIN_METRICS) == experiment_queue.Progress(
        "train", 0, 0, log
    )
    (work / "84e03974b5.run").write_text(json.dumps({"name": "one", "root_dir": str(settings.folder)}))
    curve = settings.folder / TRAIN_METRICS / "plots/metrics/val/loss.tsv"
    curve.parent.mkdir(parents=True)
    curve.write_text("step\tloss\n1\t0.9\n2\t0.7\n")
    epochs = load_params(settings.folder / "params.yaml").train.epochs
    assert experiment_queue.progress(settings.folder, one, TRAIN_METRICS) == experiment_queue.Progress(
        "train", 2, epochs, log
    )


@pytest.mark.skipif(shutil.which("nice") is None, reason="a system without priorities that a command sets")
def test_the_worker_is_niced_and_what_is_asked_of_dvc_is_not(tmp_path):
    (tmp_path / "dvc.py").write_text("import os, sys\nopen(sys.argv[1], 'w').write(str(os.nice(0)))\nprint('said')\n")
    own = os.nice(0)
    assert experiment_queue._dvc(tmp_path, "status") == "said\n"
    assert experiment_queue._dvc(tmp_path, "start", worker=True) == ""
    assert int((tmp_path / "status").read_text()) == own
    assert int((tmp_path / "start").read_text()) == min(19, own + int(experiment_queue.NICENESS))


def test_the_form_queues_what_was_chosen_and_starts_one_worker(repository, monkeypatch):
    commands = []

    def dvc(root, *command, worker=False):
        commands.append(command)
        return {"exp": "Queueing …\nQueued experiment 'mine' for future execution.", "queue": STATUS}[command[0]]

    monkeypatch.setattr(experiment_queue, "_dvc", dvc)
    allowed = Settings(repository.root, allow_training=True)
    app = page(allowed, "Experiments", monkeypatch)
    assert any("**one** — running" in text.value for text in app.markdown)
    app.text_input[0].set_value("mine")
    next(box for box in app.number_input if box.label == "Epochs").set_value(5)
    app.text_area[0].set_value("train.batch_size=8")
    submit = next(button for button in app.button if button.label == "Queue experiment")
    submit.click().run()
    assert not app.exception
    assert "Queued experiment 'mine'" in app.toast[0].value
    assert any("**mine** — queued" in text.value for text in app.markdown)  # DVC does not list it yet
    queued = ("exp", "run", "--queue", "--name", "mine", "-S", "train.epochs=5", "-S", "train.batch_size=8")
    assert commands.index(queued) < commands.index(("queue", "start", "--jobs", "1"))

    commands.clear()
    app.text_area[0].set_value("train.batch_size=0")
    next(button for button in app.button if button.label == "Queue experiment").click().run()
    assert "train.batch_size is 0" in app.error[0].value
    app.text_area[0].set_value("")
    app.text_input[0].set_value("../x")
    next(button for button in app.button if button.label == "Queue experiment").click().run()
    assert "the name '../x' will not do" in app.error[0].value
    assert not any(command[0] == "exp" for command in commands)
