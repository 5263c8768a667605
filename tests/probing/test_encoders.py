"""Features of frozen encoders: computed once, kept for the same encoder, weights, images and code, and for no other."""

import json
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from helpers.datasets import DataProject
from helpers.project import ROOT

from exp_tools.errors import UserError
from exp_tools.io import file_digest
from exp_tools.models.normalize import normalise
from exp_tools.param_types import EncoderParams
from exp_tools.probing import cache, encoders
from exp_tools.probing.cache import read_features
from exp_tools.probing.encoders import INDEX, check_encoders, compute_features, make_encoder
from exp_tools.recipes import find_recipe, merged

CPU = torch.device("cpu")
RESNET = EncoderParams(backbone="test_resnet", weights="none")
VIT = EncoderParams(backbone="test_vit", weights="none")


@pytest.fixture
def computed(monkeypatch):
    """The backbones that were run over the images, in order."""
    ran = []
    predict = encoders.predict_logits
    monkeypatch.setattr(
        encoders,
        "predict_logits",
        lambda network, *a, **b: ran.append(network.backbone.name) or predict(network, *a, **b),
    )
    return ran


def compute(wanted, images, folder):
    return compute_features(wanted, images, folder, device=CPU)


def test_features_are_those_of_the_network(packed, tmp_path):
    images, _ = packed
    compute([RESNET, VIT], images, tmp_path / "features")
    networks = [make_encoder(one) for one in (RESNET, VIT)]
    pixels = torch.from_numpy(np.load(images))
    with torch.inference_mode():
        expected = torch.cat([one(normalise(pixels, one.pixel_mean, one.pixel_std)) for one in networks], dim=1)
    rows = np.array([5, 0, 3])
    found = read_features(tmp_path / "features", [one.backbone for one in networks], file_digest(images), rows)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected[rows].numpy(), atol=1e-5, rtol=1e-5)


def test_another_encoder_is_computed_alone_and_the_rest_goes(packed, tmp_path, computed):
    images, _ = packed
    folder = tmp_path / "features"
    compute([RESNET], images, folder)
    first = next(folder.glob("*.npy"))
    before = first.stat().st_mtime_ns
    (folder / ".half.npy.host-1.tmp").write_text("of a killed run")
    rows = compute([VIT, RESNET], images, folder)
    assert computed == ["test_resnet", "test_vit"]
    assert [row["kept"] for row in rows] == [False, True]
    assert first.stat().st_mtime_ns == before
    listed = json.loads((folder / INDEX).read_text())["encoders"]
    assert {path.name for path in folder.iterdir()} == {INDEX, *(row["file"] for row in listed)}
    assert [row["backbone"] for row in listed] == ["test_vit", "test_resnet"]
    compute([VIT], images, folder)
    assert not first.exists()
    assert len(computed) == 2


def test_other_weights_images_or_code_are_computed_again(packed, tmp_path, computed, monkeypatch):
    images, _ = packed
    folder = tmp_path / "features"
    compute([RESNET], images, folder)
    network = make_encoder(RESNET)
    torch.save(network.backbone.network.state_dict(), tmp_path / "same.pth")
    compute([EncoderParams(backbone="test_resnet", weights=str(tmp_path / "same.pth"))], images, folder)
    assert len(computed) == 1  # these weights by another name
    with torch.no_grad():
        next(network.parameters()).add_(0.1)
    torch.save(network.backbone.network.state_dict(), tmp_path / "other.pth")
    compute([EncoderParams(backbone="test_resnet", weights=str(tmp_path / "other.pth"))], images, folder)
    assert len(computed) == 2
    pixels = np.load(images)
    pixels[0, 0, 0, 0] ^= 1
    np.save(images, pixels)
    assert read_features(folder, [network.backbone], file_digest(images), np.arange(2)) is None
    compute([EncoderParams(backbone="test_resnet", weights=str(tmp_path / "other.pth"))], images, folder)
    assert len(computed) == 3
    monkeypatch.setattr(cache, "_CODE", cache._CODE[:-1])
    compute([EncoderParams(backbone="test_resnet", weights=str(tmp_path / "other.pth"))], images, folder)
    assert len(computed) == 4


def test_random_weights_are_the_same_in_every_run():
    torch.manual_seed(1)
    first, state = make_encoder(RESNET).state_dict(), torch.get_rng_state()
    torch.manual_seed(2)
    assert all(torch.equal(tensor, first[name]) for name, tensor in make_encoder(RESNET).state_dict().items())
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # nor do they take anything from the run's own numbers


@pytest.mark.parametrize(
    ("encoder", "size", "message"),
    [
        ({"backbone": "resnet1"}, 64, r"model.probe.encoders\[1\], resnet1: timm has no backbone 'resnet1'.*did you"),
        (
            {"backbone": "inception_resnet_v2"},
            32,
            "cannot take images of 32 pixels, it was made for 299: change prepare",
        ),
        (
            {"backbone": "test_vit", "weights": "gone.pth"},
            64,
            r"encoders\[1\], test_vit: weights: there is no file gone",
        ),
        ({"backbone": "test_vit", "options": {"deph": 2}}, 64, r"test_vit: options: test_vit takes no 'deph'"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_computed(encoder, size, message):
    wanted = [RESNET, EncoderParams(**{"weights": "none"} | encoder)]
    with pytest.raises(UserError, match=message) as caught:
        check_encoders(wanted, size)
    assert "\n" not in str(caught.value)


def test_the_recipe_of_panderm_takes_the_layout_of_its_files(tmp_path, monkeypatch, params):
    recipe = merged(find_recipe(ROOT, "panderm_probe"), params)
    encoder = recipe.model.probe.encoders[0].model_copy(update={"backbone": "beit_base_patch16_224"})
    options = {key: value for key, value in encoder.options.items() if key != "pretrained_cfg_overlay"}
    network = timm.create_model("beit_base_patch16_224", num_classes=0, depth=1, **options)
    assert sorted(name for name in network.state_dict() if "." not in name) == ["cls_token", "pos_embed"]
    assert sorted(name for name in network.state_dict() if name.startswith("norm.")) == ["norm.bias", "norm.weight"]
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.normal_()
    stored = {f"encoder.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"model": stored | {"decoder.0.weight": torch.ones(2)}}, tmp_path / "panderm.pth")
    small = encoder.model_copy(
        update={"weights": str(tmp_path / "panderm.pth"), "options": encoder.options | {"depth": 1}}
    )
    check_encoders([small], 224)
    made = make_encoder(small)
    assert made.pixel_mean == (0.485, 0.456, 0.406)
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        tokens = network.eval().forward_features(images)
        torch.testing.assert_close(made(images), tokens[:, 0], rtol=1e-5, atol=1e-5)


def test_features_that_are_not_finite_are_named(packed, tmp_path):
    network = make_encoder(RESNET)
    with torch.no_grad():
        for name, tensor in network.backbone.network.state_dict().items():
            tensor.mul_(1e30) if name.endswith("weight") else None
    torch.save(network.backbone.network.state_dict(), tmp_path / "w.pth")
    huge = EncoderParams(backbone="test_resnet", weights=str(tmp_path / "w.pth"))
    with pytest.raises(
        UserError, match=r"test_resnet with the weights .*w.pth gives NaN or infinite features for 8 ima"
    ):
        compute([huge], packed[0], tmp_path / "features")
    assert not list((tmp_path / "features").glob("*.npy"))


def test_for_another_model_the_stage_writes_an_empty_list_without_torch(tmp_path, monkeypatch):
    project = DataProject(tmp_path / "project", monkeypatch.chdir)
    features = project.folder / "data/features"
    features.mkdir(parents=True)
    (features / "resnet-0.npy").write_text("of a probe before")
    script = "import sys, stages.features; stages.features.main(); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=project.folder,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "False", done.stderr
    assert {path.name: json.loads(path.read_text()) for path in features.iterdir()} == {INDEX: {"encoders": []}}


def test_an_encoder_that_is_named_twice_is_one_line(content):
    from exp_tools.params import parse_params

    content["model"]["probe"]["encoders"] *= 2
    with pytest.raises(
        UserError, match=r"model.probe.encoders: resnet10t with the weights none is named twice"
    ) as caught:
        parse_params(content)
    assert "\n" not in str(caught.value)
    content["model"]["probe"]["encoders"] = [{"backbon": "resnet18", "weights": "none"}]
    with pytest.raises(UserError, match=r"model.probe.encoders.0.backbon is unknown.*did you mean 'backbone'"):
        parse_params(content)
