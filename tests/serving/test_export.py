"""An export computes what its model computes, says so in figures, and is refused where it does not."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from helpers.datasets import picture
from helpers.models import CLASSES, photograph, write_judging_model, write_model
from PIL import Image

from exp_tools.cli import main as cli
from exp_tools.data.labels.table import LABEL_COLUMNS
from exp_tools.errors import UserError
from exp_tools.evaluation.validation import softmax
from exp_tools.io import file_digest
from exp_tools.models.model_file import read_facts, save_model
from exp_tools.models.normalize import network_inputs
from exp_tools.models.registry import load_model
from exp_tools.serving.export import half
from exp_tools.serving.export import onnx as export
from exp_tools.serving.export.int8 import Examples, quantise
from exp_tools.serving.export.parity import without_ood
from exp_tools.serving.export.sidecar import sidecar_of, write_sidecar
from exp_tools.serving.predictor import CANNOT_TELL, Patient, Predictor

torch.set_num_threads(1)
CPU = torch.device("cpu")
NOBODY = np.zeros((0, 3), np.float32)


def squares(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 96, 96, 3), dtype=np.uint8)


def eager(model, pixels, metadata):
    network, _ = load_model(model)
    with torch.inference_mode():
        inputs = network_inputs(network, torch.from_numpy(pixels), torch.from_numpy(metadata), CPU)
        return network(*inputs).numpy()


@pytest.fixture(scope="module", params=["timm", "soft_attention", "multimodal", "probe"])
def exported(request, tmp_path_factory):
    """A model of each kind and its export, made once: (model, onnx file, parity)."""
    folder = tmp_path_factory.mktemp(request.param)
    write_model(folder / "m.safetensors", request.param)
    metadata = np.array([[0.5, 1, 0], [-1.0, 2, 1], [0.0, 0, 0]], np.float32)
    return (
        folder / "m.safetensors",
        folder / "m.onnx",
        export.export_onnx(folder / "m.safetensors", folder / "m.onnx", squares(3), metadata),
    )


def test_the_graph_takes_bytes_of_any_batch_and_gives_the_logits(exported):
    model, file, parity = exported
    session = onnxruntime.InferenceSession(file)
    shapes = {one.name: (one.type, one.shape[1:]) for one in session.get_inputs()}
    assert shapes["images"] == ("tensor(uint8)", [96, 96, 3])
    assert ("metadata" in shapes) == (read_facts(model).vocabulary is not None)
    for count in (1, 2, 7):
        pixels = squares(count, seed=count)
        metadata = np.tile(np.float32([[0.3, 1, 1]]), (count, 1))
        given = {"images": pixels} | ({"metadata": metadata} if "metadata" in shapes else {})
        (logits,) = session.run(["logits"], given)
        expected = eager(model, pixels, metadata)
        assert logits.shape == (count, len(CLASSES))
        assert np.ptp(expected) > 0.01
        assert np.abs(logits - expected).max() < 1e-5
    assert parity.images == 3
    assert 0 < parity.logits < 1e-5
    assert parity.changed == 0


def test_the_file_says_what_the_model_file_says_and_how_it_was_made(exported):
    model, file, parity = exported
    facts, known = Predictor(file).facts, read_facts(model)
    assert facts.training["export"] == {"precision": "fp32", **parity._asdict()}
    assert replace(facts, training=known.training) == known
    assert onnx.checker.check_model(file, full_check=True) is None


def test_the_predictor_says_of_the_export_what_it_says_of_the_model(exported, tmp_path):
    model, file, _ = exported
    ours, theirs = Predictor(model), Predictor(file)
    picture(3, 300, 200).save(tmp_path / "image.jpg")
    patient = Patient(70, "male", "scalp")
    one, other = (predictor.predict(tmp_path / "image.jpg", patient) for predictor in (ours, theirs))
    assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)
    assert (one.diagnosis, one.notes, one.melanoma) == (other.diagnosis, other.notes, other.melanoma)
    with pytest.raises(UserError, match="has no gradcam map; it has none"):
        theirs.predict(tmp_path / "image.jpg", explain=["gradcam"])


def test_an_export_tells_foreign_pictures_as_the_model_does_or_says_that_it_cannot(tmp_path):
    model, file = tmp_path / "m.safetensors", tmp_path / "m.onnx"
    write_judging_model(model)
    export.export_onnx(model, file, squares(2), np.zeros((2, 3), np.float32))
    ours, theirs = Predictor(model), Predictor(file)
    for seed in range(4):
        one, other = (predictor.predict(photograph(seed)) for predictor in (ours, theirs))
        assert other.unlike_score == pytest.approx(one.unlike_score, rel=1e-3)
        assert (other.unlike_training, other.unlike_why) == (one.unlike_training, one.unlike_why)
    write_sidecar(file, None)
    told = json.loads(sidecar_of(file).read_text())["unlike_training"]
    assert told["told"] is True
    assert told["limit"] == read_facts(model).ood["limit"]
    facts = without_ood(theirs.facts)
    export.add_facts(file, tmp_path / "silent.onnx", facts)
    write_sidecar(tmp_path / "silent.onnx", None)
    told = json.loads(sidecar_of(tmp_path / "silent.onnx").read_text())["unlike_training"]
    assert told["told"] is False
    assert "no detector" in told["how"]
    silent = Predictor(tmp_path / "silent.onnx").predict(photograph(0))
    assert (silent.unlike_training, silent.unlike_why) == (None, CANNOT_TELL)
    export.add_facts(file, tmp_path / "torn.onnx", read_facts(model))
    with pytest.raises(UserError, match="lacks the numbers for it"):
        Predictor(tmp_path / "torn.onnx")


def test_an_export_has_the_same_bytes_again(tmp_path):
    write_model(tmp_path / "m.safetensors")
    files = [tmp_path / "one.onnx", tmp_path / "other.onnx"]
    for file in files:
        export.export_onnx(tmp_path / "m.safetensors", file, squares(2), np.zeros((2, 3), np.float32))
    assert files[0].read_bytes() == files[1].read_bytes()


def test_an_export_that_says_something_else_is_not_written(tmp_path, monkeypatch):
    write_model(tmp_path / "m.safetensors")

    class Shifted(export.Graph):
        def forward(self, images, metadata=None):
            return super().forward(images, metadata) * 1.1

    right = export._eager
    monkeypatch.setattr(export, "Graph", Shifted)
    monkeypatch.setattr(export, "_eager", lambda *given: right(*given) / 1.1)
    with pytest.raises(UserError, match=r"a probability differs by .*m\.onnx was not written"):
        export.export_onnx(tmp_path / "m.safetensors", tmp_path / "m.onnx", squares(2), np.zeros((2, 3), np.float32))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.safetensors"]


def test_what_is_no_export_is_refused_in_words(tmp_path):
    write_model(tmp_path / "m.safetensors")
    with pytest.raises(UserError, match="no image to compare"):
        export.export_onnx(tmp_path / "m.safetensors", tmp_path / "m.onnx", squares(0), NOBODY)
    with pytest.raises(UserError, match=r"called something\.onnx"):
        export.export_onnx(tmp_path / "m.safetensors", tmp_path / "m.bin", squares(1), np.zeros((1, 3), np.float32))
    with pytest.raises(UserError, match="there is no model file"):
        Predictor(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not onnx at all")
    with pytest.raises(UserError, match="damaged or no ONNX file"):
        Predictor(tmp_path / "bad.onnx")
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    foreign = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(UserError, match="not an export of this project"):
        Predictor(tmp_path / "foreign.onnx")
    foreign.metadata_props.add(key="exp_tools", value='{"format": 99}')
    onnx.save(foreign, tmp_path / "newer.onnx")
    with pytest.raises(UserError, match="format 99, this version reads format 2"):
        Predictor(tmp_path / "newer.onnx")


def colours(count: int, seed: int) -> Examples:
    """Noisy squares in one colour per class."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    bright = np.eye(3)[labels][:, None, None] * 120 + 60
    pixels = np.clip(bright + generator.normal(0, 25, (count, 96, 96, 3)), 0, 255).astype(np.uint8)
    return Examples(pixels, np.zeros((count, 3), np.float32), labels)


def fit_classifier(model, examples: Examples) -> None:
    """Give the model a last layer that tells the colours apart, by least squares."""
    network, facts = load_model(model)
    inputs = network_inputs(network, torch.from_numpy(examples.pixels), torch.zeros(1, 3), CPU)
    with torch.inference_mode():
        features = network.feature_map(*inputs).mean(dim=(2, 3))
        wanted = 6 * torch.eye(3)[torch.from_numpy(examples.labels)]
        ones = torch.ones(len(features), 1)
        solved = torch.linalg.lstsq(torch.cat([features, ones], dim=1), wanted, driver="gelsd").solution
        network.classifier.weight.copy_(solved[:-1].T)
        network.classifier.bias.copy_(solved[-1])
    save_model(model, network, facts)


@pytest.fixture(scope="module")
def telling(tmp_path_factory):
    """A model that knows the colours, and its export."""
    folder = tmp_path_factory.mktemp("colours")
    write_model(folder / "m.safetensors")
    fit_classifier(folder / "m.safetensors", colours(48, seed=0))
    some = colours(6, seed=1)
    export.export_onnx(folder / "m.safetensors", folder / "m.onnx", some.pixels, some.metadata)
    return folder


def test_int8_keeps_the_score_and_states_it(telling):
    check = colours(30, seed=2)
    found = quantise(telling / "m.onnx", telling / "m.int8.onnx", colours(24, seed=3), check)
    assert found.images == 30
    assert found.before == 1.0
    assert found.before - found.after <= 0.01
    assert found.bytes_after < 0.5 * found.bytes_before
    predictor = Predictor(telling / "m.int8.onnx")
    logits = predictor.engine.logits(check.pixels, check.metadata)
    assert (logits.argmax(axis=1) == check.labels).mean() == found.after
    apart = np.abs(softmax(logits) - softmax(eager(telling / "m.safetensors", check.pixels, check.metadata))).max()
    assert 0 < apart < 0.2
    told = predictor.facts.training["export"]
    assert told == {"precision": "int8", "calibration_images": 24, **found._asdict()}
    initializers = onnx.load(telling / "m.int8.onnx").graph.initializer
    weights = [one.data_type for one in initializers if np.prod(one.dims) >= 1000]
    assert set(weights) == {onnx.TensorProto.INT8}


def test_int8_that_loses_more_than_a_point_is_refused_with_the_figure(telling):
    """Ranges that dark images show cut off all that is bright."""
    dark = colours(9, seed=4)
    dark = dark._replace(pixels=(dark.pixels // 40).astype(np.uint8))
    with pytest.raises(UserError, match=r"int8 loses \d+\.\d points .*\(1\.000 to 0\.\d+ on 30 test images"):
        quantise(telling / "m.onnx", telling / "worse.onnx", dark, colours(30, seed=2))
    assert not (telling / "worse.onnx").exists()
    with pytest.raises(UserError, match="there are none"):
        quantise(telling / "m.onnx", telling / "worse.onnx", Examples(squares(0), NOBODY, np.zeros(0, int)), dark)


@pytest.fixture
def project(tmp_path, telling, monkeypatch):
    """A folder with prepared images, labels and splits, and the model that was made from them."""
    examples = colours(60, seed=5)
    ids = [f"image_{number}" for number in range(60)]
    split = np.repeat(["train", "val", "test"], 20)
    labels = pd.DataFrame(dict.fromkeys(LABEL_COLUMNS, ""), index=range(60))
    labels = labels.assign(image_id=ids, lesion_id=ids, group_id=ids, dx=np.array(CLASSES)[examples.labels], age=40.0)
    (tmp_path / "data/prepared").mkdir(parents=True)
    labels.to_csv(tmp_path / "data/prepared/labels.csv", index=False)
    splits = labels[["image_id", "group_id", "dx"]].assign(split=split, fold=0)
    splits.to_csv(tmp_path / "data/splits.csv", index=False)
    np.save(tmp_path / "data/prepared/images.npy", examples.pixels)
    digests = {
        "md5_labels": file_digest(tmp_path / "data/prepared/labels.csv"),
        "md5_splits": file_digest(tmp_path / "data/splits.csv"),
    }
    network, facts = load_model(telling / "m.safetensors")
    (tmp_path / "models").mkdir()
    save_model(tmp_path / "models/model.safetensors", network, replace(facts, training=digests))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_takes_the_test_images_of_the_project(project, capsys):
    assert cli.main(["export"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("models/model.onnx: on 20 images the largest difference from the model is ")
    assert text.endswith(" in a probability; 0 get another diagnosis\n")
    assert cli.main(["export", "--format", "onnx-int8"]) == 0
    text = capsys.readouterr().out
    assert "balanced accuracy 1.0000 in fp32, " in text
    assert " on 20 test images" in text
    assert "ranges from 20 validation images" in text
    told = Predictor(project / "models/model.int8.onnx").facts.training
    assert told["export"]["images"] == 20
    assert told["md5_splits"]


def test_half_is_a_model_file_that_says_how_it_was_made(project, capsys):
    assert cli.main(["export", "--format", "half"]) == 0
    assert capsys.readouterr().out.startswith("models/model.half.safetensors: on 20 images the largest difference from")
    made = project / "models/model.half.safetensors"
    told = Predictor(made).facts.training["export"]
    assert (told["precision"], told["images"], told["changed"]) == ("fp16", 20, 0)
    first = made.read_bytes()
    assert cli.main(["export", "--format", "half"]) == 0
    assert made.read_bytes() == first
    mine = project / "mine.safetensors"
    shutil.copy(project / "models/model.safetensors", mine)
    assert cli.main(["export", "--format", "half", "--out", "mine.safetensors"]) == 1
    assert "this command did not write it" in capsys.readouterr().err
    assert cli.main(["export", "--format", "half", "--out", "mine.pt"]) == 1
    assert "an export is called something.safetensors, not mine.pt" in capsys.readouterr().err
    assert mine.read_bytes() == (project / "models/model.safetensors").read_bytes()


def test_half_is_refused_where_it_says_something_else(project, monkeypatch):
    monkeypatch.setattr(half, "TOLERANCE", 0.0)
    with pytest.raises(
        UserError, match=r"the export says something else than .*: a probability differs by .*not written"
    ):
        half.export_half(
            project / "models/model.safetensors", project / "h.safetensors", squares(2), np.zeros((2, 3), np.float32)
        )
    assert not (project / "h.safetensors").exists()


def test_the_command_refuses_other_data_and_takes_a_folder_instead(project, capsys):
    with (project / "data/splits.csv").open("a") as file:
        file.write("\n")
    assert cli.main(["export"]) == 1
    assert "trained on other data" in capsys.readouterr().err
    (project / "own").mkdir()
    assert cli.main(["export", "--images", "own"]) == 1
    assert "there is no image below own" in capsys.readouterr().err
    for number in range(3):
        Image.fromarray(colours(3, seed=6).pixels[number]).save(project / f"own/{number}.png")
    assert cli.main(["export", "--images", "own", "--out", "here.onnx"]) == 0
    assert "here.onnx: on 3 images" in capsys.readouterr().out
    assert cli.main(["export", "--images", "own", "--format", "onnx-int8"]) == 1
    assert "8 bits need the labelled images" in capsys.readouterr().err


def test_without_the_packages_the_command_says_what_to_install(tmp_path, monkeypatch):
    write_model(tmp_path / "m.safetensors")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[onnx\]'"):
        Predictor(tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[onnx\]'"):
        export.export_onnx(tmp_path / "m.safetensors", tmp_path / "m.onnx", squares(1), np.zeros((1, 3), np.float32))
