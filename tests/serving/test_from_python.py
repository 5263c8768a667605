"""The Python of docs/serving.md runs as written, and a model and an image may be named by text."""

import os
import re
import subprocess
import sys

import pytest
from helpers.models import photograph, save_tiny_model
from helpers.project import ROOT

from exp_tools import Patient, Predictor
from exp_tools.errors import UserError
from exp_tools.taxonomy import DIAGNOSES

SECTION = (ROOT / "docs/serving.md").read_text(encoding="utf-8").partition("## From Python")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"^```python\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)


def test_the_examples_run_as_written(tmp_path):
    for seed, name in enumerate(("lesion.jpg", "other.jpg")):
        (tmp_path / name).write_bytes(photograph(seed))
    script = "\n".join(BLOCKS)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    predicted, confidence, description, first, second, notes, shape = done.stdout.splitlines()
    name, code = re.fullmatch(r"Predicted: (.+) \((\w+)\)", predicted).groups()
    assert DIAGNOSES[code].name == name
    assert re.fullmatch(r"Probability: \d+\.\d\d%", confidence)
    assert description == f"Description: {DIAGNOSES[code].description}"
    assert first.split()[0] == code
    assert second.count("'probability'") == 2
    assert "looks at the image alone" in notes
    assert shape == "(224, 224)"


def test_the_first_example_is_six_lines():
    lines = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert len(lines) == 6


def test_a_model_and_an_image_may_be_named_by_text(tmp_path):
    model = save_tiny_model(tmp_path / "m.safetensors")
    (tmp_path / "a.jpg").write_bytes(photograph(1))
    by_text = Predictor(str(model)).predict(str(tmp_path / "a.jpg"), Patient(age=50))
    by_path = Predictor(model).predict(tmp_path / "a.jpg", Patient(age=50))
    assert by_text.as_dict() == by_path.as_dict()
    assert by_text.as_dict().keys() >= {"diagnosis", "probability", "description", "notes", "disclaimer"}
    assert Predictor(str(model)).path == model
    with pytest.raises(UserError, match=r"there is no model file no/such\.safetensors"):
        Predictor("no/such.safetensors")


def test_the_documentation_names_every_key_of_the_result(tmp_path):
    model = save_tiny_model(tmp_path / "m.safetensors")
    result = Predictor(model).predict(photograph(1)).as_dict()
    named = set(re.findall(r"`(\w+)`", "\n".join(line for line in SECTION.splitlines() if line.startswith("|"))))
    assert named >= set(result)
