"""Draw one dermoscopy-like image: skin, a lesion on it, and the camera's view of both.

A lesion is drawn once from its own seed; a view of it (rotation, scale, light, hair, focus) from another. Two views of
one lesion are therefore near-duplicates, as two photographs of one lesion are, and leak when a split parts them.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from exp_tools.data.synthetic.lesions import LAYERS, lesion_layers
from exp_tools.data.synthetic.textures import BOX, fractal_noise, smooth_noise, step

HEIGHT, WIDTH = 450, 600
_SKIN = 400
"""Side of the square piece of skin that a view shows a part of, in half-size pixels."""

_PALE_SKIN = np.array([0.95, 0.83, 0.79], np.float32)
_MELANIN = np.array([0.66, 1.02, 1.42], np.float32)
_BLOOD = np.array([0.20, 1.05, 0.78], np.float32)
_VEIL = np.array([0.34, 0.35, 0.43], np.float32)
_WHITE = np.array([0.95, 0.91, 0.90], np.float32)
_CRUST = np.array([0.78, 0.56, 0.28], np.float32)


def draw_lesion(
    diagnosis: str, *, lesion_seed: int | Sequence[int], view_seed: int | Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a view of a lesion.

    Parameters
    ----------
    diagnosis : a code of HAM10000: akiec, bcc, bkl, df, mel, nv, vasc
    lesion_seed : what the lesion and the skin around it look like
    view_seed : how it is photographed

    Returns
    -------
    image : uint8 [450, 600, 3], RGB
    mask : bool [450, 600], true on the lesion
    """
    skin, depth = _skin_with_lesion(diagnosis, np.random.default_rng(lesion_seed))
    rng = np.random.default_rng(view_seed)
    to_view = _camera(rng)
    image = cv2.warpAffine(skin, to_view, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT_101)
    inside = np.pad((depth > 0).astype(np.uint8) * 255, (_SKIN - BOX) // 2)
    mask = cv2.warpAffine(inside, to_view, (WIDTH, HEIGHT), borderMode=cv2.BORDER_CONSTANT) > 127
    _add_hair(image, rng)
    if rng.random() < 0.12:
        _add_ruler(image, rng)
    if rng.random() < 0.2:
        _add_bubbles(image, rng)
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 1.3))
    return _expose(image, rng), mask


def _skin_with_lesion(diagnosis: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Piece of skin, uint8 [400, 400, 3], with the lesion in the middle, and the lesion's depth [BOX, BOX]."""
    layers, depth = lesion_layers(diagnosis, rng)
    spots = step(fractal_noise(rng, 30, 4, _SKIN) - rng.uniform(0.6, 2.4), 1.2) * rng.uniform(0.03, 0.22)
    tan = float(rng.choice([0.1, 0.45, 0.8], p=[0.7, 0.2, 0.1])) * rng.uniform(0.2, 1.2)
    melanin = tan + spots + rng.uniform(0.01, 0.035) * smooth_noise(rng, 4, _SKIN)
    blood = rng.uniform(0.0, 0.22) + rng.uniform(0.01, 0.05) * fractal_noise(rng, 45, 5, _SKIN)
    inner = slice((_SKIN - BOX) // 2, (_SKIN + BOX) // 2)
    melanin[inner, inner] += layers["melanin"]
    blood[inner, inner] += layers["blood"]
    shade = float(np.exp(-0.35 * tan))  # scars and scale on dark skin are less bright
    opaque = [
        (layers[name], tint)
        for name, tint in zip(LAYERS[2:], (_VEIL, _WHITE * shade, _CRUST * shade), strict=True)
        if layers[name].any()
    ]
    planes = []
    for channel, pale in enumerate(_PALE_SKIN):
        # Beer and Lambert: pigment and blood dim the light that the skin sends back.
        plane = cv2.exp(cv2.addWeighted(melanin, -_MELANIN[channel], blood, -_BLOOD[channel], np.log(pale * 255)))
        box = plane[inner, inner]
        for opacity, tint in opaque:
            box += opacity * (tint[channel] * 255 - box)
        planes.append(cv2.convertScaleAbs(plane))
    return cv2.merge(planes), depth


def _camera(rng: np.random.Generator) -> np.ndarray:
    """Affine map [2, 3] from half-size skin to the picture: turned, enlarged and shifted, never mirrored."""
    scale = 2 * rng.uniform(0.85, 1.15)
    turn = rng.uniform(0, 2 * np.pi)
    matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    centre = np.array([WIDTH / 2, HEIGHT / 2]) + rng.uniform(-1, 1, size=2) * (45, 25)
    return np.column_stack([matrix, centre - matrix @ np.full(2, (_SKIN - 1) / 2)])


def _add_hair(image: np.ndarray, rng: np.random.Generator) -> None:
    """Curved hairs, mostly of one colour and direction; most pictures have none or few."""
    count = int(rng.choice([0, rng.integers(1, 9), rng.integers(12, 45)], p=[0.5, 0.38, 0.12]))
    tint = np.array([0.2, 0.13, 0.1]) * rng.uniform(0.3, 1.6) * 255
    if rng.random() < 0.15:
        tint = np.array([215, 205, 190])  # grey hair
    direction = rng.uniform(0, np.pi)
    steps = np.linspace(0, 1, 12)[:, None]
    for _ in range(count):
        heading = direction + rng.normal(scale=0.5)
        along = np.array([np.cos(heading), np.sin(heading)])
        across = np.array([-along[1], along[0]])
        start = rng.uniform(-0.1, 1.1, size=2) * (WIDTH, HEIGHT)
        length, bend = rng.uniform(60, 300), rng.normal(scale=0.35)
        path = start + length * (steps * along + bend * (steps**2) * across)
        points = np.round(path * 16).astype(np.int32)
        colour = [int(value) for value in np.clip(tint * rng.uniform(0.8, 1.2), 0, 255)]
        cv2.polylines(image, [points], False, colour, int(rng.choice([1, 2, 3], p=[0.55, 0.4, 0.05])), cv2.LINE_AA, 4)


def _add_ruler(image: np.ndarray, rng: np.random.Generator) -> None:
    """Millimetre marks along the lower or the left edge."""
    spacing = rng.uniform(18, 30)
    tint = [int(rng.integers(20, 80))] * 3
    level = rng.integers(6, 40)
    upright = rng.random() < 0.5
    extent = HEIGHT if upright else WIDTH
    for number in range(int(extent / spacing) + 1):
        at = int(number * spacing)
        long = 26 if number % 10 == 0 else 19 if number % 5 == 0 else 12
        begin, end = (
            ((level, at), (level + long, at)) if upright else ((at, HEIGHT - level), (at, HEIGHT - level - long))
        )
        cv2.line(image, [int(value) for value in begin], [int(value) for value in end], tint, 2, cv2.LINE_AA)


def _add_bubbles(image: np.ndarray, rng: np.random.Generator) -> None:
    """Air in the immersion gel: bright rings with a darker inside edge and a highlight."""
    anchor = rng.uniform(0, 1, size=2) * (WIDTH, HEIGHT)
    for _ in range(int(rng.integers(2, 9))):
        x, y = (int(value) for value in anchor + rng.normal(scale=60, size=2))
        radius = int(rng.integers(4, 19))
        cv2.circle(image, (x, y), radius, (150, 128, 125), 1, cv2.LINE_AA)
        cv2.circle(image, (x, y), radius + 1, (238, 228, 228), 1, cv2.LINE_AA)
        cv2.ellipse(image, (x, y), (max(radius - 3, 1),) * 2, 0, 200, 260, (255, 252, 250), 2, cv2.LINE_AA)


def _expose(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light, white balance, vignette and sensor noise."""
    y, x = np.mgrid[-1 : 1 : HEIGHT // 10 * 1j, -1 : 1 : WIDTH // 10 * 1j].astype(np.float32)
    slope = rng.uniform(-0.08, 0.08, size=2)
    light = rng.uniform(0.85, 1.1) * (1 + slope[0] * x + slope[1] * y) * (1 - rng.uniform(0, 0.18) * (x**2 + y**2) / 2)
    if rng.random() < 0.25:
        tube = rng.uniform(0.98, 1.25)  # radius of the dermatoscope's field over half the width of the picture
        edge = tube - np.hypot(x - rng.normal(scale=0.04), y * HEIGHT / WIDTH - rng.normal(scale=0.04))
        light = light * step(edge, rng.uniform(0.02, 0.07))
    balance = np.exp(rng.normal(scale=(0.04, 0.05, 0.08))) * (1, 1, rng.choice([1.0, 1.12]))
    light = cv2.resize(light.astype(np.float32), (WIDTH, HEIGHT))
    planes = [
        cv2.multiply(plane, light, scale=gain, dtype=cv2.CV_8U)
        for plane, gain in zip(cv2.split(image), balance, strict=True)
    ]
    grain = np.frombuffer(rng.bytes(HEIGHT * WIDTH), np.uint8).reshape(HEIGHT, WIDTH)
    amplitude = rng.uniform(1.5, 5)
    return cv2.merge([cv2.addWeighted(plane, 1, grain, amplitude / 128, -amplitude) for plane in planes])
