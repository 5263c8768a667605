"""What lies between skin and camera: hair, a ruler, the dermatoscope's edge, bubbles in the immersion fluid.

Each is drawn on a canvas of fixed size and then scaled to the image, so that a small and a large square get the same
picture. All random numbers are drawn before the severity is looked at: a higher one adds to what a lower one has.
"""

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

CANVAS = 512
_FINE = 4  # bits behind the point in OpenCV's coordinates

HAIRS = (3, 7, 13, 21, 32)
RULER_DEPTH = (0.06, 0.09, 0.13, 0.18, 0.24)  # of the side
RULER_PAPER = (0.0, 0.25, 0.5, 0.75, 0.92)  # opacity of the white below the marks
APERTURE = (0.66, 0.59, 0.53, 0.47, 0.41)  # radius of what the dermatoscope leaves free, of the side
BUBBLES = (4, 8, 14, 22, 32)


def hair(image: NDArray[np.uint8], severity: int, rng: Generator) -> NDArray[np.uint8]:
    """Curved dark hairs of mostly one direction: 3 to 32."""
    tint = np.array([62, 44, 36]) * rng.uniform(0.3, 1.25)
    direction = rng.uniform(0, np.pi)
    most = HAIRS[-1]
    headings = direction + rng.normal(scale=0.35, size=most) + np.pi * rng.integers(0, 2, most)
    middles, lengths = rng.uniform(-0.05, 1.05, (most, 2)), rng.uniform(0.35, 1.1, most)
    bends, widths = rng.normal(scale=0.3, size=most), rng.uniform(0.0035, 0.009, most)
    opacity = rng.uniform(0.7, 0.95)
    steps = np.linspace(-0.5, 0.5, 24)[:, None]
    mask = np.zeros((CANVAS, CANVAS), np.uint8)
    for place in range(HAIRS[severity - 1]):
        along = np.array([np.cos(headings[place]), np.sin(headings[place])])
        across = np.array([-along[1], along[0]])
        path = middles[place] + lengths[place] * (steps * along + bends[place] * (4 * steps**2 - 0.5) * across / 2)
        root, tip = _fixed(path[:16]), _fixed(path[15:])
        width = max(1, round(widths[place] * CANVAS))
        cv2.polylines(mask, [root], False, 255, width, cv2.LINE_AA, _FINE)
        cv2.polylines(mask, [tip], False, 255, max(1, width - 1), cv2.LINE_AA, _FINE)
    return _painted(image, _covered(mask, image) * np.float32(opacity), tint)


def ruler(image: NDArray[np.uint8], severity: int, rng: Generator) -> NDArray[np.uint8]:
    """Millimetre marks along a side, etched at first, then on an ever wider strip of paper."""
    side, tilt, shift = int(rng.integers(4)), rng.uniform(-0.06, 0.06), rng.uniform(0, 1)
    spacing, ink = rng.uniform(0.028, 0.045), rng.uniform(15, 60)
    first = int(rng.integers(1, 9))
    depth = RULER_DEPTH[severity - 1]

    def place(u: float, v: float) -> tuple[float, float]:
        """The point [x, y] of a distance u along the side and v into the image, in sides of the image."""
        v = v + tilt * (u - 0.5)
        return ((u, v), (u, 1 - v), (v, u), (1 - v, u))[side]

    paper, marks = np.zeros((2, CANVAS, CANVAS), np.uint8)
    corners = [place(-0.1, -0.2), place(1.1, -0.2), place(1.1, depth), place(-0.1, depth)]
    cv2.fillConvexPoly(paper, _fixed(np.array(corners)), 255, cv2.LINE_AA, _FINE)
    for number in range(-2, int(1 / spacing) + 3):
        u = (number + shift) * spacing
        length = depth * (0.72 if number % 10 == 0 else 0.55 if number % 5 == 0 else 0.38)
        line = _fixed(np.array([place(u, 0.0 if severity > 1 else 0.008), place(u, length)]))
        cv2.polylines(marks, [line], False, 255, 3, cv2.LINE_AA, _FINE)
        if number % 10 == 0:
            x, y = place(u, depth * 0.8)
            text, size = str(first + number // 10), depth * CANVAS / 90
            (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 2)
            corner = (round(x * CANVAS - width / 2), round(y * CANVAS + height / 2))
            cv2.putText(marks, text, corner, cv2.FONT_HERSHEY_SIMPLEX, size, 255, 2, cv2.LINE_AA)
    on_paper = _painted(image, _covered(paper, image) * RULER_PAPER[severity - 1], np.array([238, 236, 230]))
    return _painted(on_paper, _covered(marks, image) * 0.85, np.full(3, ink))


def dark_corner(image: NDArray[np.uint8], severity: int, rng: Generator) -> NDArray[np.uint8]:
    """The dermatoscope's edge: dark outside a circle, and light that falls off towards it."""
    centre = (0.5 + rng.uniform(-0.035, 0.035, 2)).astype(np.float32)
    softness = rng.uniform(0.012, 0.05)
    size = image.shape[0]
    at = (np.arange(size, dtype=np.float32) + 0.5) / size
    distance = np.hypot(at[None, :] - centre[0], at[:, None] - centre[1])
    radius = APERTURE[severity - 1]
    light = np.clip((radius - distance) / softness + 0.5, 0.015, 1)
    light *= 1 - 0.06 * severity * np.clip(distance / radius, 0, 1) ** 3
    return cv2.merge([cv2.multiply(plane, light, dtype=cv2.CV_8U) for plane in cv2.split(image)])


def bubbles(image: NDArray[np.uint8], severity: int, rng: Generator) -> NDArray[np.uint8]:
    """Air in the immersion fluid: bright rings with a dark edge, and a highlight towards the light."""
    most = BUBBLES[-1]
    anchors = rng.uniform(0.1, 0.9, (3, 2))
    middles = anchors[rng.integers(0, 3, most)] + rng.normal(scale=0.22, size=(most, 2))
    radii = np.clip(np.exp(rng.normal(np.log(0.026), 0.55, most)), 0.009, 0.1)
    towards = rng.uniform(0, 360)
    bright, dark = np.zeros((2, CANVAS, CANVAS), np.uint8)
    for place in range(BUBBLES[severity - 1]):
        centre = _fixed(middles[place])
        radius = radii[place] * CANVAS
        rim = max(1, round(radius * 0.14))
        angle = np.radians(towards)
        glint = _fixed(middles[place] + 0.5 * radii[place] * np.array([np.cos(angle), np.sin(angle)]))
        for canvas in (bright, dark):  # a bubble hides what lies below it
            cv2.circle(canvas, centre, _length(radius), 0, -1, cv2.LINE_AA, _FINE)
        cv2.circle(bright, centre, _length(radius), 26, -1, cv2.LINE_AA, _FINE)
        cv2.circle(dark, centre, _length(radius), 130, rim, cv2.LINE_AA, _FINE)
        lens = (_length(radius - rim),) * 2
        cv2.ellipse(bright, centre, lens, towards, 95, 265, 150, rim, cv2.LINE_AA, _FINE)
        cv2.circle(bright, glint, _length(max(radius * 0.17, 1.2)), 245, -1, cv2.LINE_AA, _FINE)
    bright = cv2.GaussianBlur(bright, (0, 0), 1.0)
    below = _painted(image, _covered(dark, image) * 0.9, np.array([96, 70, 66]))
    return _painted(below, _covered(bright, image), np.array([255, 250, 248]))


def _fixed(points: NDArray[np.float64]) -> NDArray[np.int32]:
    """Points in sides of the image as OpenCV's fixed-point coordinates of the canvas."""
    return np.round(points * CANVAS * 2**_FINE).astype(np.int32)


def _length(pixels: float) -> int:
    return max(1, round(pixels * 2**_FINE))


def _covered(mask: NDArray[np.uint8], image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Share of each pixel of the image [S, S] that is covered, 0 to 1, of a mask on the canvas."""
    size = image.shape[0]
    how = cv2.INTER_AREA if size <= CANVAS else cv2.INTER_LINEAR
    return cv2.resize(mask.astype(np.float32) / 255, (size, size), interpolation=how)


def _painted(image: NDArray[np.uint8], opacity: NDArray[np.float32], colour: NDArray) -> NDArray[np.uint8]:
    paint = np.broadcast_to(np.rint(colour).astype(np.uint8), image.shape)
    return cv2.blendLinear(image, np.ascontiguousarray(paint), 1 - opacity, opacity)
