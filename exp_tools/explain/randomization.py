"""Whether a map depends on what the network has learnt: the model randomisation test.

Weights are replaced by those of an untrained network, from the classifier down to the first layer, and the maps are
compared with those of the trained network. A map that stays as it is shows edges and blobs of the image and nothing of
the network. Adebayo et al.: Sanity Checks for Saliency Maps, NeurIPS 2018, section 3.1 (cascading randomisation).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import cv2
import numpy as np
from torch import Tensor, nn

from exp_tools.explain.overlay import is_flat, unit, upsample
from exp_tools.models.backbone import Backbone

QUARTERS = 4
STEPS = ("head", *(f"head and {part} of the backbone" for part in ("1/4", "1/2", "3/4")), "everything")
"""The random part, step by step; the last step is the untrained network."""

Maps = Mapping[str, np.ndarray]


def randomised_names(model: nn.Module) -> list[set[str]]:
    """Names in the state dict that are random in each of STEPS, each a superset of the one before.

    The head is everything outside the backbones. A backbone is cut into quarters of its layers, in the order in which
    they were built; two parallel backbones are cut alike.
    """
    depth: dict[str, float] = {}
    for prefix, backbone in model.named_modules():
        if isinstance(backbone, Backbone):
            names = [f"{prefix}.{name}" for name in backbone.state_dict()]
            layers = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
            place = {layer: (number + 0.5) / len(layers) for number, layer in enumerate(layers)}
            depth |= {name: place[name.rpartition(".")[0]] for name in names}
    head = {name for name in model.state_dict() if name not in depth}
    return [
        head | {name for name, place in depth.items() if place >= 1 - quarter / QUARTERS}
        for quarter in range(QUARTERS + 1)
    ]


def randomisation_test(
    model: nn.Module, untrained: Sequence[nn.Module], make_maps: Callable[[nn.Module], Maps]
) -> tuple[dict[str, list[dict[str, float]]], dict[str, dict[str, float]], list[Maps]]:
    """Compare the maps of a trained network with those of its randomised copies.

    Parameters
    ----------
    model : the trained network
    untrained : the same architecture with random weights, several draws, on the same device; their weights are changed
    make_maps : gives method -> float [N, H, W] for a network, always for the same images and classes

    Returns
    -------
    by_step : method -> for each of STEPS the `similarity` with the maps of the trained network, over all draws
    chance : method -> the similarity of each image's map with the next image's, both of the trained network: what maps
        have in common that have nothing to do with each other
    maps : those of the trained network, then those of each step of the first draw
    """
    trained, names = _copied(model), randomised_names(model)
    maps = make_maps(model)
    draws = [[make_maps(step) for step in _cascade(trained, network, names)] for network in untrained]
    by_step = {}
    for method, whole in maps.items():
        many = np.concatenate([whole] * len(draws))
        made = [np.concatenate([draw[step][method] for draw in draws]) for step in range(len(STEPS))]
        by_step[method] = [{"randomised": name, **similarity(many, one)} for name, one in zip(STEPS, made, strict=True)]
    chance = {method: similarity(whole, np.roll(whole, 1, axis=0)) for method, whole in maps.items()}
    return by_step, chance, [maps, *draws[0]]


def _cascade(trained: Mapping[str, Tensor], network: nn.Module, names: Sequence[set[str]]) -> Iterator[nn.Module]:
    """The untrained network with trained weights but for the names of each step."""
    random = _copied(network)
    for step in names:
        network.load_state_dict({name: (random if name in step else trained)[name] for name in trained})
        yield network.eval()


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def similarity(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Mean likeness of N pairs of maps float [N, H, W].

    Returns
    -------
    dict with rank_correlation (-1 to 1, of the values as computed), ssim (up to 1, of the maps stretched to 0..1 at 64
    pixels), and blank, the share of pairs of which one is flat and has no ranks: they count in ssim alone
    """
    defined = ~(is_flat(first) | is_flat(second))
    ranks = np.array([rank_correlation(one, other) for one, other in zip(first, second, strict=True)])
    like = [
        structural_similarity(one, other)
        for one, other in zip(unit(upsample(first, 64)), unit(upsample(second, 64)), strict=True)
    ]
    return {
        "rank_correlation": float(ranks[defined].mean()) if defined.any() else float("nan"),
        "ssim": float(np.mean(like)),
        "blank": float((~defined).mean()),
    }


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's correlation over the positions of two maps [H, W], equals sharing a rank; NaN when one is flat."""
    from scipy.stats import rankdata

    x, y = (rankdata(values.ravel()) - (values.size + 1) / 2 for values in (one, other))
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else float("nan")


def structural_similarity(one: np.ndarray, other: np.ndarray) -> float:
    """Mean SSIM of two maps [S, S] with values in 0..1, S ≥ 11: Gaussian windows of 11 pixels, σ = 1.5.

    Wang et al.: Image quality assessment: from error visibility to structural similarity, IEEE TIP 13(4), 2004, with
    K1 = 0.01, K2 = 0.03; windows that reach over the border are left out.
    """

    def local_mean(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (11, 11), 1.5)[5:-5, 5:-5]

    x, y = one.astype(np.float64), other.astype(np.float64)
    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x, var_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    score = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((score / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())
