"""Bad pictures and tables have one documented answer in words, the same from `predict`, `batch`, app and API.

One case of each kind runs always, the others with the sweeps. Bad forms are in test_api_refusals.py, bad model files in
test_model_files.py.
"""

import gzip
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.bad_pictures import BOMBS, REFUSED
from helpers.datasets import picture
from helpers.models import save_tiny_model
from helpers.pictures import encoded, heic
from starlette.testclient import TestClient
from streamlit.testing.v1 import AppTest

from exp_tools.app.parts.settings import Settings
from exp_tools.app.parts.text import JOINER, plain
from exp_tools.cli import main as cli
from exp_tools.data.images.formats import ImageFault
from exp_tools.evaluation.predictions import read_predictions
from exp_tools.io import write_csv
from exp_tools.serving.api.app import create_app
from exp_tools.serving.api.problems import KINDS
from exp_tools.serving.batch import predict_batch
from exp_tools.serving.batch_inputs import batch_inputs
from exp_tools.serving.predictor import Predictor

NOT_HERE = ("camera.dng", "gigapixels.dcm")
"""What its name alone tells from a TIFF, and a file of 120 MB."""
PICTURES = {name: bad for name, bad in (BOMBS | REFUSED).items() if name not in NOT_HERE}
GOOD = encoded("JPEG")
HEADER = "image_id,dx,lesion_id,age,sex"
TABLES: dict[str, dict[str, tuple[str | bytes, str]]] = {
    "no table": {
        "empty": ("", "is empty"),
        "blank": ("\n \n", "is empty"),
        "UTF-16": (f"{HEADER}\n".encode("utf-16"), "save it as UTF-8 CSV"),
        "a picture": (GOOD, "cannot be read as a table"),
        "gzip": (gzip.compress(HEADER.encode()), "cannot be read as a table"),
        "Windows-1252": (f"{HEADER}\na,mel,süß,5,male\n".encode("cp1252"), "UTF-8"),
    },
    "header": {
        "none": ("a,mel,L1,5,male\n", "has no column image_id"),
        "alone": (HEADER + "\n", "names no image that is below"),
        "another name": (HEADER.replace("image_id", "image") + "\na,mel,L,5,male\n", "has no column image_id"),
        "a column twice": (HEADER.replace("dx", "sex") + "\na,mel,L,5,male\n", "names a column twice"),
    },
    "rows": {
        "a short row": (HEADER + "\na,mel\n", "line 2 has 2 cells"),
        "a quote that is not closed": (HEADER + '\n"a,mel,L,5,male\n', "line 2"),
        "no image that is there": (HEADER + "\nz,mel,L,5,male\n", "names no image that is below"),
        "a path": (HEADER + "\n../a,mel,L,5,male\n", "names no image that is below"),
        "a NUL": (HEADER + "\na\0,mel,L,5,male\n", "cannot be read as a table"),
    },
}


def sampled(kinds: dict[str, list[tuple[str, Any]]]) -> list:
    """The first case of each kind, and the others as sweeps."""
    return [
        pytest.param(name, case, id=name, marks=[pytest.mark.sweep] if place else [])
        for named in kinds.values()
        for place, (name, case) in enumerate(named)
    ]


def by_kind() -> dict[str, list[tuple[str, Any]]]:
    kinds: dict[str, list] = {}
    for name, (make, kind) in PICTURES.items():
        kinds.setdefault(kind, []).append((name, (make, kind)))
    return kinds


FIRST = {named[0][0]: PICTURES[named[0][0]] for named in by_kind().values()}
"""One picture of each kind of fault."""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return save_tiny_model(tmp_path_factory.mktemp("model") / "models/model.safetensors")


@pytest.fixture(scope="module")
def predictor(model) -> Predictor:
    return Predictor(model)


def said_once(capsys, start: str) -> str:
    """What a command said on standard error: one line, no traceback."""
    said = capsys.readouterr().err
    assert said.startswith(f"error: {start}"), said
    assert said.count("\n") == 1
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(("name", "case"), sampled(by_kind()))
def test_predict_refuses_a_bad_picture_in_one_line(model, tmp_path, capsys, name, case):
    (tmp_path / name).write_bytes(case[0]())
    assert cli.main(["predict", str(tmp_path / name), "--model", str(model)]) == 1
    said_once(capsys, str(tmp_path / name))


@pytest.mark.parametrize("bad", [FIRST, pytest.param(PICTURES, marks=pytest.mark.sweep)], ids=["some", "all"])
def test_batch_lists_bad_pictures_and_predicts_the_good_one(predictor, tmp_path, bad):
    (tmp_path / "images").mkdir()
    for name, (make, _) in bad.items():
        (tmp_path / "images" / name).write_bytes(make())
    (tmp_path / "images/good.jpg").write_bytes(GOOD)
    outcome = predict_batch(predictor, batch_inputs(tmp_path / "images"), tmp_path / "p.csv", threads=2)
    assert outcome.predicted == 1
    listed = pd.read_csv(tmp_path / "p.problems.csv")
    assert dict(zip(listed["value"], listed["kind"], strict=True)) == {name: kind for name, (_, kind) in bad.items()}
    assert set(listed["action"]) == {"skipped"}
    assert (listed["rule"].str.len() > 20).all()


@pytest.mark.parametrize("name", FIRST)
def test_the_api_answers_with_the_same_kind_and_words(predictor, name):
    make, kind = FIRST[name]
    answer = TestClient(create_app(predictor)).post("/predict", files={"image": (name, make())})
    body = answer.json()
    assert (answer.status_code, body["kind"]) == (KINDS[kind].status, kind)
    assert body["detail"] == str(fault_of(predictor, make))


def fault_of(predictor: Predictor, make: Callable[[], bytes]) -> ImageFault:
    with pytest.raises(ImageFault) as fault:
        predictor.prepare(make())
    return fault.value


def page(root: Path) -> AppTest:
    """The Predict page of the app."""

    def script(settings):
        from exp_tools.app import main

        main.run(settings)

    return AppTest.from_function(script, args=(Settings(str(root), str(root / "m.safetensors")),), default_timeout=120)


@pytest.fixture
def app(model, tmp_path, monkeypatch) -> AppTest:
    import streamlit

    streamlit.cache_resource.clear()
    monkeypatch.setattr("exp_tools.app.parts.model_picker.require_trained", lambda predictor: predictor)
    (tmp_path / "m.safetensors").write_bytes(model.read_bytes())
    before = sys.modules["__main__"]
    yield page(tmp_path).run()
    sys.modules["__main__"] = before


@pytest.mark.parametrize("bad", [FIRST, pytest.param(PICTURES, marks=pytest.mark.sweep)], ids=["some", "all"])
def test_the_app_says_what_is_wrong_with_each(app, predictor, bad):
    names = list(bad)
    for some in (names[:40], names[40:]):  # it shows 50
        if some:
            files = [(name, bad[name][0](), "image/jpeg") for name in some if bad[name][0]()]
            app.file_uploader[0].set_value(files).run()
            assert not app.exception
            table = app.dataframe[0].value
            assert list(table["file"]) == [name for name, _, _ in files]
            for name, result in zip(table["file"], table["result"], strict=True):
                assert result == f"not read: {fault_of(predictor, bad[name][0])}"


def test_a_file_name_is_no_markup(app):
    name = "![x](http://example.org/a.png) <b>.jpg"
    app.file_uploader[0].set_value((name, b"no picture", "image/jpeg")).run()
    assert not app.exception
    assert app.error[0].value.startswith(plain(name))
    assert "![x]" not in app.error[0].value.replace(JOINER, "").replace("\\[", "(")


@pytest.mark.parametrize(
    ("name", "case"), sampled({kind: list(named.items()) for kind, named in TABLES.items()})
)  # fmt: skip
def test_batch_refuses_a_bad_table_in_one_line(model, tmp_path, capsys, name, case):
    content, words = case
    (tmp_path / "a.jpg").write_bytes(GOOD)
    (tmp_path / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    out = tmp_path / "out/p.csv"
    assert cli.main(["batch", str(tmp_path / "t.csv"), "--model", str(model), "--out", str(out)]) == 1
    assert words in said_once(capsys, str(tmp_path / "t.csv"))
    assert not out.exists()


def test_names_that_are_formulas_are_guarded_and_read_back(predictor, tmp_path):
    names = ["=1+1", "@SUM(A1)", "-x+y", "plain"]
    (tmp_path / "images").mkdir()
    for number, name in enumerate(names):
        picture(number, 60, 45).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "images/=cmd.png").write_bytes(b"no picture")
    write_csv(tmp_path / "t.csv", pd.DataFrame({"image_id": [*names, "=cmd"], "dx": "mel", "lesion_id": "=L"}))
    predict_batch(predictor, batch_inputs(tmp_path / "t.csv", tmp_path / "images"), tmp_path / "p.csv", threads=1)
    for file in ("p.csv", "p.problems.csv"):
        cells = [cell for line in (tmp_path / file).read_text().splitlines() for cell in line.split(",")]
        assert not [cell for cell in cells if cell.lstrip('"')[:1] in ("=", "@")]
        assert not [cell for cell in cells if cell[:1] == "-" and not cell[1:2].isdigit()]
    table, _ = read_predictions(tmp_path / "p.csv")
    assert sorted(table["image_id"]) == sorted(names)
    assert set(table["lesion_id"]) == {"=L"}


# ------------------------------------------------------------------------------------------------ HEIC, from telephones


def test_a_heic_picture_is_read_everywhere(model, predictor, app, tmp_path, capsys):
    content = heic()
    expected = predictor.predict(content)
    near = predictor.predict(encoded("PNG"))
    assert expected.probabilities == pytest.approx(near.probabilities, abs=0.2)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/photo.HEIC").write_bytes(content)
    assert cli.main(["predict", str(tmp_path / "images/photo.HEIC"), "--model", str(model)]) == 0
    assert capsys.readouterr().out.startswith(f"{expected.name} ({expected.diagnosis})")
    predict_batch(predictor, batch_inputs(tmp_path / "images"), tmp_path / "p.csv", threads=1)
    assert pd.read_csv(tmp_path / "p.csv")["image_id"].tolist() == ["photo"]
    answer = TestClient(create_app(predictor)).post("/predict", files={"image": ("photo.heic", content)})
    assert answer.json()["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)
    app.file_uploader[0].set_value(("photo.heic", content, "image/heic")).run()
    assert not app.exception
    assert app.header[0].value.startswith(expected.name)


def test_without_its_reader_everyone_says_so_and_what_to_do(model, predictor, app, tmp_path, capsys, monkeypatch):
    content, words = heic(), "pip install pillow-heif, or save the picture as JPEG"
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "images").mkdir()
    for name in ("photo.heic", "without_ending"):
        (tmp_path / "images" / name).write_bytes(content)
    assert cli.main(["predict", str(tmp_path / "images/photo.heic"), "--model", str(model)]) == 1
    assert words in said_once(capsys, str(tmp_path / "images/photo.heic"))
    assert cli.main(["batch", str(tmp_path / "images"), "--model", str(model), "--out", str(tmp_path / "p.csv")]) == 1
    assert words in said_once(capsys, "none of 2 images can be used")
    (tmp_path / "images/good.jpg").write_bytes(GOOD)
    predict_batch(predictor, batch_inputs(tmp_path / "images"), tmp_path / "p.csv", threads=1)
    listed = pd.read_csv(tmp_path / "p.problems.csv")
    assert sorted(listed["value"]) == ["photo.heic", "without_ending"]
    assert listed["rule"].str.endswith(words).all()
    answer = TestClient(create_app(predictor)).post("/predict", files={"image": ("photo.heic", content)})
    assert (answer.status_code, answer.json()["kind"]) == (415, "not_an_image")
    assert words in answer.json()["detail"]
    app.file_uploader[0].set_value(("photo.heic", content, "image/heic")).run()
    assert not app.exception
    assert words in app.error[0].value


def test_the_corpus_is_as_large_as_it_says():
    assert len(PICTURES) + sum(len(named) for named in TABLES.values()) >= 70
    assert len(FIRST) == 5
