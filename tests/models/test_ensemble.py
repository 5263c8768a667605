"""An ensemble is the mean of its members' calibrated probabilities, whatever they are."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from helpers.models import CLASSES, write_model
from safetensors import safe_open
from safetensors.torch import save_file

from exp_tools.errors import UserError
from exp_tools.evaluation.probabilities import Calibration
from exp_tools.evaluation.validation import softmax
from exp_tools.explain.maps import attention_map, grad_cam, has_attention, methods_of, positions
from exp_tools.models.architectures._ensemble import Ensemble
from exp_tools.models.model_file import HEADER_KEY, read_facts, save_model
from exp_tools.models.normalize import network_inputs
from exp_tools.models.registry import ENSEMBLE, list_models, load_model
from exp_tools.serving.predictor import Patient, Predictor

CPU = torch.device("cpu")
SCALE = {"pixel_mean": [0.5, 0.5, 0.5], "pixel_std": [0.5, 0.5, 0.5]}
TEMPERATURES, BIASES = [0.8, 1.5], [[0.1, -0.1, 0.0], [0.0, 0.5, -0.5]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two members of other architectures, and the file of both: one takes metadata, one normalises otherwise."""
    folder = tmp_path_factory.mktemp("ensemble")
    write_model(folder / "image.safetensors", "soft_attention")
    write_model(folder / "patient.safetensors", "multimodal")
    image, patient = (load_model(folder / f"{name}.safetensors") for name in ("image", "patient"))
    patient[0].pixel_mean, patient[0].pixel_std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    network = Ensemble([image[0], patient[0]], TEMPERATURES, BIASES)
    members = [
        {"architecture": one.architecture, "knobs": one.knobs, "temperature": temperature, "bias": bias}
        | {"pixel_mean": list(network.pixel_mean), "pixel_std": list(network.pixel_std)}
        for (network, one), temperature, bias in zip((image, patient), TEMPERATURES, BIASES, strict=True)
    ]
    facts = replace(
        patient[1],
        architecture=ENSEMBLE,
        knobs={"members": members},
        calibration=Calibration.none(3).as_dict(),
        training={"ensemble_of": "seeds"},
    )
    save_model(folder / "both.safetensors", network, facts)
    return folder


@pytest.fixture
def inputs():
    generator = np.random.default_rng(0)
    patients = np.array([[0.3, 0, 0], [-1.0, 1, 0], [0.0, 1, 0], [2.0, 0, 0], [0.5, 1, 0]], dtype=np.float32)
    return generator.integers(0, 256, (5, 96, 96, 3), dtype=np.uint8), patients


def given(network, inputs):
    return network_inputs(network, *(torch.from_numpy(part) for part in inputs), CPU)


def test_it_says_the_mean_of_what_its_members_say(folder, inputs):
    parts = []
    for name, temperature, bias in zip(("image", "patient"), TEMPERATURES, BIASES, strict=True):
        network, _ = load_model(folder / f"{name}.safetensors")
        if name == "patient":
            network.pixel_mean, network.pixel_std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
        with torch.inference_mode():
            logits = network(*given(network, inputs)).numpy()
        parts.append(softmax(logits / temperature + np.array(bias)))
    both, facts = load_model(folder / "both.safetensors")
    assert facts.architecture == "ensemble"
    with torch.inference_mode():
        logits = both(*given(both, inputs)).numpy()
    assert np.abs(softmax(logits) - np.mean(parts, axis=0)).max() < 1e-6
    assert np.abs(np.exp(logits).sum(axis=1) - 1).max() < 1e-5


def test_it_serves_as_one_network_does(folder):
    predictor = Predictor(folder / "both.safetensors")
    assert predictor.uses_metadata
    assert predictor.explanations == ["gradcam"]  # one of the two has no attention
    picture = np.random.default_rng(1).integers(0, 256, (120, 100, 3), dtype=np.uint8)
    found = predictor.predict(picture, Patient(age=60, sex="female"), explain=["gradcam"])
    assert set(found.probabilities) == set(CLASSES)
    assert found.maps["gradcam"].shape == (96, 96)
    assert found.maps["gradcam"].max() == 1
    other = predictor.predict(picture, Patient(age=20, sex="male"))
    assert other.probabilities != found.probabilities


def test_its_map_is_the_mean_of_its_members_maps(folder, inputs):
    one, _ = load_model(folder / "image.safetensors")
    two, _ = load_model(folder / "image.safetensors")
    with torch.no_grad():
        for parameter in two.backbone.parameters():
            parameter.mul_(0.9)
    both = Ensemble([one, two], TEMPERATURES, BIASES).eval()
    assert has_attention(both)
    assert methods_of(both, "auto") == ["gradcam", "attention"]
    x, target = given(one, inputs), torch.tensor([0, 1, 2, 0, 1])

    def scaled(maps):
        top = maps.max(axis=(1, 2), keepdims=True)
        return maps / np.where(top > 0, top, 1)

    for method in (lambda model: grad_cam(model, x, target), lambda model: attention_map(model, x)):
        assert np.allclose(method(both), (scaled(method(one)) + scaled(method(two))) / 2, atol=1e-6)


def test_members_of_other_grids_meet_on_the_finest(folder, inputs):
    image, _ = load_model(folder / "image.safetensors")

    class Coarse(type(image)):
        def feature_map(self, x):
            return torch.nn.functional.avg_pool2d(super().feature_map(x), 3)

    coarse, _ = load_model(folder / "image.safetensors")
    coarse.__class__ = Coarse
    both = Ensemble([image, coarse], TEMPERATURES, BIASES).eval()
    target = torch.zeros(5, dtype=torch.int64)
    fine = grad_cam(image, given(image, inputs), target)
    assert grad_cam(both, given(image, inputs), target).shape == fine.shape
    assert positions(both, 96) == positions(coarse, 96) < positions(image, 96)


def test_it_is_no_architecture_to_train():
    assert list_models() == sorted(list_models())
    assert not [name for name in list_models() if "ensemble" in name]


@pytest.mark.parametrize(
    "members",
    [
        None,
        [],
        "two",
        [{"architecture": "timm"}],
        [{"architecture": "timm", "knobs": {}, "temperature": 0, "bias": [0, 0, 0], **SCALE}],
        [{"architecture": "timm", "knobs": {}, "temperature": 1, "bias": [0, 0], **SCALE}],
        [{"architecture": "timm", "knobs": {}, "temperature": 1, "bias": [0, 0, 0]}],
        [{"architecture": "timm", "knobs": 5, "temperature": 1, "bias": [0, 0, 0], **SCALE}],
    ],
)
def test_a_header_without_usable_members_is_one_line(folder, tmp_path, members):
    path = folder / "both.safetensors"
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    facts = asdict(replace(read_facts(path), knobs={"members": members}))
    save_file(tensors, tmp_path / "bad.safetensors", metadata={HEADER_KEY: json.dumps(facts)})
    with pytest.raises(UserError, match="does not say what its members are"):
        load_model(tmp_path / "bad.safetensors")
