"""Weights from the hub, imitated by a local server, and from files; that construction never undoes them."""

import contextlib
import functools
import io
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import timm
import torch
from safetensors.torch import save, save_file
from torch import nn

from exp_tools.errors import UserError
from exp_tools.models import timm_networks
from exp_tools.models.pretrained import load_weights, summarise_names
from exp_tools.models.registry import build_model

TINY = {"backbone": "test_resnet"}
ARCHITECTURES = [
    ("timm", TINY),
    ("multimodal", TINY),
    ("soft_attention", TINY),
    ("soft_attention", TINY | {"place": "inner"}),
    pytest.param("soft_attention", {"backbone": "vgg11_bn", "place": "inner"}, marks=pytest.mark.sweep),
    ("efficientnet_v2", {}),
    ("emas", {"output_stride": 16}),
    ("probe", {"encoders": [TINY, {"backbone": "test_vit"}]}),
]


@functools.lru_cache(maxsize=3)
def timm_weights(name: str) -> dict[str, torch.Tensor]:
    """A timm network's state with its classifier, unlike any that is built later: each tensor has its own numbers."""
    state = timm.create_model(name).state_dict()
    for number, tensor in enumerate(state.values()):
        if tensor.is_floating_point():
            tensor.copy_(torch.linspace(0.5, 1.5, tensor.numel()).view_as(tensor) + number / 1000)
    return state


def assert_backbone_is(network: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    state = network.state_dict()
    assert len(state) > 10
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name]), name


# --- imagenet


@pytest.fixture
def pretrained_files(monkeypatch, tmp_path):
    """timm reads its pretrained weights from files of timm_weights instead of the hub; its own code loads them."""
    create = timm.create_model

    def from_file(name, *, pretrained=False, **options):
        if pretrained:
            path = tmp_path / f"{name}.safetensors"
            if not path.is_file():
                save_file(timm_weights(name), path)
            options["pretrained_cfg_overlay"] = {"file": str(path)}
        return create(name, pretrained=pretrained, **options)

    monkeypatch.setattr(timm_networks.timm, "create_model", from_file)
    monkeypatch.setattr(timm_networks, "_require_weights", lambda name: None)


@pytest.mark.parametrize(("name", "knobs"), ARCHITECTURES)
def test_pretrained_weights_survive_construction(pretrained_files, name, knobs):
    model = build_model(name, knobs, 3, pretrained=True)
    parts = model.backbone.values() if isinstance(model.backbone, nn.ModuleDict) else [model.backbone]
    for part in parts:
        assert_backbone_is(part.network, timm_weights(part.name))


FROM_HUB = """
import gc, sys
gc.set_threshold(50_000)
import torch
from exp_tools.errors import run_main
from exp_tools.models.registry import build_model

def main():
    model = build_model("timm", {"backbone": "test_resnet"}, 3, pretrained=True)
    torch.save(model.backbone.network.state_dict(), sys.argv[1])

run_main(main)
"""


class Hub(BaseHTTPRequestHandler):
    """What the Hugging Face hub answers for one file of one repository."""

    place = "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
    body = b""
    log: list[str]

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        self.log.append(f"{self.command} {self.path}")
        found = self.path.split("?")[0] == self.place
        self.send_response(200 if found else 404)
        if found:
            self.send_header("ETag", '"0123456789abcdef"')
            self.send_header("X-Repo-Commit", "0" * 40)
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(len(self.body) if found else 0))
        self.end_headers()
        if found and with_body:
            self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        """Nothing on the tests' screen."""


def from_hub(endpoint, tmp_path):
    """Build a pretrained network in a process of its own, whose hub is at `endpoint` and whose cache is empty."""
    environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, "-c", FROM_HUB, str(tmp_path / "got.pt")],
        env=os.environ | environment | {"OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@contextlib.contextmanager
def serving(handler):
    """The address of a server that answers as `handler` does."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_imagenet_weights_come_from_the_hub_and_stay_in_its_cache(tmp_path):
    weights = timm_weights("test_resnet")
    handler = type("OneHub", (Hub,), {"body": save(weights), "log": []})
    with serving(handler) as endpoint:
        done = from_hub(endpoint, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"GET {Hub.place}" in handler.log
    got = torch.load(tmp_path / "got.pt", weights_only=True)
    assert len(got) > 10
    assert all(torch.equal(tensor, weights[name]) for name, tensor in got.items())
    (tmp_path / "got.pt").unlink()
    again = from_hub(endpoint, tmp_path)  # nobody answers any more
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "got.pt").is_file()


def test_a_hub_that_is_away_is_one_line_with_two_ways_out(tmp_path):
    done = from_hub("http://127.0.0.1:9", tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "error: the ImageNet weights of test_resnet could not be downloaded (no answer from http://127.0.0.1:9). "
        "Either connect to the network (they come from the Hugging Face hub and are kept in its cache), or set "
        "model.weights to none or to the path of a weight file\n"
    )


def test_a_connection_that_breaks_while_weights_come_is_one_line(tmp_path):
    class Broken(Hub):
        body = bytes(100_000)

        def do_GET(self) -> None:
            self.wfile, whole = io.BytesIO(), self.wfile
            self.answer(with_body=True)
            whole.write(self.wfile.getvalue()[:5_000])
            self.wfile, self.close_connection = whole, True

    handler = type("OneHub", (Broken,), {"log": []})
    with serving(handler) as endpoint:
        done = from_hub(endpoint, tmp_path)
    assert f"GET {Hub.place}" in handler.log
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: the ImageNet weights of test_resnet could not be downloaded (")
    assert "Traceback" not in done.stderr


def test_a_network_without_published_weights_is_said():
    with pytest.raises(UserError, match=r"no ImageNet weights of resnet50t: set model\.weights to none"):
        build_model("timm", {"backbone": "resnet50t"}, 7, pretrained=True)


# --- a path


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_all_but_a_head_of_another_size_is_loaded(tmp_path, ending):
    torch.manual_seed(1)
    old, new = build_model("timm", TINY, 5), build_model("timm", TINY, 3)
    path = tmp_path / f"w.{ending}"
    if ending == "pth":
        torch.save({"state_dict": old.state_dict()}, path)
    else:
        save_file(old.state_dict(), path)
    head = new.classifier.weight.clone()
    assert load_weights(new, path).new == ["classifier.weight", "classifier.bias"]
    assert torch.equal(new.classifier.weight, head)
    assert_backbone_is(new.backbone, old.backbone.state_dict())


@pytest.mark.parametrize(("name", "knobs"), ARCHITECTURES)
def test_the_own_file_of_another_class_count_loads_all_but_the_last_layer(tmp_path, name, knobs):
    torch.manual_seed(1)
    old, new = build_model(name, knobs, 5), build_model(name, knobs, 2)
    with torch.no_grad():
        for parameter in old.parameters():
            parameter.add_(1.0)
    save_file(old.state_dict(), tmp_path / "w.safetensors")
    last = list(new.state_dict())[-2:]
    assert load_weights(new, tmp_path / "w.safetensors").new == last
    for key, tensor in new.state_dict().items():
        assert (key in last) != torch.equal(tensor, old.state_dict()[key]), key


def test_the_same_class_count_leaves_nothing_out(tmp_path):
    save_file(build_model("timm", TINY, 3).state_dict(), tmp_path / "w.safetensors")
    assert load_weights(build_model("timm", TINY, 3), tmp_path / "w.safetensors").new == []


@pytest.mark.parametrize(("name", "knobs"), ARCHITECTURES[:-2])
def test_a_plain_timm_file_fits_every_architecture(tmp_path, name, knobs):
    model = build_model(name, knobs, 3)
    weights = timm_weights(model.backbone.name)
    torch.save(weights, tmp_path / "timm.pth")
    kept = {key: tensor.clone() for key, tensor in model.state_dict().items() if not key.startswith("backbone.")}
    load_weights(model, tmp_path / "timm.pth")
    assert_backbone_is(model.backbone.network, weights)
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in kept.items())


@pytest.mark.parametrize(("part", "other"), [("mobilenet", "efficientnet"), ("efficientnet", "mobilenet")])
def test_emas_takes_the_file_of_either_backbone(tmp_path, part, other):
    model = build_model("emas", {}, 3)
    weights = timm_weights(model.backbone[part].name)
    torch.save(weights, tmp_path / "timm.pth")
    kept = model.backbone[other].network.conv_stem.weight.clone()
    count = len(model.backbone[other].state_dict())
    random = summarise_names(load_weights(model, tmp_path / "timm.pth").new)
    assert random[0] == f"backbone.{other} ({count} tensors)"
    assert "excite.fc1.weight" in random
    assert not any(line.startswith(f"backbone.{part}") for line in random)
    assert_backbone_is(model.backbone[part].network, weights)
    assert torch.equal(model.backbone[other].network.conv_stem.weight, kept)


def test_a_file_of_another_backbone_is_refused(tmp_path):
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.pth")
    model = build_model("timm", {"backbone": "resnet34"}, 3)
    # 16 blocks of ten tensors, three shortcuts of five, and the first layer's five: 180; ResNet-18 lacks eight blocks
    message = r"80 of the backbone's 180 tensors .*backbone.network.layer1.2.conv1.weight.*is it of another backbone"
    with pytest.raises(UserError, match=message):
        load_weights(model, tmp_path / "resnet18.pth")


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("resnet18", "resnet34"),
        ("resnet50", "seresnet50"),
        ("efficientnet_b0", "efficientnet_b1"),
        ("convnext_tiny", "convnext_small"),
    ],
)
def test_what_is_left_over_of_a_files_backbone_is_listed(tmp_path, name, other):
    """Every tensor of the network is in the file, so that nothing is missing, but the file is of another one."""
    whole = timm.create_model(other, num_classes=5).state_dict()
    more = {key for key, tensor in whole.items() if tensor.is_floating_point()} - timm.create_model(
        name
    ).state_dict().keys()
    assert more
    model = build_model("timm", {"backbone": name}, 3)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for prefix in ("", "backbone.network."):  # timm's own file, and one of this project
        save_file({prefix + key: tensor.contiguous() for key, tensor in whole.items()}, tmp_path / "w.safetensors")
        with pytest.raises(UserError) as caught:
            load_weights(model, tmp_path / "w.safetensors")
        message = str(caught.value)
        assert f"{name} has no place for {len(more)} tensors of the file's backbone" in message
        listed = message.split("(")[1].split(" and ")[0].split(", ")
        assert len(listed) == 8
        assert set(listed) <= {prefix + key for key in more}
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_file_without_the_statistics_of_batch_norm_is_refused(tmp_path):
    weights = timm_weights("test_resnet")
    torch.save({key: value for key, value in weights.items() if not key.endswith("running_var")}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"backbone.network.bn1.running_var"):
        load_weights(build_model("timm", TINY, 3), tmp_path / "w.pth")


def test_bad_weight_files_are_refused(tmp_path):
    model = build_model("timm", TINY, 3)
    with pytest.raises(UserError, match="there is no file"):
        load_weights(model, tmp_path / "gone.pth")
    for name in ("junk.pth", "junk.safetensors"):
        (tmp_path / name).write_bytes(b"junk")
        with pytest.raises(UserError, match="cannot be read as weights"):
            load_weights(model, tmp_path / name)
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match="none of its 2 tensors fits"):
        load_weights(model, tmp_path / "other.pth")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(UserError, match="it holds a Tensor"):
        load_weights(model, tmp_path / "tensor.pth")


def test_a_file_cannot_run_code(tmp_path):
    torch.save({"a": Evil(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_weights(build_model("timm", TINY, 3), tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


class Evil:
    """A pickle that makes a folder where it is read without care."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_long_lists_are_counted():
    names = ["classifier.weight", "classifier.bias", *(f"aspp.{number}" for number in range(5))]
    names += [f"backbone.{part}.network.{number}" for part in ("one", "two") for number in range(9)]
    assert summarise_names(names) == [
        "classifier.weight",
        "classifier.bias",
        "aspp (5 tensors)",
        "backbone.one (9 tensors)",
        "backbone.two (9 tensors)",
    ]
