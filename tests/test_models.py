"""The registry, weights from files, and the model file."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from exp_tools.errors import UserError
from exp_tools.models import artifact
from exp_tools.models.artifact import ModelFacts, load_model, read_facts, save_model
from exp_tools.models.inputs import normalise
from exp_tools.models.registry import build_model, describe_models, list_models
from exp_tools.models.weights import load_weights

TINY = {"backbone": "test_resnet"}


@pytest.fixture
def facts():
    return ModelFacts(
        architecture="timm",
        knobs=TINY,
        task="diagnosis",
        classes=["bkl", "mel", "nv"],
        image_size=64,
        resize="squash",
        touch_up={"hair_removal": False, "colour_constancy": False, "clahe": False},
        pixel_mean=[0.5, 0.5, 0.5],
        pixel_std=[0.5, 0.5, 0.5],
        temperature=1.25,
        source="synthetic",
        training={"seed": 0},
        versions={"torch": "2"},
    )


@pytest.mark.parametrize("name", list_models())
@pytest.mark.parametrize("classes", [2, 7])
def test_every_architecture_maps_images_to_logits(name, classes):
    model = build_model(name, TINY, classes).eval()
    images = torch.randn(2, 3, 64, 64)
    assert model(images).shape == (2, classes)
    assert model.feature_map(images).ndim == 4
    assert len(model.pixel_mean) == len(model.pixel_std) == 3


def test_published_parameter_counts():
    counts = {row["name"]: row["parameters"] for row in describe_models()}
    # ResNet-50 without its classifier has 23,508,032; heads by hand: 2048·7 + 7, and 4096·7 + 7 + 2048·16·9 + 16 + 1
    assert counts["timm"] == 23_508_032 + 14_343
    assert counts["soft_attention"] == 23_508_032 + 28_679 + 294_929


def test_unknown_names_get_a_suggestion():
    with pytest.raises(UserError, match="did you mean 'soft_attention'"):
        build_model("softattention", {}, 7)
    with pytest.raises(UserError, match=r"timm has no backbone 'resnet1'.*for example"):
        build_model("timm", {"backbone": "resnet1"}, 7)


def test_no_network_is_said_in_one_line(monkeypatch):
    def unreachable(*args, **options):
        raise OSError("Name or service not known")

    monkeypatch.setattr("timm.create_model", unreachable)
    with pytest.raises(UserError, match=r"ImageNet weights of resnet18 could not be had.*model.weights to none"):
        build_model("timm", {"backbone": "resnet18"}, 7, pretrained=True)


def test_a_new_architecture_takes_one_file(monkeypatch, tmp_path):
    from exp_tools import models

    (tmp_path / "constant.py").write_text(
        "import torch\nfrom exp_tools.models.registry import register\n\n\n@register\n"
        'def constant(num_classes, *, pretrained=False):\n    """Says the same of everything."""\n'
        "    return torch.nn.Linear(1, num_classes)\n"
    )
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    assert "constant" in list_models()
    assert build_model("constant", {}, 3).out_features == 3


def test_normalise_against_the_formula():
    images = torch.randint(0, 256, (2, 5, 6, 3), dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = (images.permute(0, 3, 1, 2) / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    result = normalise(images, mean, std)
    torch.testing.assert_close(result, expected)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_the_model_file_holds_all(tmp_path, facts):
    torch.manual_seed(1)
    model = build_model("timm", TINY, 3)
    model.classifier.bias.data.fill_(0.5)
    save_model(tmp_path / "m.safetensors", model, facts)
    loaded, read = load_model(tmp_path / "m.safetensors")
    assert read == facts
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_equal_models_have_equal_bytes(tmp_path, facts):
    model = build_model("timm", TINY, 3)
    for number in range(8):
        save_model(tmp_path / f"{number}.safetensors", model, facts)
    assert len({(tmp_path / f"{number}.safetensors").read_bytes() for number in range(8)}) == 1


def test_a_file_that_is_no_model_of_ours_is_refused(tmp_path, facts):
    with pytest.raises(UserError, match="there is no model file"):
        read_facts(tmp_path / "none.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(UserError, match="damaged or no safetensors"):
        read_facts(tmp_path / "junk.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(UserError, match="weights only"):
        read_facts(tmp_path / "plain.safetensors")
    header = {artifact.HEADER_KEY: json.dumps({"format": 99})}
    save_file({"a": torch.zeros(2)}, tmp_path / "new.safetensors", metadata=header)
    with pytest.raises(UserError, match="format 99"):
        read_facts(tmp_path / "new.safetensors")
    save_model(tmp_path / "m.safetensors", build_model("timm", TINY, 4), facts)
    with pytest.raises(UserError, match="do not fit the architecture"):
        load_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_weights_load_all_but_a_head_of_another_size(tmp_path, ending):
    torch.manual_seed(1)
    old, new = build_model("timm", TINY, 5), build_model("timm", TINY, 3)
    path = tmp_path / f"w.{ending}"
    if ending == "pth":
        torch.save({"state_dict": old.state_dict()}, path)
    else:
        save_file(old.state_dict(), path)
    head = new.classifier.weight.clone()
    assert load_weights(new, path) == ["classifier.bias", "classifier.weight"]
    assert torch.equal(new.classifier.weight, head)
    for name, tensor in old.backbone.state_dict().items():
        assert torch.equal(tensor, new.backbone.state_dict()[name])


def test_a_plain_backbone_file_fits_every_architecture(tmp_path):
    import timm

    plain = timm.create_model("test_resnet", num_classes=10)
    torch.save(plain.state_dict(), tmp_path / "timm.pth")
    model = build_model("soft_attention", TINY, 3)
    load_weights(model, tmp_path / "timm.pth")
    assert torch.equal(model.backbone.network.conv1[0].weight, plain.conv1[0].weight)


def test_bad_weight_files_are_refused(tmp_path):
    model = build_model("timm", TINY, 3)
    with pytest.raises(UserError, match="there is no file"):
        load_weights(model, tmp_path / "gone.pth")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_weights(model, tmp_path / "junk.pth")
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match="none of its 2 tensors fits"):
        load_weights(model, tmp_path / "other.pth")
    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_weights(model, tmp_path / "evil.pth")


class Evil:
    """A pickle that would run code."""

    def __reduce__(self):
        return (print, ("code ran",))
