"""timm's networks by name, with errors that a person can act on, and the shapes of what they make of an image.

A name may be timm's own, with a tag (`resnet50.a1_in1k`), or that of a folder or a repository of the Hugging Face hub
that timm can read: `local-dir:PATH`, `hf-hub:owner/name`. Those two bring their architecture, its options and the
pixels' mean and deviation (config.json).
"""

import functools
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import requests
import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache
from timm.models import load_model_config_from_hf
from timm.models._hub import load_model_config_from_path
from torch import Tensor, nn
from torch.nn import functional

from exp_tools.errors import UserError, did_you_mean
from exp_tools.project import project_root, users_path

SOURCES = ("hf-hub:", "local-dir:")
OURS = {"num_classes", "in_chans", "features_only", "out_indices", "pretrained", "checkpoint_path", "scriptable"}
"""Options of timm.create_model that the pipeline sets itself."""
CONFIGURED = "pretrained_cfg_overlay"
FEW_CHANNELS = 8
"""oneDNN writes past the end of a gradient of strided pointwise convolutions with fewer channels (AVX2, fp32)."""


class Shapes(NamedTuple):
    """What a network makes of an image: its map [C, H, W], its pooled features, the layers that only those need.

    `pooled` is None for an encoder that has no pooling of its own.
    """

    map: tuple[int, int, int]
    pooled: int | None
    behind: tuple[str, ...]


def has_source(name: str) -> bool:
    """Whether a name says where the network is from: `hf-hub:owner/name` or `local-dir:PATH`."""
    return name.startswith(SOURCES)


def resolve(name: str) -> tuple[str, dict[str, Any]]:
    """timm's name of an architecture and options for `create_timm`; for one with a source those of its config.json.

    Raises UserError when the config cannot be read.
    """
    if not has_source(name):
        return name, {}
    source, _, place = name.partition(":")
    try:
        if source == "hf-hub":
            require_hub(place, ("config.json",))
            config, architecture, options = load_model_config_from_hf(place)
        else:
            config, architecture, options = load_model_config_from_path(str(users_path(place, project_root())))
        pixels = {key: list(config[key]) for key in ("mean", "std", "input_size") if key in config}
        ours = {key: value for key, value in options.items() if key not in OURS}
        return architecture, ours | ({CONFIGURED: pixels} if pixels else {})
    except Exception as error:  # the hub's client lets errors of the libraries below it through
        raise UserError(
            f"{name} gives no network ({first_line(error)}): it must have timm's config.json next to its weights"
            + hub_remedy(name)
        ) from error


def hub_remedy(name: str) -> str:
    """What to do without a network, for a name that needs it."""
    if not name.startswith("hf-hub:"):
        return ""
    return ". Without a connection, download the repository elsewhere and write local-dir:FOLDER"


def create_timm(name: str, *, pretrained: bool, options: Mapping[str, Any] | None = None, **fixed: Any) -> nn.Module:
    """timm.create_model, for images of any size where timm can, with errors that a person can act on.

    `options` are the user's: UserError names one that the network does not take.
    """
    architecture, configured = resolve(name)
    plain, _, tag = architecture.partition(".")
    if not timm.is_model(plain):
        near = [found.split(".")[0] for found in timm.list_models(f"*{plain.split('_')[0]}*")][:5]
        hint = did_you_mean(plain.lower(), timm.list_models())
        hint = hint or (f"; timm has for example {', '.join(near)}" if near else "")
        raise UserError(
            f"timm has no backbone {architecture!r}{hint}. All names: python -c 'import timm; "
            "print(timm.list_models())'"
        )
    tags = [found.partition(".")[2] for found in timm.list_pretrained(f"{plain}.*")]
    if tag and tag not in tags:
        raise UserError(f"timm has no weights {tag!r} of {plain}; it has {', '.join(tags) or 'none'}")
    options = {**configured, **(options or {})}
    check_options(plain, options)
    if pretrained and has_source(name):
        raise UserError(f"{name} brings its own weights: set model.weights to none, or to others for the same network")
    if pretrained and not tags:
        raise UserError(f"timm has no ImageNet weights of {name}: set model.weights to none or to a weight file")
    try:
        if pretrained:
            _require_weights(architecture)
        network = _create(architecture, pretrained=pretrained, **options, **fixed)
    except Exception as error:  # the hub's client lets errors of the libraries below it through
        if not pretrained:
            raise
        raise UserError(
            f"the ImageNet weights of {name} could not be downloaded ({first_line(error)}). Either "
            "connect to the network (they come from the Hugging Face hub and are kept in its cache), or set "
            "model.weights to none or to the path of a weight file"
        ) from error
    make_strides_safe(network)
    return network


def check_options(plain: str, options: Mapping[str, Any]) -> None:
    """Raise UserError for an option that timm's network of this name does not take, or with a value that it refuses."""
    wanted = {key: value for key, value in options.items() if key != CONFIGURED}
    if taken := sorted(OURS & wanted.keys()):
        raise UserError(f"model.timm.options: {', '.join(taken)} is set by the pipeline itself; leave it out")
    if wanted.get("global_pool", "avg") == "":
        raise UserError("model.timm.options: global_pool '' pools nothing; name a pooling, or leave it out")
    if not wanted:
        return
    try:
        with torch.device("meta"):
            _create(plain, pretrained=False, num_classes=0, **wanted)
    except Exception as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is None:
            raise UserError(f"model.timm.options {wanted}: {plain} refuses them ({first_line(error)})") from error
        with torch.device("meta"):
            known = inspect.signature(type(_create(plain, pretrained=False)).__init__).parameters
        known = [key for key in known if key not in {"self", "args", "kwargs"} | OURS]
        raise UserError(
            f"model.timm.options: {plain} takes no {unknown[1]!r}{did_you_mean(unknown[1], known)}; it takes "
            f"{', '.join(known)}"
        ) from error


def _create(name: str, **options: Any) -> nn.Module:
    try:  # a vision transformer takes one size by default; other networks do not know these arguments
        return timm.create_model(name, **{"dynamic_img_size": True, "dynamic_img_pad": True} | options)
    except TypeError:
        return timm.create_model(name, **options)


def require_hub(place: str, files: tuple[str, ...]) -> None:
    """Raise OSError when no file is in the cache and no hub answers: its own client tries for a minute."""
    repository, _, revision = place.partition("@")
    cached = any(try_to_load_from_cache(repository, file, revision=revision or None) for file in files)
    if not place or constants.HF_HUB_OFFLINE or cached:
        return
    try:
        requests.head(constants.ENDPOINT, timeout=10)
    except requests.exceptions.SSLError:
        pass  # it is there; the client has its own certificates
    except (requests.ConnectionError, requests.Timeout) as error:
        raise OSError(f"no answer from {constants.ENDPOINT}") from error


def _require_weights(name: str) -> None:
    """`require_hub` for timm's own weights of a network."""
    config = timm.get_pretrained_cfg(name)
    place = config.hf_hub_id or ""
    place += f"{config.architecture}.{config.tag}" if place.endswith("/") else ""
    require_hub(place, ("model.safetensors", "pytorch_model.bin"))


def first_line(error: Exception) -> str:
    """An error's message without what follows its first line; its class where there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# --- shapes


def shapes(name: str, options: Mapping[str, Any], size: int | None = None) -> Shapes:
    """The shapes of a network at `size` pixels, its own size by default; nothing is computed.

    Raises
    ------
    UserError
        It cannot take that size, or gives no square map.
    """
    return _shapes(name, json.dumps(dict(options), sort_keys=True), size)


@functools.lru_cache(maxsize=64)
def _shapes(name: str, options: str, size: int | None) -> Shapes:
    with torch.device("meta"), torch.no_grad():
        network = create_timm(name, pretrained=False, num_classes=0, options=json.loads(options)).eval()
        native = network.pretrained_cfg["input_size"][-1]
        size = size or json.loads(options).get("img_size") or native
        size = size if isinstance(size, int) else size[-1]
        early, late, now = set(), set(), set()
        for place, layer in network.named_modules():
            if any(True for _ in layer.parameters(recurse=False)):
                layer.register_forward_hook(lambda *_, place=place: now.add(place))
        now = early
        try:
            features = network.forward_features(torch.empty(2, 3, size, size))
        except Exception as error:  # a network may refuse a size with any error
            raise UserError(
                f"{name} cannot take images of {size} pixels, it was made for {native}: change prepare.image_size or "
                f"the backbone ({first_line(error)})"
            ) from error
        found = as_map(features, network, name)
        now = late
        pooled = head_of(network, features)
    if pooled is not None and pooled.ndim != 2:
        pooled = None
    if pooled is None:
        return Shapes(tuple(found.shape[1:]), None, ())
    return Shapes(tuple(found.shape[1:]), pooled.shape[1], tuple(sorted(late - early)))


def head_of(network: nn.Module, features: Any) -> Tensor | None:
    """timm's pooled features [B, D] before the classifier; None for an encoder that has no pooling of its own."""
    try:
        return network.forward_head(features, pre_logits=True)
    except (NotImplementedError, AttributeError, TypeError):
        return None


def as_map(features: Any, network: nn.Module, name: str) -> Tensor:
    """The last map [B, C, H, W], H = W, of what `forward_features` gives for square images.

    It may be that, [B, H, W, C], tokens [B, prefix + H·W, C], channels of tokens [B, C, H·W], or several of them, of
    which the last counts. Raises UserError when there is none.
    """
    while isinstance(features, tuple | list | dict):
        features = list(features.values() if isinstance(features, dict) else features)[-1]
    if isinstance(features, Tensor) and features.ndim == 4:
        _, first, second, third = features.shape
        return features.permute(0, 3, 1, 2) if first == second != third else features
    if isinstance(features, Tensor) and features.ndim == 3:
        known = getattr(network, "feature_info", None)
        channels = known[-1]["num_chs"] if isinstance(known, list) and known else None
        if features.shape[1] == channels != features.shape[2]:
            features = features.transpose(1, 2)
        told = getattr(network, "num_prefix_tokens", None)
        for prefix in (0, 1, 2) if told is None else (told,):
            tokens = features[:, prefix:]
            side = round(tokens.shape[1] ** 0.5)
            if side and side**2 == tokens.shape[1]:
                return tokens.transpose(1, 2).unflatten(2, (side, side))
    raise UserError(f"the features of {name} form no square map; choose another backbone")


# --- layers


class SubsampledConv2d(nn.Conv2d):
    """A strided pointwise convolution, as a subsampling and one of stride 1: the same products."""

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride[0], :: self.stride[1]]
        return functional.conv2d(x, self.weight, self.bias, groups=self.groups)


def make_strides_safe(network: nn.Module) -> None:
    """Let no convolution of a network reach the kernel that corrupts memory (see FEW_CHANNELS)."""
    for layer in _strided_pointwise(network):
        layer.__class__ = SubsampledConv2d


def _strided_pointwise(network: nn.Module) -> Iterator[nn.Conv2d]:
    for layer in network.modules():
        few = type(layer) is nn.Conv2d and layer.in_channels < FEW_CHANNELS
        if few and layer.kernel_size == (1, 1) and layer.stride != (1, 1) and layer.padding == (0, 0):
            yield layer
