"""The dermoscopic features of each diagnosis, as layers over the skin.

The criteria are those of the textbooks (Kittler et al., Standardization of terminology in dermoscopy, J Am Acad
Dermatol 74, 2016), simplified and enlarged so that a small network can learn them from small pictures. Colour hardly
tells the classes apart: lesions of one diagnosis vary more in tone than the means of two diagnoses differ.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from exp_tools.data.synthetic.textures import (
    BOX,
    arborising_vessels,
    cells,
    discs,
    folds,
    fractal_noise,
    hairpin_vessels,
    network,
    outline,
    smooth_noise,
    step,
    streaks,
)

AMBIGUOUS_SHARE = 0.06
"""Share of lesions that look a third to two thirds like another diagnosis."""

LAYERS = ("melanin", "blood", "veil", "white", "crust")
"""Two optical densities, then three opacities in 0..1: blue-grey veil, scar or scale or cyst, yellow-brown crust."""

Layers = dict[str, np.ndarray]

_USUAL_DENSITY = {"melanin": (0.1, 0.85), "blood": (0.02, 0.6)}
"""Range of the mean density inside a lesion, whatever its diagnosis."""


class Outline(NamedTuple):
    """Ranges that the outline of a diagnosis is drawn from; radius in half-size pixels, the others as in `outline`."""

    radius: tuple[float, float]
    elongation: tuple[float, float]
    asymmetry: tuple[float, float]
    roughness: tuple[float, float]


OUTLINES = {
    "akiec": Outline((45, 92), (1.0, 1.6), (0.04, 0.12), (0.06, 0.14)),
    "bcc": Outline((42, 90), (1.0, 1.6), (0.04, 0.12), (0.05, 0.12)),
    "bkl": Outline((40, 92), (1.0, 1.6), (0.02, 0.08), (0.02, 0.08)),
    "df": Outline((42, 88), (1.0, 1.3), (0.00, 0.04), (0.03, 0.07)),
    "mel": Outline((42, 92), (1.0, 1.6), (0.08, 0.17), (0.07, 0.16)),
    "nv": Outline((38, 90), (1.0, 1.6), (0.00, 0.06), (0.02, 0.07)),
    "vasc": Outline((38, 88), (1.0, 1.4), (0.02, 0.07), (0.02, 0.05)),
}


def lesion_layers(diagnosis: str, rng: np.random.Generator) -> tuple[Layers, np.ndarray]:
    """Draw one lesion.

    Parameters
    ----------
    diagnosis : a code of HAM10000
    rng : source of everything that differs between two lesions of a diagnosis

    Returns
    -------
    layers : name in `LAYERS` -> float32 [BOX, BOX], at half the size of the picture
    depth : float32 [BOX, BOX], positive inside the lesion
    """
    other, share = diagnosis, 0.0
    if rng.random() < AMBIGUOUS_SHARE:
        other = str(rng.choice([code for code in PAINTERS if code != diagnosis]))
        share = rng.uniform(0.35, 0.7)
    ranges = OUTLINES[other if rng.random() < share else diagnosis]
    radius = rng.uniform(*ranges.radius)
    depth, angle = outline(
        rng,
        radius=radius,
        elongation=rng.uniform(*ranges.elongation),
        asymmetry=rng.uniform(*ranges.asymmetry),
        roughness=rng.uniform(*ranges.roughness),
    )
    layers = PAINTERS[diagnosis](rng, depth, angle, radius)
    if share:
        second = PAINTERS[other](rng, depth, angle, radius)
        layers = {name: (1 - share) * layers[name] + share * second[name] for name in LAYERS}
    mottle = 1 + rng.uniform(0.1, 0.25) * fractal_noise(rng, 20)
    body = step(depth, 0.12)
    for name, usual in _USUAL_DENSITY.items():
        # Were the means left to the patterns, a few mean colours would tell the classes apart.
        layer = layers[name] * rng.uniform(0.7, 1.1)
        mean = float((layer * body).sum() / body.sum())
        layer += body * (rng.uniform(*usual) - mean) * 0.8
        layers[name] = np.clip(layer * mottle, 0, 1.9)
    for name in ("veil", "white", "crust"):
        layers[name] = np.clip(layers[name], 0, 0.95)
    return layers, depth


def _empty() -> Layers:
    return {name: np.zeros((BOX, BOX), np.float32) for name in LAYERS}


def _ragged(blobs: np.ndarray, noise: np.ndarray, softness: float) -> np.ndarray:
    """Blobs with an irregular outline; noise alone makes none."""
    wide = cv2.GaussianBlur(blobs, (0, 0), 3)
    return step(wide * (1 + 2 * noise) - 0.45, softness) * (wide > 0.02)


def _nevus(rng: np.random.Generator, depth: np.ndarray, angle: np.ndarray, radius: float) -> Layers:
    """Symmetric and orderly: a regular network, regular globules, or one even colour, fading at the border."""
    layers = _empty()
    body = step(depth - 0.08, rng.uniform(0.1, 0.25))
    kind = rng.choice(["reticular", "globular", "homogeneous"], p=[0.6, 0.2, 0.2])
    core = np.clip(depth, 0, 1) * rng.uniform(-0.15, 0.5)
    if kind == "reticular":
        mesh = network(rng, spacing=rng.uniform(9.5, 12.5), jitter=0.15, width=rng.uniform(1.6, 2.3), variation=0.15)
        fade = 1 - step(depth - rng.uniform(0.6, 1.0), 0.3) * 0.7
        layers["melanin"] = body * (0.28 + core + 0.75 * mesh * fade)
    elif kind == "globular":
        to_centre, _, strength = cells(rng, spacing=rng.uniform(9, 12.5), jitter=0.15)
        globules = step(2.2 + 2 * strength - to_centre, 1.3)
        layers["melanin"] = body * (0.35 + core + 0.7 * globules)
    else:
        layers["melanin"] = body * (0.65 + core + 0.1 * fractal_noise(rng, 25))
    return layers


def _melanoma(rng: np.random.Generator, depth: np.ndarray, angle: np.ndarray, radius: float) -> Layers:
    """Asymmetric, of several colours: patchy atypical network, eccentric blotch, streaks, irregular dots, veil."""
    layers = _empty()
    body = step(depth, rng.uniform(0.04, 0.12))
    patch = fractal_noise(rng, radius * 0.7, 3)
    mesh = network(
        rng, spacing=rng.uniform(11, 16), jitter=0.32, width=rng.uniform(2.0, 3.0), variation=rng.uniform(0.7, 1.0)
    )
    blotch = step(fractal_noise(rng, radius * 0.8, 4) - rng.uniform(0.3, 0.9), 0.4)
    layers["melanin"] = body * (0.4 + 0.22 * patch + 0.65 * mesh * step(patch + 0.2, 0.7) + 0.85 * blotch)
    if rng.random() < 0.65:
        rays = streaks(rng, depth, angle, count=int(rng.integers(8, 26)), sector=rng.uniform(1.2, 4), length=11)
        layers["melanin"] += 0.7 * rays
    layers["melanin"] += 0.8 * discs(rng, depth > 0.08, int(rng.integers(5, 26)), (1.2, 4.0))
    if rng.random() < 0.65:
        place = fractal_noise(rng, radius * 0.8, 3) + 0.5 * depth
        layers["veil"] = body * step(depth - 0.15, 0.25) * step(place - 0.7, 0.9) * rng.uniform(0.45, 0.8)
    if rng.random() < 0.4:
        place = fractal_noise(rng, radius * 0.6)
        layers["white"] = body * step(place - 1.0, 0.6) * rng.uniform(0.35, 0.65)
    layers["blood"] = body * np.clip(0.22 * smooth_noise(rng, radius * 0.6), 0, 0.5)
    layers["melanin"] = np.clip(layers["melanin"], 0, 1.8)
    return layers


def _basal_cell_carcinoma(rng: np.random.Generator, depth: np.ndarray, angle: np.ndarray, radius: float) -> Layers:
    """Translucent, with arborising vessels in focus, blue-grey ovoid nests and now and then an ulcer."""
    layers = _empty()
    body = step(depth - 0.05, rng.uniform(0.15, 0.3))
    layers["blood"] = body * (0.3 + 0.1 * fractal_noise(rng, 30))
    layers["melanin"] = body * np.clip(rng.uniform(-0.1, 0.5) + 0.2 * fractal_noise(rng, 30), 0, 0.8)
    layers["white"] = body * np.clip(0.15 + 0.2 * fractal_noise(rng, 25), 0, 0.4)
    vessels = arborising_vessels(rng, radius, int(rng.integers(2, 6)))
    layers["blood"] += 0.9 * vessels * step(depth + 0.2, 0.2)
    layers["white"] *= 1 - vessels
    ragged = 0.2 * fractal_noise(rng, 12, 3)
    nests = discs(rng, depth > 0.15, int(rng.integers(3, 10)), (6, 14), stretch=2.5)
    nests = _ragged(nests, ragged, 0.3)
    layers["veil"] = 0.85 * nests * (1 - 0.8 * vessels)
    layers["melanin"] += 0.5 * nests
    if rng.random() < 0.35:
        ulcer = discs(rng, depth > 0.3, int(rng.integers(1, 3)), (6, 13), stretch=2)
        ulcer = _ragged(ulcer, ragged, 0.2)
        layers["crust"] = 0.6 * ulcer
        layers["blood"] += 0.8 * ulcer
    return layers


def _benign_keratosis(rng: np.random.Generator, depth: np.ndarray, angle: np.ndarray, radius: float) -> Layers:
    """Stuck on: a sharp border, milia-like cysts and comedo-like openings, or ridges like a brain's."""
    layers = _empty()
    body = step(depth, 0.03)
    base = 0.4 + 0.1 * fractal_noise(rng, 16)
    if rng.random() < 0.6:
        ridges = folds(rng, rng.uniform(12, 17))
        layers["melanin"] = body * (base + 0.6 * (1 - ridges))
        cyst_count = int(rng.integers(3, 12))
    else:
        openings = cv2.GaussianBlur(
            discs(rng, depth > 0.1, int(rng.integers(10, 30)), (1.5, 4.5), stretch=2), (0, 0), 1
        )
        layers["melanin"] = body * (base + 0.12 * fractal_noise(rng, 25) + 0.8 * openings)
        cyst_count = int(rng.integers(14, 36))
    cysts = cv2.GaussianBlur(discs(rng, depth > 0.08, cyst_count, (1.8, 4.2)), (0, 0), 1)
    layers["white"] = 0.7 * cysts
    layers["melanin"] *= 1 - 0.7 * cysts
    layers["crust"] = body * rng.uniform(0, 0.35) * step(fractal_noise(rng, 40), 1.5)
    return layers


def _actinic_keratosis(rng: np.random.Generator, depth: np.ndarray, angle: np.ndarray, radius: float) -> Layers:
    """Strawberry: a red pseudonetwork around pale follicles, or coiled vessels in clusters, under white scale."""
    layers = _empty()
    body = step(depth - 0.05, rng.uniform(0.25, 0.45))
    layers["melanin"] = body * np.clip(rng.uniform(-0.1, 0.5) + 0.2 * fractal_noise(rng, 30), 0, 0.8)
    if rng.random() < 0.65:
        to_centre, _, strength = cells(rng, spacing=rng.uniform(14, 18), jitter=0.18)
        follicle = step(3.2 + 2 * strength - to_centre, 1.5)
        layers["blood"] = body * (0.6 + 0.15 * fractal_noise(rng, 20)) * (1 - 0.85 * follicle)
        layers["white"] = body * 0.4 * follicle
        layers["crust"] = body * 0.45 * step(2.2 - to_centre, 0.8)
    else:
        cluster = (depth > 0.1) & (smooth_noise(rng, 30) > -0.3)
        coils = hairpin_vessels(rng, cluster, int(rng.integers(60, 120)), 3.6)
        layers["blood"] = body * 0.25 + 1.1 * coils
    flakes = step(fractal_noise(rng, 26, 5) + 0.4 * smooth_noise(rng, 2.5) - rng.uniform(0.6, 1.3), 0.3)
    layers["white"] = np.maximum(layers["white"], rng.uniform(0.5, 0.8) * flakes * step(depth - 0.05, 0.15))
    return layers


def _dermatofibroma(rng: np.random.Generator, depth: np.ndarray, angle: np.ndarray, radius: float) -> Layers:
    """A white patch in the centre, a delicate network around it that fades into the skin."""
    layers = _empty()
    body = step(depth - 0.2, 0.3)
    patch = step(depth - rng.uniform(0.45, 0.62) + 0.06 * fractal_noise(rng, 16), 0.14)
    mesh = network(rng, spacing=rng.uniform(8, 9.5), jitter=0.15, width=1.4, variation=0.2)
    layers["melanin"] = body * (1 - 0.9 * patch) * (0.35 + 0.45 * mesh)
    layers["blood"] = body * rng.uniform(0.05, 0.25)
    strands = network(rng, spacing=rng.uniform(12, 17), jitter=0.35, width=1.8, variation=0.6)
    layers["white"] = patch * (rng.uniform(0.35, 0.55) + 0.35 * strands)
    return layers


def _vascular_lesion(rng: np.random.Generator, depth: np.ndarray, angle: np.ndarray, radius: float) -> Layers:
    """Sharply bordered red, purple or almost black lacunae, separated by pale septa."""
    layers = _empty()
    to_centre, to_wall, strength = cells(rng, spacing=rng.uniform(17, 25), jitter=0.25)
    # Rounder than the cells around them, and of different sizes.
    lacuna = step(np.minimum(to_wall - 1.6, 9 + 5 * strength - to_centre), 2.0) * step(depth - 0.05, 0.06)
    body = step(depth, 0.08)
    layers["blood"] = body * 0.4 + lacuna * (rng.uniform(0.3, 0.8) + 0.5 * strength)
    layers["melanin"] = lacuna * rng.uniform(0.0, 0.8) * (0.5 + strength)
    layers["veil"] = lacuna * rng.uniform(0, 0.5) * strength
    layers["white"] = body * (1 - lacuna) * rng.uniform(0.0, 0.4)
    return layers


PAINTERS: dict[str, Callable[[np.random.Generator, np.ndarray, np.ndarray, float], Layers]] = {
    "akiec": _actinic_keratosis,
    "bcc": _basal_cell_carcinoma,
    "bkl": _benign_keratosis,
    "df": _dermatofibroma,
    "mel": _melanoma,
    "nv": _nevus,
    "vasc": _vascular_lesion,
}
