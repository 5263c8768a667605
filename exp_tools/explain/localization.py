"""The share of a map on the lesion, against that of a uniform map."""

from collections.abc import Sequence

import numpy as np

from exp_tools.explain.overlay import upsample


def energy_inside(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Share of each map's energy that lies inside the lesion's mask.

    The proportion of the energy-based pointing game (Wang et al.: Score-CAM, CVPR workshops 2020, section 4.3), with
    the lesion's outline in place of a bounding box.

    Parameters
    ----------
    maps : float [N, H, W], not negative; scaled to the masks' size
    masks : bool [N, S, S]

    Returns
    -------
    float [N] in 0..1; NaN for a map that is zero everywhere
    """
    large = upsample(maps, masks.shape[1]).astype(np.float64)
    total = large.sum(axis=(1, 2))
    inside = (large * masks).sum(axis=(1, 2))
    return np.divide(inside, total, out=np.full(len(maps), np.nan), where=total > 0)


def localization_report(
    maps: dict[str, np.ndarray], masks: np.ndarray, labels: Sequence[str], classes: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """Energy inside the lesion by method, for all images and for each class.

    Parameters
    ----------
    maps : method -> float [N, H, W]
    masks : bool [N, S, S]
    labels : true diagnosis of each image [N]
    classes : diagnoses in order; those without an image are not listed

    Returns
    -------
    method -> "all" or diagnosis -> images (whose map is not blank), blank (images whose map is zero everywhere), energy
    (mean share of the map inside the mask), area (mean share of the image inside the mask, what an even map would
    have; of the same images)
    """
    report: dict[str, dict[str, dict[str, float]]] = {}
    area = masks.mean(axis=(1, 2))
    named = np.asarray(labels)
    for method, made in maps.items():
        energy = energy_inside(made, masks)
        parts = {"all": np.full(len(named), True)} | {code: named == code for code in classes}
        report[method] = {part: _mean(energy[rows], area[rows]) for part, rows in parts.items() if rows.any()}
    return report


def _mean(energy: np.ndarray, area: np.ndarray) -> dict[str, float]:
    defined = ~np.isnan(energy)
    return {
        "images": int(defined.sum()),
        "blank": int((~defined).sum()),
        "energy": float(energy[defined].mean()) if defined.any() else float("nan"),
        "area": float(area[defined].mean()) if defined.any() else float("nan"),
    }
