"""Weight files of every layout in use load to the same features as the plain file, and what does not fit is said."""

import argparse
import json
import os
import pickle
from functools import partial

import numpy as np
import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from exp_tools.cli.main import main
from exp_tools.errors import UserError
from exp_tools.models.pretrained import check_start, load_weights, resolved, weights_source
from exp_tools.models.registry import build_model
from exp_tools.models.weight_files import from_lukemelas, read_weights, weights_path

TINY = {"backbone": "test_resnet"}
VIT = {"backbone": "test_vit"}
PREFIXES = [
    "module.",
    "_orig_mod.",
    "model.",
    "net.",
    "encoder.",
    "visual.trunk.",
    "visual.",
    "backbone.",
    "teacher.",
    "student.",
    "module.model.",
    "_orig_mod.module.",
    "teacher.module.backbone.",
]
DICTS = ["state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema", "teacher"]


def plain(name: str = "test_resnet", seed: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return timm.create_model(name).state_dict()


def pooled(model: nn.Module) -> torch.Tensor:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return model.eval().backbone.pooled(images)


def loaded(content, path, knobs=TINY):
    torch.save(content, path)
    model = build_model("timm", knobs, 3)
    return model, load_weights(model, path)


@pytest.fixture
def expected(tmp_path):
    return pooled(loaded(plain(), tmp_path / "plain.pth")[0])


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_is_taken_off(tmp_path, expected, prefix):
    state = {prefix + name: tensor for name, tensor in plain().items()} | {"text.bias": torch.zeros(3)}
    model, match = loaded(state, tmp_path / "w.pth")
    assert torch.equal(pooled(model), expected)
    assert (match.prefix, match.outside) == (prefix, 1)
    assert match.new == ["classifier.weight", "classifier.bias"]
    assert match.head == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize("place", [*DICTS, "model.state_dict"])
def test_a_dictionary_in_the_file_is_found(tmp_path, expected, place):
    content = {f"module.{name}": tensor for name, tensor in plain().items()}
    for key in reversed(place.split(".")):
        content = {key: content, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}}
    model, match = loaded(content, tmp_path / "w.pth")
    assert match.set == place
    assert torch.equal(pooled(model), expected)


def test_averaged_weights_come_first(tmp_path, expected):
    model, match = loaded({"state_dict": plain(seed=5), "state_dict_ema": plain()}, tmp_path / "w.pth")
    assert match.set == "state_dict_ema"
    assert torch.equal(pooled(model), expected)


def test_settings_and_scores_next_to_weights_are_read(tmp_path, expected):
    settings = argparse.Namespace(lr=0.1, betas=(0.9, 0.99))
    scores = {"acc": np.float64(0.5), "epoch": np.int64(3), "half": np.float32(0.1), "best": np.bool_(True)}
    model, _ = loaded({"model": plain(), "args": settings, "scores": scores}, tmp_path / "w.pth")
    assert torch.equal(pooled(model), expected)


class Config:
    """A class that only its author has."""


def test_an_object_is_refused_by_name_with_the_way_out(tmp_path):
    with pytest.raises(UserError) as caught:
        loaded({"model": plain(), "config": Config()}, tmp_path / "w.pth")
    message = str(caught.value)
    assert "it holds an object of " in message
    assert "Config, and only tensors, numbers and text are read" in message
    assert message.endswith("save its tensors alone: torch.save(model.state_dict(), 'weights.pth')")
    assert "\n" not in message
    with pytest.raises(UserError, match=r"it holds an object of torch.nn.modules.linear.Linear"):
        loaded(nn.Linear(2, 2), tmp_path / "whole.pth")


class Runs:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: argparse.Namespace(a=evil)])
def test_no_allowed_class_lets_code_run(tmp_path, wrap):
    for path, content in ((tmp_path / "zip.pth", None), (tmp_path / "old.pth", "pickle")):
        evil = {"model": plain(), "args": wrap(Runs(tmp_path / "ran"))}
        path.write_bytes(pickle.dumps(evil, protocol=2)) if content else torch.save(evil, path)
        with pytest.raises(UserError, match="cannot be read as weights"):
            load_weights(build_model("timm", TINY, 3), path)
    assert not (tmp_path / "ran").exists()


def test_values_that_are_not_finite_are_refused(tmp_path):
    state = plain()
    state["conv1.0.weight" if "conv1.0.weight" in state else "conv1.weight"].view(-1)[0] = float("nan")
    with pytest.raises(UserError, match="1 of its tensors hold NaN or infinite values"):
        loaded(state, tmp_path / "w.pth")


def test_a_truncated_file_is_one_line(tmp_path):
    for name in ("w.pth", "w.safetensors"):
        path = tmp_path / name
        torch.save(plain(), path) if name.endswith("pth") else save_file(plain(), path)
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(UserError, match=r"cannot be read as weights: [^\n]+$"):
            load_weights(build_model("timm", TINY, 3), path)


def test_a_wrong_prefix_fits_nothing(tmp_path):
    with pytest.raises(UserError, match=r"none of its \d+ tensors fits this network"):
        loaded({f"tower.{name}": tensor for name, tensor in plain().items()}, tmp_path / "w.pth")


# --- position embeddings


def test_position_embeddings_of_another_size_are_resampled(tmp_path):
    grown = timm.create_model("test_vit", img_size=224)
    model, match = loaded(grown.state_dict(), tmp_path / "w.pth", VIT)
    assert match.resampled == ["pos_embed 14x14 to 10x10"]
    own = timm.create_model("test_vit")
    ours = timm.layers.resample_abs_pos_embed(grown.pos_embed, [10, 10], num_prefix_tokens=1)
    state = grown.state_dict() | {"pos_embed": ours}
    own.load_state_dict(state)
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        theirs = own.eval().forward_head(own.forward_features(images), pre_logits=True)
        torch.testing.assert_close(model.eval().backbone.pooled(images), theirs)


def test_a_position_embedding_that_is_no_grid_is_refused(tmp_path):
    state = plain("test_vit")
    state["pos_embed"] = state["pos_embed"][:, :-3]
    with pytest.raises(UserError, match=r"1 of the backbone's .*pos_embed"):
        loaded(state, tmp_path / "w.pth", VIT)


# --- other names


def openai(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state of timm's vision transformer under the names of OpenAI's CLIP and open_clip, next to a text tower."""
    swaps = {"patch_embed.proj": "conv1", "blocks.": "transformer.resblocks.", "norm_pre": "ln_pre"}
    swaps |= {"norm1": "ln_1", "norm2": "ln_2", "attn.qkv.": "attn.in_proj_", "attn.proj": "attn.out_proj"}
    swaps |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "norm.": "ln_post."}
    made = {"visual.class_embedding": state["cls_token"][0, 0], "visual.positional_embedding": state["pos_embed"][0]}
    for name, tensor in state.items():
        if name not in ("cls_token", "pos_embed") and not name.startswith("head"):
            for ours, theirs in swaps.items():
                name = name.replace(ours, theirs)
            made[f"visual.{name}"] = tensor
    return made | {"visual.proj": torch.zeros(64, 8), "token_embedding.weight": torch.zeros(5, 4)}


@pytest.mark.parametrize(("size", "resampled"), [(160, []), (224, ["visual.positional_embedding to 101 positions"])])
def test_names_of_openai_are_converted_by_timm(tmp_path, size, resampled):
    options = {"pre_norm": True, "class_token": True, "global_pool": "token", "img_size": size}
    torch.manual_seed(4)
    whole = timm.create_model("test_vit", **options)
    knobs = VIT | {"options": options | {"img_size": 160}}
    state = whole.state_dict()
    state = {name: tensor for name, tensor in state.items() if "reg_token" not in name}
    model, match = loaded(openai(state), tmp_path / "w.pth", knobs)
    assert match.resampled == resampled
    ours = model.backbone.network.state_dict()
    same = [name for name in ours if name != "pos_embed" or not resampled]
    assert all(torch.equal(ours[name], state[name]) for name in same)


# --- EfficientNets of lukemelas


def lukemelas(network: nn.Module) -> dict[str, torch.Tensor]:
    """The state of timm's EfficientNet under the names of lukemelas/EfficientNet-PyTorch."""
    names = {}
    outer = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    for theirs, ours in outer.items():
        names[theirs] = ours
    number = 0
    for stage, blocks in enumerate(network.blocks):
        for place, block in enumerate(blocks):
            at, to = f"blocks.{stage}.{place}.", f"_blocks.{number}."
            if hasattr(block, "conv_pwl"):
                layers = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
                layers |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}
            else:
                layers = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
            layers |= {"se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand"}
            names |= {at + one: to + other for one, other in layers.items()}
            number += 1
    return {f"{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": t for key, t in network.state_dict().items()}


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_b0"])
def test_names_of_lukemelas_give_equal_features_and_logits(tmp_path, name):
    torch.manual_seed(3)
    whole = timm.create_model(name).eval()
    state = lukemelas(whole)
    assert "_blocks.1._expand_conv.weight" in state
    renamed = from_lukemelas(state, whole.state_dict())
    assert {key: tensor.data_ptr() for key, tensor in renamed.items()} == {
        key: tensor.data_ptr() for key, tensor in whole.state_dict().items()
    }
    model, match = loaded(
        {f"module.{key}": tensor for key, tensor in state.items()}, tmp_path / "w.pth", {"backbone": name}
    )
    assert match.head == ["classifier.weight", "classifier.bias"]
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        theirs = whole.forward_head(whole.forward_features(images), pre_logits=True)
        torch.testing.assert_close(model.eval().backbone.pooled(images), theirs)


# --- other architectures


@pytest.mark.parametrize(
    ("ours", "other"),
    [
        ("resnet50", "resnet101"),
        ("resnet18", "resnet34"),
        ("convnext_tiny", "convnext_small"),
        ("swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224"),
        ("efficientnet_b0", "efficientnet_b1"),
        ("resnet50", "seresnet50"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module.model."])
def test_a_larger_sibling_is_refused_with_what_is_left_over(tmp_path, ours, other, prefix):
    whole = timm.create_model(other, num_classes=5).state_dict()
    with pytest.raises(UserError, match=rf"{ours} has no place for \d+ tensors of the file's backbone \(\w"):
        loaded({prefix + name: tensor for name, tensor in whole.items()}, tmp_path / "w.pth", {"backbone": ours})


# --- folders and the hub


def folder_of(path, name="test_resnet", **config):
    """A folder as timm.models.push_to_hf_hub writes it."""
    path.mkdir()
    save_file(plain(name), path / "model.safetensors")
    content = {"architecture": name, "num_classes": 1000, "pretrained_cfg": {"mean": [0.1, 0.2, 0.3]} | config}
    (path / "config.json").write_text(json.dumps(content | {"model_args": {"drop_path_rate": 0.1}}))
    return f"local-dir:{path}"


def test_a_folder_brings_architecture_and_weights(tmp_path, expected):
    source = folder_of(tmp_path / "net", input_size=[3, 160, 160], std=[0.5, 0.5, 0.5])
    knobs = {"backbone": source}
    assert weights_source("none", knobs) == source
    assert weights_source("other.pth", knobs) == "other.pth"
    check_start(partial(build_model, "timm", knobs, 2), source, 64)
    whole = resolved(knobs)
    assert whole["backbone"] == "test_resnet"
    assert whole["options"]["drop_path_rate"] == 0.1
    json.dumps(whole)  # a model file keeps them
    model = build_model("timm", whole, 3)
    load_weights(model, source)
    assert torch.equal(pooled(model), expected)
    assert model.pixel_mean == (0.1, 0.2, 0.3)
    with pytest.raises(UserError, match=r"brings its own weights: set model.weights to none"):
        build_model("timm", knobs, 3, pretrained=True)


def test_paths_are_relative_to_the_projects_root_in_a_queued_experiment_too(tmp_path, expected, monkeypatch):
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    project.mkdir()
    elsewhere.mkdir()
    torch.save(plain(), project / "mine.pth")
    folder_of(project / "net")
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("DVC_ROOT", str(project))
    assert weights_path("mine.pth") == project.resolve() / "mine.pth"
    for knobs, weights in ((TINY, "mine.pth"), (TINY, "local-dir:net"), ({"backbone": "local-dir:net"}, "none")):
        model = build_model("timm", resolved(knobs), 3)
        load_weights(model, weights_source(weights, knobs))
        assert torch.equal(pooled(model), expected)


def test_a_folder_of_weights_alone_must_name_the_same_backbone(tmp_path, expected):
    source = folder_of(tmp_path / "net")
    model = build_model("timm", TINY, 3)
    load_weights(model, source)
    assert torch.equal(pooled(model), expected)
    with pytest.raises(UserError, match="is of test_resnet, the network's backbone is test_vit: set the backbone to"):
        load_weights(build_model("timm", VIT, 3), source)


def test_a_folder_without_config_or_weights_is_said(tmp_path):
    with pytest.raises(UserError, match=r"local-dir:.*gives no network \(Config file not found"):
        build_model("timm", {"backbone": f"local-dir:{tmp_path}"}, 3)
    source = folder_of(tmp_path / "net")
    (tmp_path / "net" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="gives no weights: No suitable checkpoints found"):
        load_weights(build_model("timm", TINY, 3), source)


def test_a_hub_that_is_away_is_one_line(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for source, call in (
        ("network", lambda name: build_model("timm", {"backbone": name}, 3)),
        ("network", lambda name: load_weights(build_model("timm", TINY, 3), name)),
        ("weights", read_weights),
    ):
        with pytest.raises(UserError) as caught:
            call("hf-hub:owner/nowhere")
        message = str(caught.value)
        assert f"gives no {source}" in message
        assert message.endswith("download the repository elsewhere and write local-dir:FOLDER")
        assert "\n" not in message


# --- before data are touched


@pytest.mark.parametrize(
    ("backbone", "size", "message"),
    [
        ("swin_tiny_patch4_window7_224", 96, "cannot take images of 96 pixels, it was made for 224"),
        ("inception_resnet_v2", 32, "cannot take images of 32 pixels, it was made for 299"),
        ("local-dir:nowhere", 64, "local-dir:nowhere gives no network"),
        ("ResNet50", 64, "timm has no backbone 'ResNet50' .did you mean 'resnet50'"),
    ],
)
def test_what_cannot_work_is_said_by_shapes_alone(backbone, size, message):
    with pytest.raises(UserError, match=message):
        check_start(partial(build_model, "timm", {"backbone": backbone}, 2), "none", size)


def test_the_stage_says_it_before_it_reads_data(monkeypatch, tmp_path, content):
    from stages import train

    monkeypatch.chdir(tmp_path)
    content["model"]["weights"] = "gone.pth"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "data/prepared").mkdir(parents=True)
    (tmp_path / "data/prepared/preprocessing.json").write_text('{"image_size": 64}')
    with pytest.raises(UserError, match=r"model.weights: there is no file gone.pth"):  # and no labels either
        train.main()


def test_a_file_that_does_not_fit_is_said_by_shapes_alone(tmp_path):
    torch.save(plain("test_vit"), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"model.weights .*w.pth: "):
        check_start(partial(build_model, "soft_attention", TINY, 2), str(tmp_path / "w.pth"), 64)
    torch.save(plain(), tmp_path / "w.pth")
    check_start(partial(build_model, "soft_attention", TINY, 2), str(tmp_path / "w.pth"), 64)


# --- the command


def test_the_command_shows_what_fits(tmp_path, capsys):
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in plain().items()}}, tmp_path / "w.pth")
    assert main(["weights", str(tmp_path / "w.pth"), "--backbone", "test_resnet"]) == 0
    head, *lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert head.endswith("w.pth fits test_resnet")
    assert lines == [
        "in the file state_dict, names without module.",
        f"fits {len(plain()) - 2} tensors, in backbone.network. (test_resnet)",
        "resampled -",
        "new classifier.weight, classifier.bias",
        "left over -",
        "not used fc.weight, fc.bias",
    ]
    assert main(["weights", str(tmp_path / "w.pth"), "--backbone", "resnet18"]) == 1
    assert "does not fit resnet18" in capsys.readouterr().out


def test_the_command_takes_the_model_of_params_yaml(tmp_path, capsys):
    torch.save(plain("resnet10t"), tmp_path / "w.pth")
    assert main(["weights", str(tmp_path / "w.pth")]) == 0
    assert "fits resnet10t" in capsys.readouterr().out
