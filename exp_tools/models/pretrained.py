"""Load weights from a file into a network, and say what fits, what stays new, and what of the file is left over."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from exp_tools.errors import UserError
from exp_tools.models.backbone import Backbone
from exp_tools.models.timm_networks import has_source, resolve
from exp_tools.models.weight_files import Tensors, from_lukemelas, read_weights, wrappers

LISTED = 4
"""Tensors of one part that are listed by name; more are counted."""
SHOWN = 8
"""Tensors that an error lists by name; more are counted."""


@dataclass(frozen=True)
class Match:
    """How a weight file fits a network.

    set, prefix : where in the file the tensors are, and what is taken off the front of their names
    place : where they go: "" for the whole network, `backbone.network.` for a timm network in it
    names : timm's name of what stands there
    fitting : tensors by the network's names
    resampled : position embeddings that were made for another image size, as `pos_embed 24x24 to 14x14`
    new : names of the network's tensors that the file does not have
    missing : those of them without which it is no file of this backbone
    left_over : names of the file's backbone for which the network has no place
    head : names of the file's own classifier, which is not used
    outside : how many other tensors the file has (of a text tower, of a decoder)
    stored : how many tensors the file has in all
    """

    set: str
    prefix: str
    place: str
    names: str
    fitting: dict[str, Tensor]
    resampled: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    wanted: int = 0
    left_over: list[str] = field(default_factory=list)
    head: list[str] = field(default_factory=list)
    outside: int = 0
    stored: int = 0

    def fault(self) -> str | None:
        """Why the file is not loaded, as the end of an error message; None when it fits."""
        if not any(tensor.ndim > 1 for tensor in self.fitting.values()):
            return f"none of its {self.stored} tensors fits this network; is it the right one?"
        if self.missing:
            return (
                f"{len(self.missing)} of the backbone's {self.wanted} tensors are not in it, or not in "
                f"this shape ({_listed(self.missing)}); is it of another backbone?"
            )
        if self.left_over:
            return (
                f"{self.names} has no place for {len(self.left_over)} tensors of the file's backbone "
                f"({_listed(self.left_over)}); is it of another backbone? Set the one that the file is of, or another "
                "file"
            )
        broken = [name for name, tensor in self.fitting.items() if not torch.isfinite(tensor).all()]
        if broken:
            return f"{len(broken)} of its tensors hold NaN or infinite values ({_listed(broken)}); take another file"
        return None

    def report(self) -> str:
        """The match in lines, for people."""
        rows = [
            ("in the file", ", ".join(filter(None, [self.set, self.prefix and f"names without {self.prefix}"]))),
            ("fits", f"{len(self.fitting)} tensors, in {self.place or 'the whole network'} ({self.names})"),
            ("resampled", ", ".join(self.resampled)),
            ("new", ", ".join(summarise_names(self.new))),
            ("left over", _listed(self.left_over)),
            ("not used", _listed(self.head) + (f"; {self.outside} tensors of other parts" if self.outside else "")),
        ]
        return "\n".join(f"  {label:<12}{text.lstrip('; ') or '-'}" for label, text in rows)


def load_weights(model: nn.Module, source: str | Path) -> Match:
    """Copy every tensor of a weight file that fits by name and shape; a head of another class count does not.

    The file may hold this project's whole network, or the plain timm network of a backbone (for a network of two
    backbones, of either), wrapped and named as `match_weights` knows. No file can run code.

    Raises
    ------
    UserError
        The file is missing or unreadable, nothing in it fits, or its backbone is another one: a weight or a running
        statistic of ours is not in it, or one of the file's is left over. Nothing is loaded then.
    """
    match = match_weights(model, source)
    if fault := match.fault():
        raise UserError(f"model.weights {source}: {fault}")
    model.load_state_dict(match.fitting, strict=False)
    return match


def match_weights(model: nn.Module, source: str | Path) -> Match:
    """How a weight file fits a network, which may be on the meta device; nothing is loaded.

    All that `weight_files` knows is tried (sets of tensors in the file, prefixes, other names), at every place in the
    network; what fits most tensors is taken.

    Raises
    ------
    UserError
        The file cannot be read, or the config.json next to it names another backbone.
    """
    source = str(source)
    backbones = {f"{place}.network.": backbone for place, backbone in _backbones(model).items()}
    if has_source(source):
        _require_same(source, backbones.values())
    own = model.state_dict()
    sets = read_weights(source)
    best = max((_match(way, own, backbones) for way in _ways(sets, own, backbones)), key=lambda one: len(one.fitting))
    if best.fault() is not None:
        others = [_match(way, own, backbones) for way in _converted(sets, backbones)]
        best = max([best, *others], key=lambda one: len(one.fitting))
    return best


class _Way(NamedTuple):
    """A way to read a file: where in it, without which prefix, into which place, the tensors by name there."""

    set: str
    prefix: str
    place: str
    named: Mapping[str, Tensor]
    stored: int
    outside: int
    resampled: tuple[str, ...] = ()


def _ways(sets: Mapping[str, Tensors], own: Mapping[str, Tensor], backbones: Mapping[str, Backbone]) -> Iterator[_Way]:
    for kept, tensors in sets.items():
        for prefix in wrappers(tensors):
            inside = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            for place in ("", *backbones):
                named = inside
                if place and "_conv_stem.weight" in inside:
                    named = from_lukemelas(inside, _names_below(own, place))
                yield _Way(kept, prefix, place, named, len(tensors), len(tensors) - len(inside))


def _converted(sets: Mapping[str, Tensors], backbones: Mapping[str, Backbone]) -> Iterator[_Way]:
    """What timm itself makes of a network's original files (OpenAI's CLIP, Meta's DINOv2, Microsoft's Swin, …)."""
    for kept, tensors in sets.items():
        for prefix in wrappers(tensors):
            inside = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            for place, backbone in backbones.items():
                convert = getattr(sys.modules[type(backbone.network).__module__], "checkpoint_filter_fn", None)
                try:
                    named = convert(dict(inside), backbone.network)
                except Exception:  # it is no file that timm knows, and may be anything
                    continue
                positions = getattr(backbone.network, "pos_embed", None)
                other = [
                    f"{name} to {positions.shape[1]} positions"
                    for name, tensor in inside.items()
                    if re.search("pos(itional)?_embed", name)
                    and positions is not None
                    and tensor.shape[-2] != positions.shape[1]
                ]
                outside = max(0, len(tensors) - len(named))
                yield _Way(kept, prefix, place, named, len(tensors), outside, tuple(other))


def _match(way: _Way, own: Mapping[str, Tensor], backbones: Mapping[str, Backbone]) -> Match:
    place = way.place
    fitting, resampled = _fitting(way.named, own, place, backbones)
    optional = tuple(
        f"{at}{layer}." for at, backbone in backbones.items() for layer in backbone.behind if at.startswith(place)
    )
    wanted = [name for name in own if name.startswith(place or "backbone.") and own[name].is_floating_point()]
    floats = [place + name for name, tensor in way.named.items() if tensor.is_floating_point()]
    rest = [name for name in floats if name not in own and name.startswith(place or "backbone.")]
    heads = {at + name for at, backbone in backbones.items() if rest for name in backbone.names_with_head}
    return Match(
        way.set,
        way.prefix,
        place,
        " and ".join(sorted({backbone.name for at, backbone in backbones.items() if at == (place or at)})),
        fitting,
        [*way.resampled, *resampled],
        new=[name for name in own if name not in fitting],
        missing=[name for name in wanted if name not in fitting and not name.startswith(optional)],
        wanted=len(wanted),
        left_over=[name.removeprefix(place) for name in rest if name not in heads],
        head=[name.removeprefix(place) for name in rest if name in heads],
        outside=way.outside,
        stored=way.stored,
    )


def check_start(make: Callable[[], nn.Module], weights: str, image_size: int) -> None:
    """Raise UserError for a backbone, a size or a weight file that cannot work, by shapes alone.

    Parameters
    ----------
    make : builds the network
    weights : `model.weights`, as `weights_source` gives it
    image_size : side of the images in pixels
    """
    with torch.device("meta"), torch.no_grad():
        model = make().eval()
        try:
            inputs = [torch.empty(1, 3, image_size, image_size), torch.empty(1, 3)]
            model(*inputs[: 2 if model.uses_metadata else 1])
        except NotImplementedError:
            pass  # an operation without shapes
    if weights not in ("none", "imagenet"):
        match = match_weights(model, weights)
        if fault := match.fault():
            raise UserError(f"model.weights {weights}: {fault}")


def weights_source(weights: str, knobs: Mapping[str, Any]) -> str:
    """`model.weights`, or for `none` the backbone's own source (`local-dir:…`, `hf-hub:…`) if it has one."""
    backbone = str(knobs.get("backbone", ""))
    return backbone if weights == "none" and has_source(backbone) else weights


def resolved(knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Knobs whose backbones are timm's names: what config.json says of a folder or repository is in `options`.

    Those of a list `encoders` lose their weights too: they are in the model file.
    """
    if "encoders" in knobs:
        named = [{key: encoder[key] for key in ("backbone", "options")} for encoder in knobs["encoders"]]
        return {**knobs, "encoders": [resolved(encoder) for encoder in named]}
    backbone = str(knobs.get("backbone", ""))
    if not has_source(backbone):
        return dict(knobs)
    architecture, options = resolve(backbone)
    return {**knobs, "backbone": architecture, "options": options | (knobs.get("options") or {})}


def summarise_names(names: Iterable[str]) -> list[str]:
    """Names of tensors for a person: in their order, of a part with many only the part and the count.

    A part is a child of the network, or of its backbone: `classifier.weight`, `backbone.efficientnet (358 tensors)`.
    """
    parts: dict[str, list[str]] = {}
    for name in names:
        depth = 2 if name.startswith("backbone.") else 1
        parts.setdefault(".".join(name.split(".")[:depth]), []).append(name)
    lines = []
    for part, members in parts.items():
        lines += members if len(members) <= LISTED else [f"{part} ({len(members)} tensors)"]
    return lines


def _backbones(model: nn.Module) -> dict[str, Backbone]:
    """The timm networks in a model, by place."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Backbone)}


def _require_same(source: str, backbones: Iterable[Backbone]) -> None:
    """Raise UserError when the config.json of a source names none of the backbones."""
    architecture = resolve(source)[0].split(".")[0]
    ours = sorted({resolve(backbone.name)[0].split(".")[0] for backbone in backbones})
    if architecture not in ours:
        raise UserError(
            f"model.weights: {source} is of {architecture}, the network's backbone is {' and '.join(ours)}: "
            f"set the backbone to {architecture}, or take other weights"
        )


def _names_below(own: Iterable[str], place: str) -> list[str]:
    return [name.removeprefix(place) for name in own if name.startswith(place)]


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest


def _fitting(
    stored: Mapping[str, Tensor], own: Mapping[str, Tensor], place: str, backbones: Mapping[str, Backbone]
) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors that fit by name and shape, position embeddings resampled where they must be."""
    fitting, resampled = {}, []
    for name, tensor in stored.items():
        target = own.get(place + name)
        if target is None:
            continue
        if target.shape == tensor.shape:
            fitting[place + name] = tensor
        elif name.endswith("pos_embed") and (made := _resampled(tensor, place + name, target, backbones)) is not None:
            fitting[place + name], sides = made
            resampled.append(f"{name} {sides}")
    return fitting, resampled


def _resampled(
    tensor: Tensor, name: str, target: Tensor, backbones: Mapping[str, Backbone]
) -> tuple[Tensor, str] | None:
    """Position embeddings [1, prefix + H·W, C] for the network's own grid; None where they are none."""
    network = next((backbone.network for at, backbone in backbones.items() if name == f"{at}pos_embed"), None)
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if grid is None or tensor.ndim != 3 or target.ndim != 3 or tensor.shape[2] != target.shape[2]:
        return None
    prefix = target.shape[1] - grid[0] * grid[1]
    side = round(max(0, tensor.shape[1] - prefix) ** 0.5)
    if prefix < 0 or not side or side**2 + prefix != tensor.shape[1]:
        return None
    made = resample_abs_pos_embed(tensor.float(), list(grid), num_prefix_tokens=prefix)
    return made.to(tensor.dtype), f"{side}x{side} to {grid[0]}x{grid[1]}"
