"""The predictor computes what evaluation computes, from a model file alone, for many threads at once."""

import hashlib
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.datasets import picture
from helpers.models import CLASSES, VOCABULARY, write_model
from helpers.predictions import scaled
from PIL import Image

from exp_tools.cli import main as cli
from exp_tools.data.images.decode import ImageFault
from exp_tools.data.images.pack import pack_images
from exp_tools.data.images.preprocess import Preprocessing
from exp_tools.data.inputs.metadata import Vocabulary, encode
from exp_tools.errors import UserError
from exp_tools.evaluation.predict import predict_logits
from exp_tools.evaluation.predictions import prediction_table
from exp_tools.evaluation.probabilities import Calibration
from exp_tools.explain.maps import attention_map, grad_cam
from exp_tools.explain.overlay import upsample
from exp_tools.models.model_file import save_model
from exp_tools.models.normalize import network_inputs
from exp_tools.models.registry import load_model
from exp_tools.serving.predictor import DISCLAIMER, SCOPE, Patient, Predictor

torch.set_num_threads(1)
CPU = torch.device("cpu")
COUNT = 12


@pytest.fixture
def files(tmp_path):
    """Pictures in several formats and shapes, one of them turned by EXIF."""
    shapes = [("jpg", 600, 450), ("png", 300, 200), ("webp", 120, 260), ("bmp", 96, 96)]
    paths = []
    for number in range(COUNT):
        ending, width, height = shapes[number % len(shapes)]
        path = tmp_path / f"image_{number}.{ending}"
        exif = Image.Exif()
        if number == 4:
            exif[0x0112] = 6
        picture(number, width, height).save(path, **({"exif": exif} if ending == "jpg" else {}))
        paths.append(path)
    return paths


def changed(path, **facts):
    """Write the model file again with other facts."""
    network, known = load_model(path)
    save_model(path, network, replace(known, **facts))


def seen_by(network, work):
    """The arguments of the network's forward passes while `work` is done."""
    seen = []
    handle = network.register_forward_pre_hook(lambda _, given: seen.append([one.clone() for one in given]))
    work()
    handle.remove()
    return seen


PREPARATIONS = [
    ("squash", {}),
    ("crop", {"colour_constancy": True}),
    ("pad", {"hair_removal": True, "clahe": True}),
]


@pytest.mark.parametrize(("resize", "wanted"), PREPARATIONS)
def test_the_network_gets_the_very_bits_that_evaluation_gives_it(tmp_path, files, resize, wanted):
    preprocessing = Preprocessing(96, resize, **wanted)
    write_model(tmp_path / "m.safetensors", "multimodal")
    changed(tmp_path / "m.safetensors", preprocessing=preprocessing._asdict())
    findings = pack_images(files, tmp_path / "images.npy", preprocessing)
    assert all(finding.usable for finding in findings)
    patients = [Patient(20.0 + row, "female" if row % 2 else None, "back") for row in range(COUNT)]
    table = pd.DataFrame([vars(patient) for patient in patients]).fillna({"sex": "unknown"})
    metadata = encode(table, Vocabulary.from_dict(VOCABULARY))
    run = {"batch_size": COUNT, "device": CPU, "metadata": metadata}

    predictor = Predictor(tmp_path / "m.safetensors")
    network = predictor.engine.network
    (theirs,) = seen_by(network, lambda: predict_logits(network, tmp_path / "images.npy", np.arange(COUNT), **run))
    (ours,) = seen_by(network, lambda: predictor.predict_many(files, patients))
    assert theirs[0].shape == (COUNT, 3, 96, 96)
    assert theirs[0].unique().numel() > 200
    for mine, evaluations in zip(ours, theirs, strict=True):
        assert torch.equal(mine, evaluations)
    singles = seen_by(network, lambda: [predictor.predict(*one) for one in zip(files, patients, strict=True)])
    assert torch.equal(torch.cat([one[0] for one in singles]), theirs[0])


@pytest.mark.parametrize("name", ["timm", "soft_attention", "multimodal", "probe"])
def test_probabilities_are_those_of_the_prediction_table(tmp_path, files, name):
    write_model(tmp_path / "m.safetensors", name)
    changed(tmp_path / "m.safetensors", calibration=scaled(3, 0.05).as_dict())  # random logits lie close together
    network, facts = load_model(tmp_path / "m.safetensors")
    pack_images(files, tmp_path / "images.npy", Preprocessing(96))
    labels = pd.DataFrame(
        {
            "image_id": [path.stem for path in files],
            "lesion_id": [path.stem for path in files],
            "group_id": [path.stem for path in files],
            "source": "own",
            "dx": "nv",
            "age": [np.nan, *range(30, 30 + COUNT - 1)],
            "sex": ["female", "male", "unknown"] * 4,
            "localization": ["back", "scalp"] * 6,
        }
    )
    metadata = encode(labels, Vocabulary.from_dict(VOCABULARY))
    network = network.to(memory_format=torch.channels_last)  # as the evaluate stage does
    logits = predict_logits(
        network, tmp_path / "images.npy", np.arange(COUNT), batch_size=8, device=CPU, metadata=metadata
    )
    table = prediction_table(labels, "test", logits, facts.classes, Calibration.from_dict(facts.calibration))
    expected = table[[f"p_{code}" for code in CLASSES]].to_numpy()
    assert np.ptp(expected, axis=0).max() > 0.01

    predictor = Predictor(tmp_path / "m.safetensors")
    patients = [
        Patient(None if np.isnan(row.age) else row.age, None if row.sex == "unknown" else row.sex, row.localization)
        for row in labels.itertuples()
    ]
    single = [predictor.predict(path, patient) for path, patient in zip(files, patients, strict=True)]
    together = predictor.predict_many(files, patients)
    for found in (single, together):
        given = np.array([list(one.probabilities.values()) for one in found])
        assert np.abs(given - expected).max() < 1e-5
        assert [one.diagnosis for one in found] == table["predicted"].to_list()


def test_many_threads_get_the_answers_that_one_gets(tmp_path, files):
    write_model(tmp_path / "m.safetensors", "soft_attention")
    predictor = Predictor(tmp_path / "m.safetensors")
    kinds = ["gradcam", "attention"]
    alone = [predictor.predict(path, explain=kinds) for path in files]
    with ThreadPoolExecutor(8) as pool:
        jobs = [(path, kinds if number % 3 else []) for number, path in enumerate(files * 6)]
        crowded = list(pool.map(lambda job: predictor.predict(job[0], explain=job[1]), jobs))
    for number, found in enumerate(crowded):
        right = alone[number % COUNT]
        assert found.as_dict() == right.as_dict()
        assert set(found.maps) == set(jobs[number][1])
        for kind in found.maps:
            np.testing.assert_array_equal(found.maps[kind], right.maps[kind])


def test_an_image_may_come_as_path_text_bytes_picture_or_array(tmp_path):
    write_model(tmp_path / "m.safetensors")
    predictor = Predictor(tmp_path / "m.safetensors")
    path = tmp_path / "image.png"
    picture(3, 130, 110).save(path)
    with Image.open(path) as image:
        forms = [path, str(path), path.read_bytes(), image.convert("RGB"), np.asarray(image.convert("RGB"))]
    found = [predictor.predict(form).as_dict() for form in forms]
    assert all(one == found[0] for one in found)
    with pytest.raises(UserError, match=r"float64 \[4, 4, 3\]; expected uint8"):
        predictor.predict(np.zeros((4, 4, 3)))
    with pytest.raises(ImageFault, match="0 bytes"):
        predictor.predict(b"")
    assert predictor.predict_many([]) == []


def test_a_prediction_says_what_its_logits_say(tmp_path, monkeypatch):
    write_model(tmp_path / "m.safetensors")
    changed(
        tmp_path / "m.safetensors",
        calibration=scaled(3, 2.0).as_dict(),
        thresholds={"melanoma": 0.25, "abstain": 0.65},
    )
    predictor = Predictor(tmp_path / "m.safetensors", top_k=2)
    rows = np.log([[0.1, 0.3, 0.6], [0.7, 0.2, 0.1]]).astype(np.float32) * 2
    monkeypatch.setattr(predictor.engine, "logits", lambda pixels, metadata: rows)
    first, second = predictor.predict_pixels(np.zeros((2, 96, 96, 3), np.uint8), [Patient(), Patient(age=40)])
    assert first.diagnosis == "nv"
    assert first.name == "Melanocytic nevus"
    assert first.malignant is False
    assert first.probabilities == pytest.approx({"bcc": 0.1, "mel": 0.3, "nv": 0.6}, abs=1e-6)
    assert [(one["code"], round(one["probability"], 5)) for one in first.top] == [("nv", 0.6), ("mel", 0.3)]
    expected = -(0.1 * math.log(0.1) + 0.3 * math.log(0.3) + 0.6 * math.log(0.6)) / math.log(3)
    assert first.entropy == pytest.approx(expected, abs=1e-6)
    assert (first.abstain, first.melanoma, first.melanoma_probability) == (True, True, pytest.approx(0.3, abs=1e-6))
    assert (second.diagnosis, second.abstain, second.melanoma, second.malignant) == ("bcc", False, False, True)
    assert first.notes == []
    assert second.notes == ["this model looks at the image alone; not used: age"]
    content = json.loads(json.dumps(first.as_dict(), allow_nan=False))
    assert content["disclaimer"] == DISCLAIMER
    assert "maps" not in content


def test_a_model_without_thresholds_or_melanoma_leaves_the_flags_open(tmp_path):
    write_model(tmp_path / "m.safetensors")
    changed(tmp_path / "m.safetensors", thresholds={}, classes=["a", "b", "c"])
    found = Predictor(tmp_path / "m.safetensors").predict(picture(1))
    assert (found.abstain, found.melanoma, found.melanoma_probability, found.malignant) == (None, None, None, None)
    assert found.name in "abc"
    assert found.description == ""


def test_metadata_change_the_prediction_and_what_is_unknown_is_said(tmp_path):
    write_model(tmp_path / "m.safetensors", "multimodal")
    predictor = Predictor(tmp_path / "m.safetensors")
    image = picture(5)
    median = predictor.predict(image, Patient(age=50, sex="male", localization="back"))
    without_age = predictor.predict(image, Patient(sex="male", localization="back"))
    old = predictor.predict(image, Patient(age=90, sex="male", localization="back"))
    unseen = predictor.predict(image, Patient(age=50, sex="male", localization="moon"))
    assert median.notes == []
    assert without_age.probabilities == median.probabilities  # 50 is the median of the vocabulary
    assert without_age.notes == ["taken as unknown: age; this model was trained with them"]
    assert old.probabilities != median.probabilities
    assert unseen.notes == ["the model never saw the localization 'moon'; it knows back"]
    assert predictor.predict(image).notes == [
        "taken as unknown: age, sex, localization; this model was trained with them"
    ]


@pytest.mark.parametrize("age", [-1, 121, float("nan"), float("inf")])
def test_an_impossible_age_is_refused(age):
    with pytest.raises(UserError, match="expected years from 0 to 120"):
        Patient(age=age)


def test_maps_are_those_of_the_explain_functions(tmp_path):
    write_model(tmp_path / "m.safetensors", "soft_attention")
    predictor = Predictor(tmp_path / "m.safetensors")
    assert predictor.explanations == ["gradcam", "attention"]
    image = picture(2, 96, 96)
    found = predictor.predict(image, explain=["gradcam", "attention"])
    network = predictor.engine.network
    inputs = network_inputs(network, torch.from_numpy(np.array(image)[None]), torch.zeros(1, 3), CPU)
    target = torch.tensor([CLASSES.index(found.diagnosis)])
    for kind, coarse in (("gradcam", grad_cam(network, inputs, target)), ("attention", attention_map(network, inputs))):
        fine = upsample(coarse, 96)[0]
        assert found.maps[kind].shape == (96, 96)
        np.testing.assert_allclose(found.maps[kind], fine / max(fine.max(), 1e-12), atol=1e-6)
    write_model(tmp_path / "plain.safetensors")
    with pytest.raises(UserError, match="has no attention map; it has gradcam"):
        Predictor(tmp_path / "plain.safetensors").predict(image, explain=["attention"])


def test_the_command_predicts_explains_and_prints_json(tmp_path, capsys):
    model, image = tmp_path / "m.safetensors", tmp_path / "image.jpg"
    write_model(model)
    picture(7, 200, 150).save(image)
    arguments = ["predict", str(image), "--model", str(model)]
    assert cli.main([*arguments, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    expected = Predictor(model).predict(image)
    assert content["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)
    assert content["scope"] == SCOPE
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    named = {"name": str(model), "architecture": "timm", "sha256": digest, "trained_on": "synthetic"}
    assert content["model"] == named
    assert cli.main([*arguments, "--json", "--sex", "unknown", "--localization", "unknown"]) == 0
    assert json.loads(capsys.readouterr().out) == content  # as if they were not given

    assert cli.main([*arguments, "--age", "61", "--explain", str(tmp_path / "map.png")]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{expected.name} ({expected.diagnosis}), {100 * expected.probability:.1f} %")
    assert "not used: age" in text
    assert "means nothing on real skin" in text
    assert f"{SCOPE}\n{DISCLAIMER}" in text
    with Image.open(tmp_path / "map.png") as drawn:
        assert (drawn.format, drawn.width) == ("PNG", 320)  # 200 pixels of it the picture
        assert drawn.height > 150

    (tmp_path / "bad.jpg").write_bytes(b"no image")
    assert cli.main(["predict", str(tmp_path / "bad.jpg"), "--model", str(model)]) == 1
    assert f"{tmp_path / 'bad.jpg'}: the file is not an image" in capsys.readouterr().err
    assert cli.main([*arguments, "--age", "400"]) == 1
    assert "expected years from 0 to 120" in capsys.readouterr().err
    assert cli.main([*arguments, "--explain", str(tmp_path / "none" / "map.png")]) == 0
    assert (tmp_path / "none" / "map.png").is_file()
    assert cli.main([*arguments, "--explain", str(tmp_path / "bad.jpg" / "map.png")]) == 1
    assert "is not a folder" in capsys.readouterr().err
