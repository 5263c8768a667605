"""The registry, what every architecture must do, and the model file."""

import copy
import json
from dataclasses import asdict

import pytest
import torch
from helpers.project import ROOT
from safetensors.torch import save_file
from timm.layers import DropPath
from torch import nn

from exp_tools.data.images.preprocess import Preprocessing
from exp_tools.data.inputs.metadata import Vocabulary
from exp_tools.errors import UserError
from exp_tools.models import model_file
from exp_tools.models.backbone import Backbone, VectorNorm
from exp_tools.models.model_file import ModelFacts, read_facts, save_model
from exp_tools.models.normalize import normalise
from exp_tools.models.registry import (
    build_model,
    count_parameters,
    depthwise_share,
    describe_models,
    list_models,
    load_model,
    metadata_knobs,
)

TINY = {"backbone": "test_resnet"}


@pytest.fixture
def facts():
    return ModelFacts(
        architecture="timm",
        knobs=TINY,
        task="diagnosis",
        classes=["bkl", "mel", "nv"],
        preprocessing=Preprocessing(64)._asdict(),
        pixel_mean=[0.5, 0.5, 0.5],
        pixel_std=[0.5, 0.5, 0.5],
        source="synthetic",
        training={"seed": 0},
        versions={"torch": "2"},
    )


KNOBS = {
    "emas": {},
    "efficientnet_v2": {},
    "multimodal": TINY,
    "probe": {"encoders": [TINY]},
    "soft_attention": TINY,
    "timm": TINY,
}
"""Small where an architecture lets one choose the backbone."""


def inputs(model, batch, size):
    """Random images, and metadata for a model that takes them: ages, a sex and a site that are known to all."""
    images = torch.randn(batch, 3, size, size)
    return (images, torch.tensor([[0.5, 1.0, 2.0]] * batch)) if model.uses_metadata else (images,)


@pytest.mark.parametrize("name", list_models())
def test_every_architecture_takes_any_size_and_class_count(name):
    for classes, sizes in ((2, (32, 97)), (7, (64, 96))):
        model = build_model(name, KNOBS[name], classes).eval()
        assert len(model.pixel_mean) == len(model.pixel_std) == 3
        assert isinstance(model.backbone, nn.Module)
        for size in sizes:
            arguments = inputs(model, 2, size)
            assert model(*arguments).shape == (2, classes)
            assert model.feature_map(arguments[0]).shape[2:] == (-(-size // 32),) * 2


@pytest.mark.parametrize("name", list_models())
def test_every_parameter_learns_and_one_image_is_batch_enough(name):
    model = build_model(name, KNOBS[name], 3)
    model(*inputs(model, 1, 64)).logsumexp(dim=1).sum().backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", list_models())
def test_a_copy_computes_the_same(name):
    model = build_model(name, KNOBS[name], 3).eval()
    arguments = inputs(model, 2, 64)
    with torch.no_grad():
        torch.testing.assert_close(copy.deepcopy(model)(*arguments), model(*arguments), rtol=0, atol=0)


def test_published_parameter_counts(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # nothing of params.yaml counts
    rows = {row["name"]: row for row in describe_models()}
    counts = {name: (row["parameters"], row["outside_backbone"]) for name, row in rows.items()}
    # ResNet-50 without its classifier has 23,508,032; heads by hand: 2048·7 + 7, and 4096·7 + 7 + 2048·16·9 + 16 + 1
    assert counts == {
        "timm": (23_508_032 + 14_343, 14_343),
        "soft_attention": (23_508_032 + 28_679 + 294_929, 28_679 + 294_929),
        "emas": (11_718_019, 11_718_019 - 2_223_872 - 4_007_548),
        "efficientnet_v2": (20_968_023, 790_535),
        "multimodal": (20_979_319, 801_831),
        # DINOv2 ViT-S/14 without its mask token: 22,056,192 (embedding 226,176, 1,370 positions, 12 blocks, norm)
        "probe": (22_056_192 + 2_695, 2_695),  # 384·7 + 7
    }
    assert {name: row["image_size"] for name, row in rows.items() if row["image_size"] != 224} == {"multimodal": 384}


def test_multiply_adds_by_hand():
    rows = {row["name"]: row for row in describe_models()}
    # soft attention on ResNet-50 against the bare one: sixteen 3x3 maps over 2048 channels at 7x7 positions, and a
    # classifier of 4096 inputs instead of 2048
    extra = 16 * 9 * 2048 * 49 + 2048 * 7
    assert rows["soft_attention"]["multiply_adds"] - rows["timm"]["multiply_adds"] == extra
    # torchvision's table gives ResNet-50 4.09 G
    assert rows["timm"]["multiply_adds"] == pytest.approx(4.09e9, rel=0.002)


def test_the_table_in_the_docs_is_true():
    lines = (ROOT / "docs" / "models.md").read_text(encoding="utf-8").splitlines()
    told = {
        cells[1]: cells[4:8] for line in lines if len(cells := [cell.strip(" `") for cell in line.split("|")]) == 10
    }
    for row in describe_models():
        numbers = [f"{row['parameters']:,}", f"{row['outside_backbone']:,}", f"{row['multiply_adds'] / 1e9:.2f} G"]
        assert told[row["name"]][:3] == numbers
        assert told[row["name"]][3].split()[0] == str(row["image_size"])


def test_a_backbone_carries_no_head():
    counts = {name: count_parameters(Backbone(name)) for name in ("vgg16_bn", "mobilenetv3_small_100", "convnext_atto")}
    # VGG16 by hand: 3x3 convolutions with bias and BatchNorm, 14,714,688 + 2·4,224
    assert counts["vgg16_bn"] == 14_723_136
    model = build_model("timm", {"backbone": "convnext_atto"}, 2)
    model(torch.randn(1, 3, 64, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_transformer_takes_any_size_in_square_maps():
    model = build_model("timm", {"backbone": "test_vit"}, 2).eval()
    for size, side in ((32, 2), (97, 7), (160, 10)):  # patches of 16
        assert model.feature_map(torch.randn(1, 3, size, size)).shape == (1, 64, side, side)


@pytest.mark.parametrize(
    ("backbone", "size", "message"),
    [
        ("inception_resnet_v2", 32, "inception_resnet_v2 cannot take images of 32 pixels, it was made for 299"),
        (
            "swin_tiny_patch4_window7_224",
            96,
            "of 96 pixels, it was made for 224: change prepare.image_size or the back",
        ),
    ],
)
def test_a_size_that_does_not_fit_is_said(backbone, size, message):
    model = build_model("timm", {"backbone": backbone}, 2).eval()
    with pytest.raises(UserError, match=message):
        model(torch.randn(1, 3, size, size))


def test_tokens_that_are_no_map_are_said():
    model = build_model("timm", {"backbone": "test_vit"}, 2).eval()
    model.backbone.network.forward_features = lambda x: torch.zeros(len(x), 1 + 15, 64)
    with pytest.raises(UserError, match="features of test_vit form no square map"):
        model.feature_map(torch.randn(1, 3, 64, 64))


def test_a_batch_that_is_too_small_for_batchnorm_is_said():
    model = build_model("timm", TINY, 2)
    with pytest.raises(
        UserError, match=r"batch of one image at 32 pixels.*Raise train.batch_size or prepare.image_size"
    ):
        model(torch.randn(1, 3, 32, 32))


def test_other_errors_are_left_alone():
    model = build_model("timm", TINY, 2)
    with pytest.raises(RuntimeError, match="channels"):
        model(torch.randn(2, 4, 64, 64))


def test_the_norm_of_a_single_vector():
    norm = VectorNorm(3)
    plain = nn.BatchNorm1d(3)
    batch = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 7.0]])
    torch.testing.assert_close(norm(batch), plain(batch))
    # running mean 0.1·(2, 2, 5), running variance 0.9 + 0.1·(2, 0, 8)
    expected = (batch[:1] - torch.tensor([0.2, 0.2, 0.5])) / torch.tensor([1.1, 0.9, 1.7]).add(norm.eps).sqrt()
    before = norm.running_mean.clone()
    torch.testing.assert_close(norm(batch[:1]), expected)
    assert torch.equal(norm.running_mean, before)


def test_vocabulary_sizes_go_to_the_builder_that_takes_them():
    vocabulary = Vocabulary(50.0, 10.0, 50.0, ("female", "male"), ("back", "face", "unknown"))
    assert metadata_knobs("multimodal", vocabulary) == {"sexes": 2, "localizations": 3}
    assert metadata_knobs("timm", vocabulary) == {}


def test_unknown_names_get_a_suggestion():
    with pytest.raises(UserError, match="did you mean 'soft_attention'"):
        build_model("softattention", {}, 7)
    with pytest.raises(UserError, match=r"timm has no backbone 'resnet1'.*did you mean"):
        build_model("timm", {"backbone": "resnet1"}, 7)
    with pytest.raises(UserError, match=r"no weights 'mine' of resnet18; it has .*a1_in1k"):
        build_model("timm", {"backbone": "resnet18.mine"}, 7)


def test_a_new_architecture_takes_one_file(monkeypatch, tmp_path):
    from exp_tools.models import architectures, registry

    (tmp_path / "constant.py").write_text(
        "import torch\nfrom exp_tools.models.registry import register\n\n\n@register\n"
        'def constant(num_classes, *, pretrained=False):\n    """Says the same of everything."""\n'
        "    return torch.nn.Linear(1, num_classes)\n"
    )
    monkeypatch.setattr(architectures, "__path__", [*architectures.__path__, str(tmp_path)])
    monkeypatch.setattr(registry, "FOLDERS", [*registry.FOLDERS, str(tmp_path)])
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
    header = {model_file.HEADER_KEY: json.dumps({"format": 99})}
    save_file({"a": torch.zeros(2)}, tmp_path / "new.safetensors", metadata=header)
    with pytest.raises(UserError, match="format 99"):
        read_facts(tmp_path / "new.safetensors")
    save_model(tmp_path / "m.safetensors", build_model("timm", TINY, 4), facts)
    with pytest.raises(UserError, match="do not fit the architecture"):
        load_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header.pop("classes"), "its header has no usable classes, so the file is incomplete"),
        (lambda header: header.update(knobs=[1]), "its header has no usable knobs"),
        (lambda header: header["preprocessing"].pop("image_size"), "its header has no usable preprocessing"),
        (lambda header: header["knobs"].update(dropuot=0), r"timm has no knob 'dropuot' \(did you mean 'dropout'\?\)"),
        (lambda header: header.update(architecture="tim"), r"there is no architecture 'tim'.*did you mean 'timm'"),
    ],
)
def test_a_header_that_is_wrong_is_one_line(tmp_path, facts, change, message):
    path = tmp_path / "m.safetensors"
    model = build_model("timm", TINY, 3)
    header = json.loads(json.dumps(asdict(facts)))
    change(header)
    save_file(model.state_dict(), path, metadata={model_file.HEADER_KEY: json.dumps(header)})
    with pytest.raises(UserError, match=message) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("header", "message"), [("{", "is not valid JSON"), ("[]", "holds list and no named facts")])
def test_a_header_that_is_no_json_is_one_line(tmp_path, header, message):
    save_file({"a": torch.zeros(2)}, tmp_path / "m.safetensors", metadata={model_file.HEADER_KEY: header})
    with pytest.raises(UserError, match=message):
        read_facts(tmp_path / "m.safetensors")


def test_weights_that_are_not_finite_or_missing_are_one_line(tmp_path, facts):
    model = build_model("timm", TINY, 3)
    model.classifier.bias.data[1] = float("nan")
    save_model(tmp_path / "m.safetensors", model, facts)
    with pytest.raises(UserError, match=r"1 of its tensors are NaN or infinite \(classifier.bias, …\)"):
        load_model(tmp_path / "m.safetensors")
    state = model.state_dict()
    del state["classifier.bias"]
    header = {model_file.HEADER_KEY: json.dumps(asdict(facts))}
    save_file(state, tmp_path / "m.safetensors", metadata=header)
    with pytest.raises(UserError, match=r"do not fit the architecture timm it names: .*classifier.bias[^\n]*train it"):
        load_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("name", "knobs", "low", "high"),
    [
        ("timm", {"backbone": "resnet18"}, 0, 0),
        ("timm", {"backbone": "resnext50_32x4d"}, 0, 0),  # groups, and no depthwise convolution
        ("timm", {"backbone": "vit_tiny_patch16_224"}, 0, 0),
        ("timm", {"backbone": "convnext_tiny"}, 0.01, 0.03),
        ("efficientnet_v2", {}, 0.005, 0.02),
        ("timm", {"backbone": "tf_efficientnet_lite0"}, 0.07, 0.11),
        ("emas", {}, 0.05, 0.07),
        ("multimodal", TINY | {"sexes": 3, "localizations": 2}, 0, 0),
    ],
)
def test_how_much_depthwise_convolutions_compute(name, knobs, low, high):
    generator = torch.get_rng_state()
    assert low <= depthwise_share(name, knobs, 224) <= high
    assert torch.equal(torch.get_rng_state(), generator)  # what is drawn after it stays the same


def test_a_size_that_a_network_cannot_take_is_said_before_it_trains():
    with pytest.raises(UserError, match="cannot take images of 96 pixels"):
        depthwise_share("timm", {"backbone": "swin_tiny_patch4_window7_224"}, 96)


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("timm", {"backbone": "resnet10t"}),
        ("soft_attention", {"backbone": "resnet10t"}),
        ("soft_attention", {"backbone": "resnet10t", "place": "inner"}),
        ("multimodal", {"backbone": "convnext_atto"}),
        ("efficientnet_v2", {}),
    ],
)
def test_paths_drop_in_training_alone_and_most_at_the_end(name, knobs):
    dropped = build_model(name, knobs | {"drop_path": 0.3}, 3)
    rates = [part.drop_prob for part in dropped.backbone.modules() if isinstance(part, DropPath)]
    assert rates == sorted(rates)
    assert 0.29 < rates[-1] <= 0.3 + 1e-6  # EfficientNets: i / n of it, i < n
    plain = build_model(name, knobs, 3)
    assert not any(isinstance(part, DropPath) for part in plain.backbone.modules() if getattr(part, "drop_prob", 0))
    plain.load_state_dict(dropped.state_dict())
    arguments = inputs(plain, 2, 64)
    with torch.no_grad():
        assert torch.equal(plain.eval()(*arguments), dropped.eval()(*arguments))


def test_a_backbone_without_paths_is_refused():
    with pytest.raises(
        UserError, match="drop_path: timm's vgg11 cannot drop paths; set drop_path to 0 or take another"
    ):
        build_model("timm", {"backbone": "vgg11", "drop_path": 0.1}, 3, pretrained=True)
