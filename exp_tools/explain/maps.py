"""Maps of many packed images, a batch at a time."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from exp_tools.data.inputs.dataset import FixedOrder, PackedImages
from exp_tools.errors import UserError
from exp_tools.explain.watched import map_and_gradient
from exp_tools.models.normalize import network_inputs


def grad_cam(model: nn.Module, inputs: tuple[Tensor, ...], target: Tensor) -> np.ndarray:
    """Where the feature map speaks for a class.

    L_c = ReLU(Σ_k α_k A_k), where A_k is channel k of the map that `watched` chooses and α_k the mean over its
    positions of the gradient of the logit of class c (equations 1 and 2 of the paper). Computed in fp32, also under
    autocast and under inference_mode; the model is not changed, and several threads may explain one model at once.

    Parameters
    ----------
    model : in evaluation mode, as `watched.map_and_gradient` takes it
    inputs : the arguments of its forward, as `network_inputs` makes them, for B images
    target : int64 [B], the class to explain of each image

    Returns
    -------
    float32 [B, H, W], the size of the feature map, not negative; all zero where nothing speaks for the class
    """
    if hasattr(model, "members"):  # an ensemble
        return _mean_map([grad_cam(member, own, target) for member, own in model.with_inputs(inputs)])
    device = inputs[0].device.type
    chosen = target.to(inputs[0].device)[:, None]
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
        usable = tuple(_usable(tensor) for tensor in inputs)
        found, gradient = map_and_gradient(model, usable, lambda logits: logits.gather(1, chosen[: len(logits)]).sum())
        weights = gradient.mean(dim=(2, 3), keepdim=True)
        return (weights * found).sum(dim=1).relu().float().cpu().numpy()


def _usable(tensor: Tensor) -> Tensor:
    """A tensor that was made under inference_mode takes part in no gradient; its copy does."""
    return tensor.clone() if tensor.is_inference() else tensor


def _mean_map(maps: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of the members' maps [B, H, W] on the finest of their grids, each image's map scaled to at most 1."""
    finest = max((found.shape[1:] for found in maps), key=math.prod)
    scaled = []
    for found in maps:
        top = found.max(axis=(1, 2), keepdims=True)
        part = torch.from_numpy(found / np.where(top > 0, top, 1))[:, None]
        if found.shape[1:] != finest:
            part = torch.nn.functional.interpolate(part, finest, mode="bilinear", align_corners=False)
        scaled.append(part[:, 0].numpy())
    return np.mean(scaled, axis=0)


def has_attention(model: nn.Module) -> bool:
    """Whether the network has an attention map of its own."""
    if hasattr(model, "members"):  # an ensemble
        return all(has_attention(member) for member in model.members)
    return hasattr(model, "attention_map") and getattr(model, "attention", None) is not None


def attention_map(model: nn.Module, inputs: tuple[Tensor, ...]) -> np.ndarray:
    """Attention of B images over the positions of the map that the network attends to.

    Parameters
    ----------
    model : in evaluation mode, one for which `has_attention`
    inputs : the arguments of its forward, as `network_inputs` makes them

    Returns
    -------
    float32 [B, H, W], not negative, adds up to the number of heads; unlike Grad-CAM the same for every class
    """
    if hasattr(model, "members"):  # an ensemble
        return _mean_map([attention_map(member, own) for member, own in model.with_inputs(inputs)])
    with torch.no_grad(), torch.autocast(inputs[0].device.type, enabled=False):
        return model.attention_map(inputs[0]).float().cpu().numpy()


BATCH = 32
Method = Callable[[nn.Module, tuple[Tensor, ...], Tensor], np.ndarray]
METHODS: dict[str, Method] = {
    "gradcam": grad_cam,
    "attention": lambda model, inputs, _: attention_map(model, inputs),
}


def positions(model: nn.Module, image_size: int) -> int:
    """How many positions the feature map has; a map of a single one is the same everywhere and means nothing."""
    parameter = next(model.parameters())
    with torch.inference_mode():
        return model.feature_map(parameter.new_zeros(1, 3, image_size, image_size)).shape[2:].numel()


def methods_of(model: nn.Module, wanted: str) -> list[str]:
    """The keys of METHODS that `explain.method` asks for; "auto" takes those that the network has.

    Raises UserError when attention is asked for and the network has none.
    """
    if wanted == "attention" and not has_attention(model):
        raise UserError(
            "explain.method is attention, but the model has no attention map (only soft_attention with enabled: true "
            "has one); write auto or gradcam"
        )
    if wanted != "auto":
        return [wanted]
    return [name for name in METHODS if name != "attention" or has_attention(model)]


def explain_rows(
    model: nn.Module,
    images: PackedImages,
    rows: np.ndarray,
    targets: np.ndarray,
    methods: Sequence[str],
    device: torch.device,
) -> dict[str, np.ndarray]:
    """Maps of some of the packed images.

    Parameters
    ----------
    model : in evaluation mode, on `device`
    images : packed images, with the metadata that the model takes
    rows : rows of images.npy [N], at least one
    targets : int [N], the class to explain of each
    methods : keys of METHODS

    Returns
    -------
    method -> float32 [N, H, W], not negative, in the size that the network computes in
    """
    made: dict[str, list[np.ndarray]] = {name: [] for name in methods}
    start = 0
    for keys in FixedOrder(rows, BATCH):
        batch = images.__getitems__(keys)
        inputs = network_inputs(model, torch.from_numpy(batch.images), torch.from_numpy(batch.metadata), device)
        target = torch.tensor(targets[start : start + len(keys)], dtype=torch.int64)
        start += len(keys)
        for name in methods:
            made[name].append(METHODS[name](model, inputs, target))
    return {name: np.concatenate(parts) for name, parts in made.items()}
