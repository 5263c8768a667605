"""Architectures by name. Each is one file in `architectures/`, imported when its name is requested."""

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model as load_tensors
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from exp_tools.data.inputs.metadata import Vocabulary
from exp_tools.errors import UserError, did_you_mean
from exp_tools.models.model_file import OOD_PREFIX, ModelFacts, read_facts

_BUILDERS: dict[str, Callable[..., nn.Module]] = {}
_IMAGE_SIZES: dict[str, int] = {}
ENSEMBLE = "ensemble"
"""The architecture that a model file of several networks names."""
FOLDERS = [str(Path(__file__).with_name("architectures"))]


def register(builder: Callable[..., nn.Module] | None = None, *, image_size: int = 224) -> Callable:
    """Decorator: offer `builder(num_classes, *, pretrained=False, **knobs)` under its own name.

    The name must be the file's, the knobs those of the section `model.<name>` in params.yaml, and their defaults the
    published architecture, for images of `image_size` pixels. The first line of the docstring is what `exp-tools
    models` prints.
    """
    if builder is None:
        return lambda builder: register(builder, image_size=image_size)
    _BUILDERS[builder.__name__] = builder
    _IMAGE_SIZES[builder.__name__] = image_size
    return builder


def list_models() -> list[str]:
    """Names of all architectures, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(FOLDERS) if not module.name.startswith("_"))


def build_model(name: str, knobs: dict[str, Any], num_classes: int, *, pretrained: bool = False) -> nn.Module:
    """Build an architecture; it maps float [B, 3, S, S], normalised, to logits [B, num_classes].

    The module has `backbone` (all that may be pretrained), `feature_map(x)` [B, C, H, W], `pixel_mean` and `pixel_std`
    (three numbers each in 0..1), and `uses_metadata`: whether its forward takes float [B, 3] of metadata.encode too;
    then it also takes what training.mixup adds, a second row [B, 3] and the share of the first [B, 1].

    Raises
    ------
    UserError
        The name is unknown, or the backbone is.
    """
    if name == ENSEMBLE:
        return _ensemble(knobs, num_classes)
    return _builder(name)(num_classes, pretrained=pretrained, **knobs)


def _ensemble(knobs: dict[str, Any], num_classes: int) -> nn.Module:
    """The networks of `knobs["members"]`: {architecture, knobs, temperature, bias, pixel_mean, pixel_std} each."""
    members = knobs["members"]
    networks = [build_model(member["architecture"], member["knobs"], num_classes) for member in members]
    for network, member in zip(networks, members, strict=True):
        network.pixel_mean, network.pixel_std = tuple(member["pixel_mean"]), tuple(member["pixel_std"])
    module = importlib.import_module(f"exp_tools.models.architectures._{ENSEMBLE}")  # no stage makes or reads one
    return module.Ensemble(networks, [one["temperature"] for one in members], [one["bias"] for one in members])


def metadata_knobs(name: str, vocabulary: Vocabulary) -> dict[str, int]:
    """Sizes of the vocabulary for a builder that takes `sexes` and `localizations`; none for another."""
    sizes = {"sexes": len(vocabulary.sex), "localizations": len(vocabulary.localization)}
    taken = inspect.signature(_builder(name)).parameters
    return {knob: size for knob, size in sizes.items() if knob in taken}


def depthwise_share(name: str, knobs: dict[str, Any], image_size: int) -> float:
    """Share, 0..1, of a network's multiply-adds (of convolutions and linear layers) that depthwise convolutions do.

    Found with shapes alone, without numbers. 1.0 for a network that cannot be run so, of which nothing is known.

    Raises
    ------
    UserError
        As `build_model`, or the network takes no images of `image_size` pixels.
    """
    sums = {True: 0, False: 0}

    def count(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        each = module.weight[0].numel()
        depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
        sums[depthwise] += output.numel() * each

    try:
        with torch.device("meta"), torch.no_grad():
            network = build_model(name, knobs, 2).eval()
            for module in network.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.register_forward_hook(count)
            inputs = [torch.empty(1, 3, image_size, image_size), torch.empty(1, 3)]
            network(*inputs[: 2 if network.uses_metadata else 1])
    except (NotImplementedError, RuntimeError):
        return 1.0
    return sums[True] / max(1, sum(sums.values()))


def describe_models(num_classes: int = 7) -> list[dict[str, Any]]:
    """Describe each architecture at its published defaults, whatever params.yaml says; nothing is computed.

    Returns
    -------
    For each: name, parameters with `num_classes`, how many of them lie outside the backbone, multiply_adds of one image
    of image_size pixels (convolutions and matrix products, as torch counts them), and a line of summary
    """
    return [_describe(name, num_classes) for name in list_models()]


def _describe(name: str, num_classes: int) -> dict[str, Any]:
    builder, size = _builder(name), _IMAGE_SIZES[name]
    with torch.device("meta"):  # shapes without numbers
        network = builder(num_classes).eval()
        inputs = [torch.empty(1, 3, size, size)]
        if network.uses_metadata:
            inputs.append(torch.empty(1, 3))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*inputs)
    parameters = count_parameters(network)
    return {
        "name": name,
        "parameters": parameters,
        "outside_backbone": parameters - count_parameters(network.backbone),
        "multiply_adds": counter.get_total_flops() // 2,
        "image_size": size,
        "summary": (builder.__doc__ or "").strip().splitlines()[0],
    }


def count_parameters(module: nn.Module) -> int:
    """Number of parameters of a module that can learn."""
    return sum(parameter.numel() for parameter in module.parameters())


def _builder(name: str) -> Callable[..., nn.Module]:
    if name not in list_models():
        hint = did_you_mean(name, list_models())
        raise UserError(f"there is no architecture {name!r}; choose one of {', '.join(list_models())}{hint}")
    importlib.import_module(f"exp_tools.models.architectures.{name}")
    return _BUILDERS[name]


def load_model(path: Path) -> tuple[nn.Module, ModelFacts]:
    """Build the network a model file describes, with its weights, in evaluation mode, on the CPU."""
    facts = read_facts(path)
    for name, knobs in _parts(path, facts):
        _check_knobs(path, name, knobs)
    model = _built(path, facts)
    try:
        missing, unknown = load_tensors(model, path, strict=False)
        unknown = [name for name in unknown if not name.startswith(OOD_PREFIX)]
        if missing or unknown:
            raise ValueError(f"tensors are missing ({sorted(missing)}) or unknown ({sorted(unknown)})")
    except (RuntimeError, SafetensorError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: its weights do not fit the architecture {facts.architecture} it names: {reason[:400]}; it may be "
            "of an earlier version: train it again"
        ) from error
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    broken = [name for name, tensor in tensors.items() if "mask" not in name and not torch.isfinite(tensor).all()]
    if broken:
        raise UserError(
            f"{path}: {len(broken)} of its tensors are NaN or infinite ({broken[0]}, …), so it predicts nothing: "
            "train it again with a lower train.lr, or fetch the file again"
        )
    _require_vocabulary(path, model, facts)
    model.pixel_mean, model.pixel_std = tuple(facts.pixel_mean), tuple(facts.pixel_std)
    return model.eval(), facts


def _parts(path: Path, facts: ModelFacts) -> list[tuple[str, dict[str, Any]]]:
    """Architecture and knobs of the network that a model file describes, or of each of its members."""
    if facts.architecture != ENSEMBLE:
        return [(facts.architecture, facts.knobs)]
    members, size = facts.knobs.get("members"), len(facts.classes)
    try:
        for one in members:
            numbers = [one["temperature"], *one["bias"], *one["pixel_mean"], *one["pixel_std"]]
            lengths = [len(one[name]) for name in ("bias", "pixel_mean", "pixel_std")]
            if lengths != [size, 3, 3] or not all(map(math.isfinite, numbers)):
                raise ValueError
            if one["temperature"] <= 0 or min(one["pixel_std"]) <= 0:
                raise ValueError
        if not members:
            raise ValueError
        return [(one["architecture"], dict(one["knobs"])) for one in members]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: its header does not say what its members are, so it was changed; make it again with `exp-tools "
            "ensemble`"
        ) from error


def _check_knobs(path: Path, name: str, knobs: dict[str, Any]) -> None:
    known = inspect.signature(_builder(name)).parameters
    if unknown := [knob for knob in knobs if knob not in known]:
        raise UserError(
            f"{path}: {name} has no knob {unknown[0]!r}{did_you_mean(unknown[0], known)}: "
            "train it again, or use the version that wrote it"
        )


def _built(path: Path, facts: ModelFacts) -> nn.Module:
    """The network without its weights. Raises UserError for knobs that it cannot be built with."""
    try:
        return build_model(facts.architecture, facts.knobs, len(facts.classes))
    except UserError:
        raise
    except Exception as error:  # knobs of a wrong type or value, of which each builder makes its own error
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        raise UserError(
            f"{path}: {facts.architecture} cannot be built with the knobs of its header ({reason}); fetch it again"
        ) from error


def _require_vocabulary(path: Path, model: nn.Module, facts: ModelFacts) -> None:
    """Raise UserError where the network and the vocabulary of its file do not go together."""
    wrong = ["it has none, which the network needs"] if model.uses_metadata and facts.vocabulary is None else []
    if facts.vocabulary is not None:
        for name, knobs in _parts(path, facts):
            known = inspect.signature(_builder(name)).parameters
            sizes = metadata_knobs(name, Vocabulary.from_dict(facts.vocabulary))
            wrong += [
                f"{knob} is {built}, its words are {size}"
                for knob, size in sizes.items()
                if (built := knobs.get(knob, known[knob].default)) < size
            ]
    if wrong:
        raise UserError(
            f"{path}: its header has no usable vocabulary ({wrong[0]}); train it again, or fetch the file again"
        )
