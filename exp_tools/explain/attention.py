"""The map that a network with soft attention weights its features with."""

import numpy as np
import torch
from torch import Tensor, nn


def has_attention(model: nn.Module) -> bool:
    """Whether the network has an attention map of its own."""
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
    with torch.no_grad(), torch.autocast(inputs[0].device.type, enabled=False):
        return model.attention_map(inputs[0]).float().cpu().numpy()
