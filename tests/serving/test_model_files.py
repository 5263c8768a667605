"""Model files that are damaged, incomplete or made up: one line each, which names the file, from whatever reads it.

One case of each kind runs always, the others with the sweeps.
"""

import json
import os
import struct
from collections.abc import Callable
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.models import write_model
from safetensors import safe_open
from safetensors.torch import save_file

from exp_tools.cli import main as cli
from exp_tools.data.images.preprocess import Preprocessing
from exp_tools.data.inputs.metadata import Vocabulary
from exp_tools.errors import UserError
from exp_tools.evaluation.probabilities import Calibration
from exp_tools.models import model_header
from exp_tools.models.model_file import HEADER_KEY, ModelFacts
from exp_tools.serving.onnx_engine import facts_of
from exp_tools.serving.predictor import Predictor

GREY = np.full((96, 96, 3), 128, np.uint8)
Header = dict[str, Any]
Tensors = dict[str, torch.Tensor]


def put(path: str, value: Any) -> Callable[[Header], None]:
    """A change of the header: one value, by the keys that lead to it."""

    def change(header: Header) -> None:
        *folders, last = path.split(".")
        for folder in folders:
            header = header[folder]
        header[last] = value

    return change


def take(path: str) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        *folders, last = path.split(".")
        for folder in folders:
            header = header[folder]
        del header[last]

    return change


NAN = float("nan")


def sets(**changes) -> Header:
    """Prediction sets of the three classes."""
    known = {"score": "lac", "coverage": 0.9, "needed": 9, "lesions": {"bcc": 3, "mel": 30, "nv": 90}}
    return known | {"thresholds": {"bcc": None, "mel": 0.9, "nv": 0.4}} | changes


HEADERS: dict[str, dict[str, tuple[Callable[[Header], None], str]]] = {
    "missing": {
        "classes": (take("classes"), "no usable classes"),
        "architecture": (take("architecture"), "no usable architecture"),
        "preprocessing": (take("preprocessing"), "no usable preprocessing"),
        "the size": (take("preprocessing.image_size"), "preprocessing.image_size: Field required"),
        "the resize": (take("preprocessing.resize"), "preprocessing.resize: Field required"),
        "the normalisation": (take("pixel_mean"), "no usable pixel_mean"),
        "the source": (take("source"), "no usable source"),
        "the temperature": (take("calibration.temperature"), "no usable calibration"),
        "the calibration": (put("calibration", {}), "without calibration"),
        "the format": (take("format"), "is of format None"),
    },
    "another version": {
        "format 99": (put("format", 99), "is of format 99"),
        "a fact that is unknown": (put("colour", "red"), "is of format 2"),
        "a format of 4,000 digits": (put("format", 10**4000), "is of format 1"),
    },
    "wrong type": {
        "classes as text": (put("classes", "abc"), "no usable classes"),
        "classes as numbers": (put("classes", [1, 2, 3]), "no usable classes"),
        "knobs as a list": (put("knobs", [1]), "no usable knobs"),
        "the size as text": (put("preprocessing.image_size", "96"), "preprocessing.image_size"),
        "the size as a share": (put("preprocessing.image_size", 96.5), "preprocessing.image_size"),
        "a filter as text": (put("preprocessing.clahe", "yes"), "preprocessing.clahe"),
        "the normalisation as text": (put("pixel_std", "0.2"), "no usable pixel_std"),
        "the temperature as text": (put("calibration.temperature", "1"), "calibration"),
        "a threshold as text": (put("thresholds.melanoma", "0.5"), "thresholds.melanoma"),
        "no thresholds": (put("thresholds", None), "no usable thresholds"),
        "scores as a list": (put("training", {"validation": [1]}), "training.validation"),
        "an epoch as text": (put("training", {"best_epoch": "two"}), "training.best_epoch"),
        "versions as numbers": (put("versions", {"torch": 2}), "versions.torch"),
        "the vocabulary as a list": (put("vocabulary", []), "no usable vocabulary"),
        "the architecture as a number": (put("architecture", 5), "no usable architecture"),
    },
    "wrong value": {
        "an unknown architecture": (put("architecture", "tim"), "did you mean 'timm'"),
        "a path as architecture": (put("architecture", "../../evil"), "there is no architecture"),
        "an unknown knob": (put("knobs.dropuot", 0), "did you mean 'dropout'"),
        "a backbone that does not exist": (put("knobs.backbone", "resnet1000"), "resnet1000"),
        "a number as backbone": (put("knobs.backbone", 5), "cannot be built with the knobs"),
        "a dropout of 7": (put("knobs.dropout", 7.0), "cannot be built with the knobs"),
        "an image of 3 pixels": (put("preprocessing.image_size", 3), "preprocessing.image_size"),
        "an image of a million pixels": (put("preprocessing.image_size", 10**6), "preprocessing.image_size"),
        "an unknown resize": (put("preprocessing.resize", "stretch"), "preprocessing.resize"),
        "a filter that does not exist": (put("preprocessing.sharpen", True), "preprocessing.sharpen"),
        "a deviation of 0": (put("pixel_std", [0.0, 0.2, 0.2]), "pixel_std.0"),
        "four channels": (put("pixel_mean", [0.5] * 4), "no usable pixel_mean"),
        "a temperature of 0": (put("calibration.temperature", 0.0), "calibration"),
        "an unknown rule": (put("calibration.decide", "guess"), "calibration"),
        "a threshold of 7": (put("thresholds.abstain", 7.0), "thresholds.abstain"),
        "a class that is twice there": (put("classes", ["mel", "nv", "nv"]), "classes has a name twice"),
        "one class": (put("classes", ["mel"]), "no usable classes"),
        "a class without a name": (put("classes", ["", "mel", "nv"]), "classes.0"),
        "a class with a line end": (put("classes", ["a\nb", "mel", "nv"]), "classes.0"),
        "a class of 10,000 letters": (put("classes", ["x" * 10_000, "mel", "nv"]), "classes.0"),
    },
    "prediction sets": {
        "of an unknown score": (lambda header: header.update(prediction_sets=sets(score="lca")), "prediction_sets"),
        "of other classes": (
            lambda header: header.update(prediction_sets=sets(lesions={"a": 5})),
            "prediction_sets is not of the classes",
        ),
        "with a threshold as text": (
            lambda header: header.update(prediction_sets=sets(thresholds={"bcc": "1", "mel": 1.0, "nv": None})),
            "prediction_sets",
        ),
        "with a coverage of 90": (lambda header: header.update(prediction_sets=sets(coverage=90.0)), "prediction_sets"),
        "of nulls": (put("prediction_sets", {"score": None}), "prediction_sets has no usable score"),
    },
    "not a number": {
        "the mean": (put("pixel_mean", [NAN, 0.5, 0.5]), "pixel_mean.0"),
        "the deviation": (put("pixel_std", [float("inf"), 0.5, 0.5]), "pixel_std.0"),
        "the temperature": (put("calibration.temperature", NAN), "calibration"),
        "a bias": (put("calibration.bias", [NAN, 0.0, 0.0]), "calibration"),
        "a cost": (put("calibration.costs", [[0.0, NAN, 1.0]] * 3), "calibration"),
        "a threshold": (put("thresholds.melanoma", NAN), "thresholds.melanoma"),
    },
    "does not fit": {
        "another number of classes": (
            lambda header: header.update(classes=["a", "b"], calibration=calibration(2)),
            "do not fit the architecture",
        ),
        "a calibration of two classes": (lambda header: header.update(calibration=calibration(2)), "not of 3 classes"),
        "another backbone": (put("knobs.backbone", "test_vit"), "do not fit the architecture"),
        "another architecture": (
            lambda header: header.update(architecture="efficientnet_v2", knobs={}),
            "do not fit the architecture",
        ),
    },
}


def calibration(count: int) -> Header:
    return {"temperature": 1.0, "bias": [0.0] * count, "decide": "frequent", "costs": [[1.0] * count] * count}


TENSORS: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "none": (lambda tensors: tensors.clear(), "do not fit"),
    "one is missing": (lambda tensors: tensors.pop("classifier.bias"), "classifier.bias"),
    "one too many": (lambda tensors: tensors.update(more=torch.zeros(3)), "more"),
    "another shape": (lambda tensors: tensors.update({"classifier.bias": torch.zeros(5)}), "classifier.bias"),
    "NaN": (lambda tensors: tensors["classifier.bias"].fill_(NAN), "NaN or infinite"),
    "infinite": (lambda tensors: tensors["classifier.bias"].fill_(float("inf")), "NaN or infinite"),
}


def header_of(text: str | None) -> Callable[[Path], None]:
    """A file whose header entry is this text; None: without the entry."""
    metadata = {} if text is None else {HEADER_KEY: text}
    return lambda path: save_file({"a": torch.zeros(2)}, path, metadata=metadata)


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: path.unlink(), "there is no model file"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "there is no model file"),
    "empty": (lambda path: path.write_bytes(b""), "damaged or no safetensors file"),
    "text": (lambda path: path.write_text("404 Not Found"), "damaged or no safetensors file"),
    "the first half": (lambda path: os.truncate(path, path.stat().st_size // 2), "damaged or no safetensors file"),
    "without its last byte": (lambda path: os.truncate(path, path.stat().st_size - 1), "damaged or no safetensors"),
    "a header of 2^60 bytes": (lambda path: path.write_bytes(struct.pack("<Q", 2**60) + bytes(100)), "damaged or no"),
    "a header that is no JSON": (lambda path: path.write_bytes(struct.pack("<Q", 3) + b"{,}"), "damaged or no"),
    "a pickle": (lambda path: torch.save({"a": 1}, path), "damaged or no safetensors file"),
    "weights alone": (header_of(None), "holds weights only"),
    "facts that are no JSON": (header_of("{"), "not valid JSON"),
    "a list of facts": (header_of("[]"), "holds list and no named facts"),
    "facts 100,000 lists deep": (header_of("[" * 100_000), "not valid JSON"),
    "no facts": (header_of("{}"), "is of format None"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("good") / "m.safetensors"
    write_model(path)
    return path


@pytest.fixture
def model(good, tmp_path) -> Path:
    """A copy of a model file that works."""
    (tmp_path / "m.safetensors").write_bytes(good.read_bytes())
    return tmp_path / "m.safetensors"


def content_of(path: Path) -> tuple[Header, Tensors]:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()[HEADER_KEY]), tensors


def refused(path: Path, words: str) -> None:
    with pytest.raises(UserError) as error:
        Predictor(path).predict(GREY)
    said = str(error.value)
    assert words in said
    assert "\n" not in said
    assert len(said) < 900 + len(str(path))
    assert path.name in said or words in ("without calibration", "there is no architecture") or "did you mean" in said


def sampled(kinds: dict[str, dict]) -> list:
    """The first case of each kind, and the others as sweeps."""
    return [
        pytest.param(*case, id=f"{kind}: {name}", marks=[pytest.mark.sweep] if place else [])
        for kind, named in kinds.items()
        for place, (name, case) in enumerate(named.items())
    ]


@pytest.mark.parametrize(("change", "words"), sampled(HEADERS))
def test_a_header_that_is_wrong_is_one_line(model, change, words):
    header, tensors = content_of(model)
    change(header)
    save_file(tensors, model, metadata={HEADER_KEY: json.dumps(header)})
    refused(model, words)


@pytest.mark.parametrize(("change", "words"), sampled({"weights": TENSORS}))
def test_weights_that_are_wrong_are_one_line(model, change, words):
    header, tensors = content_of(model)
    change(tensors)
    save_file(tensors, model, metadata={HEADER_KEY: json.dumps(header)})
    refused(model, words)


@pytest.mark.parametrize(("spoil", "words"), sampled({"file": FILES}))
def test_a_file_that_is_no_model_is_one_line(model, spoil, words):
    spoil(model)
    refused(model, words)


@pytest.mark.parametrize(("change", "words"), [
    (put("vocabulary", None), "which the network needs"),
    (put("vocabulary.sex", ["female", "male", "other", "unknown"]), "sexes is 3, its words are 4"),
    (put("vocabulary.age_std", 0.0), "vocabulary.age_std"),
    (take("vocabulary.age_mean"), "vocabulary.age_mean"),
])  # fmt: skip
def test_a_vocabulary_that_is_not_the_networks_is_one_line(tmp_path, change, words):
    path = tmp_path / "m.safetensors"
    write_model(path, "multimodal")
    header, tensors = content_of(path)
    before = deepcopy(header)
    change(header)
    save_file(tensors, path, metadata={HEADER_KEY: json.dumps(header)})
    refused(path, words)
    assert before != header


@pytest.mark.parametrize(("change", "words"), sampled({kind: HEADERS[kind] for kind in ("wrong type", "missing")}))
def test_the_header_of_an_export_is_checked_too(model, change, words):
    if words == "without calibration":
        pytest.skip("said by the predictor")
    header, _ = content_of(model)
    change(header)
    with pytest.raises(UserError) as error:
        facts_of({HEADER_KEY: json.dumps(header)}, Path("m.onnx"))
    assert words in str(error.value)
    assert str(error.value).endswith("export it again")


def test_the_command_says_it_in_one_line(model, tmp_path, capsys):
    header, tensors = content_of(model)
    header["classes"] = "abc"
    save_file(tensors, model, metadata={HEADER_KEY: json.dumps(header)})
    assert cli.main(["predict", str(tmp_path / "a.png"), "--model", str(model)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {model}: its header has no usable classes")
    assert said.count("\n") == 1


def test_the_normalisation_of_the_file_is_used(model):
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    plain = Predictor(model).predict(pixels)
    header, tensors = content_of(model)
    before = header["pixel_mean"], header["pixel_std"]
    header["pixel_mean"], header["pixel_std"] = [0.1, 0.2, 0.3], [0.9, 0.8, 0.7]
    save_file(tensors, model, metadata={HEADER_KEY: json.dumps(header)})
    other = Predictor(model)
    assert other.engine.network.pixel_mean == (0.1, 0.2, 0.3)
    assert other.predict(pixels).probabilities != pytest.approx(plain.probabilities, abs=1e-6)
    other.engine.network.pixel_mean, other.engine.network.pixel_std = map(tuple, before)
    assert other.predict(pixels).probabilities == pytest.approx(plain.probabilities, abs=1e-9)


def test_the_checked_fields_are_those_that_are_written():
    assert set(model_header.Header.model_fields) == {entry.name for entry in fields(ModelFacts)}
    assert set(model_header.PreprocessingFields.model_fields) == set(Preprocessing._fields)
    assert set(model_header.CalibrationFields.model_fields) == {entry.name for entry in fields(Calibration)}
    assert set(model_header.VocabularyFields.model_fields) == {entry.name for entry in fields(Vocabulary)}


def test_the_corpus_is_as_large_as_it_says():
    assert sum(len(named) for named in HEADERS.values()) + len(TENSORS) + len(FILES) >= 70
