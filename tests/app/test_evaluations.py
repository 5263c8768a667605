"""Evaluations made by the app: the pipeline's own figures, what the files hold, and what is refused."""

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from io import BytesIO

import pytest
from helpers.datasets import ROOT, picture
from helpers.models import write_model

pytest.importorskip("streamlit")

from exp_tools.app.parts import evaluation_job, evaluations
from exp_tools.app.parts.evaluation_job import OTHER_SPLIT, TEST, UNCHECKED, Request
from exp_tools.app.parts.settings import Settings
from exp_tools.errors import UserError
from exp_tools.evaluation.plots.write import PHOTOGRAPHS
from exp_tools.evaluation.standalone.page import evaluation_page
from exp_tools.models.model_file import copy_model, read_facts
from exp_tools.project import MODEL, REPORT


def test_the_test_split_gets_the_pipelines_own_scores_card_and_page(ran_project, tmp_path):
    root = ran_project.folder
    stored = json.loads((root / REPORT).read_text())
    request = Request(str(root), str(root / MODEL), "workspace", TEST, stored=stored)
    evaluation_job.save(request, tmp_path)
    command = [sys.executable, "-m", evaluation_job.__name__, str(tmp_path)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "done"
    found, results = json.loads((tmp_path / "results/report.json").read_text()), tmp_path / "results"
    for part in ("images", "lesions", "metrics", "intervals", "confusion", "per_class", "melanoma", "subgroups"):
        assert found[part] == stored["test"][part], part
    assert json.loads((results / "about.json").read_text())["notes"] == []
    assert (results / "MODEL_CARD.md").read_text().splitlines()[0] == (root / "MODEL_CARD.md").read_text().splitlines()[
        0
    ]
    figures = {path.stem for path in (results / "figures").iterdir()}
    assert "confusion" in figures
    assert not figures & set(PHOTOGRAPHS)  # nobody said that this app may show them
    html = (results / "report.html").read_text()
    assert html.count("data:image/png;base64,") >= 6
    assert not re.search(r"(?:src|href)='(?!data:)|https?://|<script", html)


def test_an_ensemble_of_folds_has_no_test_split(tmp_path):
    """All of its members together have trained on every image."""
    write_model(tmp_path / "one.safetensors")
    facts = read_facts(tmp_path / "one.safetensors")
    folds = replace(facts, training={"ensemble_of": "folds", "class_shares": [0.3, 0.3, 0.4]})
    copy_model(tmp_path / "one.safetensors", tmp_path / "folds.safetensors", folds)
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    request = Request(str(tmp_path), str(tmp_path / "folds.safetensors"), "my folds", TEST)
    with pytest.raises(UserError, match="the members of my folds have trained on every image"):
        evaluation_job.evaluate(request, tmp_path / "out", lambda step, share: None)


@pytest.fixture
def project(tmp_path):
    """A project with a model of drawn images, and a labelled folder of pictures."""
    root = tmp_path / "project"
    root.mkdir()
    shutil.copyfile(ROOT / "params.yaml", root / "params.yaml")
    write_model(root / MODEL)
    for code in ("bcc", "mel", "nv"):
        for number in range(4):
            path = tmp_path / "data/set" / code / f"{code}_{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(10 * len(code) + number, 60, 45).save(path)
    return root


def wait(one: evaluations.Evaluation) -> dict:
    for _ in range(600):
        if one.status["state"] != "running":
            return one.status
        time.sleep(0.2)
    raise AssertionError(one.status)


def test_a_labelled_folder_is_evaluated_beside_the_app_one_at_a_time(project, tmp_path):
    every = evaluations.Evaluations()
    settings = Settings(str(project), data_roots=(str(tmp_path / "data"),))
    assert evaluations.sets(settings) == [str(tmp_path / "data"), str(tmp_path / "data/set")]
    request = Request(
        str(project), str(project / MODEL), "workspace", str(tmp_path / "data/set"), "folder", pictures=True
    )
    first = every.start(request)
    with pytest.raises(UserError, match="another evaluation is running"):
        every.start(request)
    assert wait(first)["state"] == "done"
    assert first.read("report.json")["images"] == 12
    assert first.read("about.json")["notes"] == [UNCHECKED]
    with zipfile.ZipFile(BytesIO(first.archive())) as file:
        assert "figures/mistakes.png" in file.namelist()
    stopped = every.start(request)
    stopped.stop()
    assert wait(stopped) == {"state": "failed", "step": "it was stopped", "share": 0}
    running = every.start(request)
    assert first.folder.is_dir()
    every.end()
    assert running.process.returncode == -signal.SIGKILL
    assert [one.folder for one in every.all if one.folder.exists()] == []


def test_two_visitors_who_ask_at_once_start_one(tmp_path, monkeypatch):
    started = []

    class Process:
        def poll(self):
            return 0 if self.ended else None

        def __init__(self, *_, **__):
            self.ended = False
            started.append(self)

    monkeypatch.setattr(evaluations.subprocess, "Popen", Process)
    monkeypatch.setattr(evaluation_job, "save", lambda *_: time.sleep(0.2))
    every, ends = evaluations.Evaluations(), []

    def visit():
        try:
            every.start(Request(str(tmp_path), "m", "w", "x"))
        except UserError as error:
            ends.append(str(error))

    visitors = [threading.Thread(target=visit) for _ in range(2)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert len(started) == len(ends) == 1
    started[0].ended = True
    every.end()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "model.onnx"}, "is an export"),
        ({"chosen": "{top}/nothing"}, "there is no folder"),
        ({"chosen": "{top}/data", "source": "ham10000"}, "HAM10000_metadata"),
    ],
)
def test_what_cannot_be_evaluated_is_said_in_the_status(project, tmp_path, change, words):
    request = {"root": str(project), "model": str(project / MODEL), "label": "w", "source": "folder"}
    request["chosen"] = str(tmp_path / "data/set")
    request |= {key: value.replace("{top}", str(tmp_path)) for key, value in change.items()}
    evaluation_job.save(Request(**request), tmp_path / "job")
    evaluation_job.main(tmp_path / "job")
    status = json.loads((tmp_path / "job/status.json").read_text())
    assert status["state"] == "failed"
    assert words in status["step"]


def test_text_of_others_is_text_on_the_page_of_a_report(project, tmp_path):
    from exp_tools.models.model_file import read_facts

    bounds = {"low": 0.1, "high": 0.9}
    scores = dict.fromkeys(("sensitivity", "specificity", "precision", "auc"), 0.5)
    row = scores | {"support": 1, "lesions": 1, "intervals": {"sensitivity": bounds}}
    from exp_tools.evaluation.metrics.catalogue import HEADLINE

    report = {"images": 1, "lesions": 1, "metrics": dict.fromkeys(HEADLINE, 0.5), "melanoma": None, "subgroups": []}
    report |= {"intervals": dict.fromkeys(HEADLINE, bounds), "per_class": {"<b>mine": row}}
    text = evaluation_page(
        "<img src=x>", read_facts(project / MODEL), report, tmp_path, checksum="0", notes=[OTHER_SPLIT, "<i>"]
    )
    for raw in ("<b>mine", "<img src=x>", "<i>"):
        assert raw not in text
    assert "synthetic images" in text
