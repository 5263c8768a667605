"""Grad-CAM on the last feature map of any architecture.

Selvaraju et al.: Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization, ICCV 2017.
"""

import copy

import numpy as np
import torch
from torch import Tensor, nn


def grad_cam(model: nn.Module, inputs: tuple[Tensor, ...], target: Tensor) -> np.ndarray:
    """Where the feature map speaks for a class.

    L_c = ReLU(Σ_k α_k A_k), where A_k is channel k of `model.feature_map` and α_k the mean over its positions of the
    gradient of the logit of class c (equations 1 and 2 of the paper). Computed in fp32, also under autocast and under
    inference_mode; the model is not changed, and several threads may explain one model at once.

    Parameters
    ----------
    model : in evaluation mode; its forward goes through its own `feature_map`
    inputs : the arguments of its forward, as `network_inputs` makes them, for B images
    target : int64 [B], the class to explain of each image

    Returns
    -------
    float32 [B, H, W], the size of the feature map, not negative; all zero where nothing speaks for the class
    """
    kept: list[Tensor] = []

    def feature_map(x: Tensor) -> Tensor:
        with torch.no_grad():  # only what lies behind the map needs gradients
            features = model.feature_map(x)
        kept.append(features.detach().requires_grad_())
        return kept[0]

    observed = copy.copy(model)  # shares weights and layers, but not this attribute
    observed.feature_map = feature_map
    device = inputs[0].device.type
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
        logits = observed(*(_usable(tensor) for tensor in inputs))
        score = logits.gather(1, target.to(logits.device)[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, kept[0])
        weights = gradient.mean(dim=(2, 3), keepdim=True)
        return (weights * kept[0].detach()).sum(dim=1).relu().float().cpu().numpy()


def _usable(tensor: Tensor) -> Tensor:
    """A tensor that was made under inference_mode takes part in no gradient; its copy does."""
    return tensor.clone() if tensor.is_inference() else tensor
