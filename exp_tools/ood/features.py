"""A network's own features of an image: means and deviations of the maps of its backbone's middle stages.

What a trained classifier pools has forgotten most of what its classes do not need: by it a third of the photographs of
faces passed for lesions. The maps before it still tell textures and colours, and no metadata are in them.
"""

import functools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from exp_tools.errors import UserError
from exp_tools.io import ProgressBar
from exp_tools.models.backbone import Backbone
from exp_tools.models.normalize import network_inputs


class FeatureTap:
    """Keeps the features of each forward pass of a network, apart for each thread that runs it.

    Of a probe these are the pooled features of its frozen encoders, which are computed once for all heads; of an
    ensemble those of its first member, whose judgement is the ensemble's.

    Raises
    ------
    UserError : the network has no backbone with known stages
    """

    def __init__(self, model: nn.Module) -> None:
        model = model.members[0] if hasattr(model, "members") else model
        self._kept, self._handles = threading.local(), []
        self._pooled = hasattr(model, "classify")
        if self._pooled:
            self._columns = sum(encoder.pooled_features for encoder in model.backbone.values())
            self._handles.append(model.head.register_forward_pre_hook(self._keep_pooled))
            return
        found = [stage for part in model.modules() if isinstance(part, Backbone) for stage in stages_of(part.network)]
        if not found:
            raise UserError(
                f"{type(model).__name__} has no backbone whose stages are known, so no features to judge by"
            )
        for place, (layer, channels) in enumerate(found):
            keep = functools.partial(self._keep_map, place, channels)
            self._handles.append(layer.register_forward_hook(keep))

    def remove(self) -> None:
        """Leave the network as it was."""
        for handle in self._handles:
            handle.remove()

    def _keep_pooled(self, _: nn.Module, given: Any) -> None:
        self._kept.parts = {0: (given[0][:, : self._columns],)}

    def _keep_map(self, place: int, channels: int, _: nn.Module, __: Any, out: Any) -> None:
        self._kept.__dict__.setdefault("parts", {})[place] = map_moments(out, channels)

    def take(self) -> Tensor:
        """The features of this thread's last forward pass, float [B, D]: of maps all means, then all deviations."""
        parts = self._kept.__dict__.pop("parts")
        means = [parts[place][0] for place in sorted(parts)]
        if self._pooled:
            return means[0]
        mean, square = torch.cat(means, dim=1), torch.cat([parts[place][1] for place in sorted(parts)], dim=1)
        return torch.cat([mean, torch.addcmul(square, mean, mean, value=-1).clamp_(min=0).sqrt_()], dim=1)


def stages_of(network: nn.Module) -> list[tuple[nn.Module, int]]:
    """The layers behind the stages of a timm network, without the first and the last, and their channels.

    The last stage knows the classes best and foreign pictures least; the first adds nothing to the next and has the
    largest maps. Of a network whose maps have all one size (a vision transformer) the layers at half and two thirds of
    its depth.
    """
    info = [one for one in getattr(network, "feature_info", None) or [] if one.get("module")]
    depth = len(info)
    if depth > 1 and len({one["reduction"] for one in info}) == 1:
        info = [info[depth // 2], info[2 * depth // 3]]
    elif depth > 1:
        info = info[1 if depth > 3 else 0 : -1]
    names = {name for name, _ in network.named_modules()}
    return [(network.get_submodule(one["module"]), one["num_chs"]) for one in info if one["module"] in names]


def map_moments(out: Any, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and mean square of each channel, float [B, C], of maps [B, C, H, W], [B, H, W, C] or tokens [B, N, C]."""
    out = (out[0] if isinstance(out, Sequence) else out).detach().float()
    axes = (1,) if out.ndim == 3 else (2, 3) if out.shape[1] == channels else (1, 2)
    return out.mean(axes), out.square().mean(axes)  # the map is in the cache; var_mean takes ten times as long


def features_of(
    model: nn.Module,
    images: Path,
    rows: np.ndarray,
    *,
    batch_size: int,
    device: torch.device,
    metadata: np.ndarray | None = None,
) -> np.ndarray:
    """Features of packed images by a network, as they are, in fp32.

    Parameters
    ----------
    model : as `build_model` makes it
    images : images.npy
    rows : rows of it [N]
    batch_size, device : how
    metadata : float32, a row for each image of images.npy; needed where the model uses it

    Returns
    -------
    float32 [N, D]
    """
    packed = np.load(images, mmap_mode="r")
    model = model.to(device, memory_format=torch.channels_last).eval()
    parts, tap = [], FeatureTap(model)
    with torch.inference_mode():
        for start in ProgressBar(range(0, len(rows), batch_size), desc="features", unit="batch", leave=False):
            some = rows[start : start + batch_size]
            numbers = np.zeros((len(some), 3), np.float32) if metadata is None else metadata[some]
            model(*network_inputs(model, torch.from_numpy(packed[some]), torch.from_numpy(numbers), device))
            parts.append(tap.take().float().cpu().numpy())
    tap.remove()
    return np.concatenate(parts)
