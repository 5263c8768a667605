"""Clinical-like pictures made by code: skin as a camera at some distance sees it, not a dermatoscope."""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

TONES = ((236, 200, 178), (224, 182, 156), (205, 158, 128), (176, 124, 92), (134, 88, 62), (92, 58, 42))
"""From light to dark skin, RGB."""
ROOM = ((70, 90, 130), (180, 180, 175), (60, 80, 60), (215, 220, 225), (40, 40, 45), (150, 120, 90))
"""Clothes, walls, sheets."""


def skin_with_mole(rng: np.random.Generator) -> Image.Image:
    """A stretch of skin with one to six moles that are 1 to 6 % of its width, lit from one side."""
    made = _skin(rng, 300, 400)
    for _ in range(int(rng.integers(1, 7))):
        _mole(made, rng, rng.uniform(30, 370), rng.uniform(30, 270), rng.uniform(2, 12))
    return _photographed(made, rng)


def limb(rng: np.random.Generator) -> Image.Image:
    """An arm or a leg across the picture, before clothes or a wall, with a mole or none."""
    made, mask = _room(rng), np.zeros((300, 400), np.uint8)
    y, tilt, half = rng.uniform(110, 190), rng.uniform(-70, 70), rng.uniform(45, 90)
    taper = rng.uniform(0.55, 1.0)
    corners = [
        (-5, y - tilt - half),
        (405, y + tilt - half * taper),
        (405, y + tilt + half * taper),
        (-5, y - tilt + half),
    ]
    cv2.fillPoly(mask, [np.array(corners, np.int32)], 255)
    skin = _skin(rng, 300, 400)
    distance = cv2.distanceTransform(mask, cv2.DIST_L2, 5)[..., None]
    skin *= 0.6 + 0.4 * np.clip(distance / half, 0, 1) ** 0.6
    for _ in range(int(rng.integers(0, 4))):
        _mole(skin, rng, rng.uniform(60, 340), y + rng.uniform(-0.5, 0.5) * half, rng.uniform(2, 9))
    return _photographed(_over(made, skin, mask), rng)


def hand(rng: np.random.Generator) -> Image.Image:
    """A hand with spread fingers before a wall or clothes."""
    made, mask = _room(rng), np.zeros((300, 400), np.uint8)
    x, y, size = rng.uniform(170, 230), rng.uniform(190, 215), rng.uniform(48, 66)
    cv2.ellipse(mask, (int(x), int(y)), (int(0.95 * size), int(1.1 * size)), 0, 0, 360, 255, -1)
    cv2.rectangle(mask, (int(x - 0.6 * size), int(y)), (int(x + 0.6 * size), 300), 255, -1)
    for place, angle in enumerate((-78, -26, -8, 9, 28)):
        turn = np.deg2rad(angle + rng.uniform(-5, 5))
        length = size * (1.65 if place == 0 else 2.35 - 0.12 * abs(place - 2.5)) * rng.uniform(0.9, 1.1)
        tip = (int(x + np.sin(turn) * length), int(y - np.cos(turn) * length))
        cv2.line(mask, (int(x), int(y)), tip, 255, int(0.42 * size), cv2.LINE_AA)
    skin = _skin(rng, 300, 400)
    distance = cv2.distanceTransform(mask, cv2.DIST_L2, 5)[..., None]
    skin *= 0.62 + 0.38 * np.clip(distance / (0.35 * size), 0, 1) ** 0.7
    return _photographed(_over(made, skin, mask), rng)


def face(rng: np.random.Generator) -> Image.Image:
    """A face from the front: hair, eyes, nose, mouth; shaded, before a wall."""
    made, mask = _room(rng), np.zeros((300, 400), np.uint8)
    x, y, size = rng.uniform(180, 220), rng.uniform(145, 165), rng.uniform(75, 105)
    dark = np.array(rng.uniform(10, 90, 3))
    cv2.ellipse(made, (int(x), int(y - 0.25 * size)), (int(1.02 * size), int(1.2 * size)), 0, 0, 360, dark.tolist(), -1)
    cv2.ellipse(mask, (int(x), int(y)), (int(0.8 * size), int(1.08 * size)), 0, 0, 360, 255, -1)
    cv2.rectangle(mask, (int(x - 0.35 * size), int(y + 0.8 * size)), (int(x + 0.35 * size), 300), 255, -1)
    skin = _skin(rng, 300, 400)
    for side in (-1, 1):
        eye = (int(x + side * 0.33 * size), int(y - 0.15 * size))
        cv2.ellipse(skin, eye, (int(0.15 * size), int(0.08 * size)), 0, 0, 360, (240, 240, 240), -1, cv2.LINE_AA)
        cv2.circle(skin, eye, int(0.07 * size), rng.uniform(20, 120, 3).tolist(), -1, cv2.LINE_AA)
        brow = (eye[0], int(eye[1] - 0.16 * size))
        cv2.ellipse(skin, brow, (int(0.2 * size), int(0.05 * size)), 0, 180, 360, dark.tolist(), 3, cv2.LINE_AA)
    nose = np.array([(x, y - 0.05 * size), (x - 0.1 * size, y + 0.28 * size), (x + 0.1 * size, y + 0.28 * size)])
    cv2.polylines(skin, [nose.astype(np.int32)], False, (skin.mean((0, 1)) * 0.72).tolist(), 2, cv2.LINE_AA)
    mouth = (int(x), int(y + 0.52 * size))
    cv2.ellipse(skin, mouth, (int(0.28 * size), int(0.09 * size)), 0, 0, 360, (170, 80, 80), -1, cv2.LINE_AA)
    distance = cv2.distanceTransform(mask, cv2.DIST_L2, 5)[..., None]
    skin *= 0.65 + 0.35 * np.clip(distance / (0.4 * size), 0, 1) ** 0.7
    return _photographed(_over(made, skin, mask), rng)


def bare_skin(rng: np.random.Generator) -> Image.Image:
    """Skin close by, with hairs and lines and no lesion at all."""
    made = _skin(rng, 300, 400)
    for _ in range(int(rng.integers(0, 25))):
        start, turn, length = rng.uniform(0, 400, 2), rng.uniform(0, 2 * np.pi), rng.uniform(20, 120)
        end = start + length * np.array([np.cos(turn), np.sin(turn)])
        cv2.line(made, tuple(map(int, start)), tuple(map(int, end)), (70, 50, 40), 1, cv2.LINE_AA)
    return _photographed(made, rng)


def _skin(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """A sheet of skin, float [H, W, 3] in 0..255: a tone, its blotches and the grain of pores and lines."""
    tone = np.array(TONES[int(rng.integers(len(TONES)))], dtype=float) * rng.uniform(0.9, 1.05)
    blotches = cv2.resize(rng.normal(size=(height // 40, width // 40)), (width, height), interpolation=cv2.INTER_CUBIC)
    grain = cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), rng.uniform(0.7, 2.0))
    made = tone * (1 + 0.035 * blotches[..., None] + rng.uniform(0.02, 0.06) * grain[..., None])
    return made + 2 * blotches[..., None] * np.array([1.0, -0.4, -0.3])


def _mole(made: NDArray[np.float64], rng: np.random.Generator, x: float, y: float, radius: float) -> None:
    rows, columns = np.mgrid[0 : made.shape[0], 0 : made.shape[1]]
    far = np.hypot((columns - x) * rng.uniform(0.8, 1.2), rows - y) / radius
    opaque = rng.uniform(0.4, 0.9) / (1 + np.exp(np.minimum(8 * (far - 1), 50)))
    made += opaque[..., None] * (np.array([88.0, 52.0, 38.0]) * rng.uniform(0.6, 1.3) - made)


def _room(rng: np.random.Generator) -> NDArray[np.float64]:
    colour = np.array(ROOM[int(rng.integers(len(ROOM)))], dtype=float) * rng.uniform(0.7, 1.1)
    folds = cv2.resize(rng.normal(size=(5, 7)), (400, 300), interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(colour * (1 + 0.12 * folds[..., None]))


def _over(back: NDArray[np.float64], front: NDArray[np.float64], mask: NDArray[np.uint8]) -> NDArray[np.float64]:
    share = cv2.GaussianBlur(mask, (0, 0), 1.2)[..., None] / 255.0
    return back + share * (front - back)


def _photographed(made: NDArray[np.float64], rng: np.random.Generator) -> Image.Image:
    """Light from one side, a lens that is not quite sharp, the noise of a sensor."""
    rows, columns = np.mgrid[-1:1:300j, -1:1:400j]
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0.05, 0.22) * (rows * np.sin(angle) + columns * np.cos(angle))
    made = cv2.GaussianBlur(made * light[..., None], (0, 0), rng.uniform(0.4, 1.2))
    return Image.fromarray(np.clip(made + rng.normal(0, rng.uniform(1, 4), made.shape), 0, 255).astype(np.uint8))


KINDS: dict[str, Callable[[np.random.Generator], Image.Image]] = {
    "drawn bare skin": bare_skin,
    "drawn face": face,
    "drawn hand": hand,
    "drawn limb": limb,
    "drawn skin, mole afar": skin_with_mole,
}
