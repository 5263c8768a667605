"""Maps of many packed images, a batch at a time."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from exp_tools.data.dataset import FixedOrder, PackedImages
from exp_tools.errors import UserError
from exp_tools.explain.attention import attention_map, has_attention
from exp_tools.explain.gradcam import grad_cam
from exp_tools.models.inputs import network_inputs

BATCH = 32
Method = Callable[[nn.Module, tuple[Tensor, ...], Tensor], np.ndarray]
METHODS: dict[str, Method] = {
    "gradcam": grad_cam,
    "attention": lambda model, inputs, _: attention_map(model, inputs),
}


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
